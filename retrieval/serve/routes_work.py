"""Routes that begin long work, watch it and apply what it found."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body, Query
from starlette.responses import Response, StreamingResponse

from indexer.errors import StoreError

from ..show.schema import dumps
from .answers import ChangedAnswer, DuplicatesAnswer, MovedAnswer, TaskAnswer, TasksAnswer
from .refusal import busy, json_response
from .requests import ApplyBody, DuplicatesBody, IndexBody, UndoBody
from .routes_search import answers
from .service import Service
from .task import Task

STREAMS = 64  # of events that may be open
STREAM_THREADS = 4  # that wait for the index's server on behalf of all streams; others are for requests
V = TypeVar("V")
LOOK_S = 0.2  # between looks at the tasks
CHANGED_S = 1.0  # between looks at the index
COMMENT_S = 15.0  # between lines that keep a connection open
INDEX, DUPLICATES = IndexBody(), DuplicatesBody()


def work_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["work"])
    streams = _Streams(service)

    @router.post("/api/index", response_model=None, **answers(TaskAnswer, 202))
    def start_index(body: Annotated[IndexBody, Body()] = INDEX) -> Response:
        """Bring the index in line with its folders."""
        return json_response(service.start_index(body).answer(), 202)

    @router.get("/api/tasks", response_model=None, **answers(TasksAnswer))
    def tasks() -> Response:
        """What runs and what ran, the newest first."""
        return json_response(TasksAnswer(tasks=tuple(task.answer() for task in service.tasks.all())))

    @router.post("/api/tasks/{id}/stop", response_model=None, **answers(TaskAnswer, 202))
    def stop(id: str) -> Response:
        """Ask a task to stop after what it is at."""
        return json_response(service.tasks.stop(id).answer(), 202)

    @router.get(
        "/api/tasks/events",
        response_model=None,
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def events() -> Response:
        """Server-sent events: `task` with every change of a task, `index` where the index changed."""
        if streams.open >= STREAMS:
            raise busy("too many streams of events are open")
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(streams.events(), headers=headers, media_type="text/event-stream")

    @router.post("/api/duplicates", response_model=None, **answers(TaskAnswer, 202))
    def find(body: Annotated[DuplicatesBody, Body()] = DUPLICATES) -> Response:
        """Begin to look for duplicates; what is found is kept until the next run."""
        task = service.tasks.start("duplicates", lambda handle: service.review.find(body, handle))
        return json_response(task.answer(), 202)

    @router.get("/api/duplicates", response_model=None, **answers(DuplicatesAnswer))
    def duplicates(
        offset: Annotated[int, Query(ge=0, le=2**53)] = 0, limit: Annotated[int, Query(ge=1, le=200)] = 50
    ) -> Response:
        """A page of what the last run found, and what can be undone."""
        return json_response(service.review.page(offset, limit))

    @router.post("/api/duplicates/apply", response_model=None, **answers(MovedAnswer))
    def apply(body: Annotated[ApplyBody, Body()]) -> Response:
        """Move what was chosen away; nothing is deleted, and a manifest puts all back."""
        service.check_writable()
        moved = service.review.apply(body)
        service.library.forget()
        return json_response(moved)

    @router.post("/api/duplicates/undo", response_model=None, **answers(MovedAnswer))
    def undo(body: Annotated[UndoBody, Body()]) -> Response:
        """Put back what was moved."""
        service.check_writable()
        return json_response(service.review.undo(body.manifest))

    return router


class _Streams:
    """The open streams of events."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._threads = CapacityLimiter(STREAM_THREADS)
        self.open = 0

    async def events(self) -> AsyncIterator[str]:
        """The newest task at once, then every change until the client leaves or the server stops."""
        self.open += 1
        loop = asyncio.get_running_loop()
        seen: dict[str, str] = {}
        looked = spoke = loop.time()
        try:
            state = await self._state(None)
            for task in (await self._tasks())[1:]:
                seen[task.id] = dumps(task.answer())  # older ones are not told again
            while not self._service.stopping.is_set():
                for task in reversed(await self._tasks()):
                    told = dumps(task.answer())
                    if seen.get(task.id) != told:
                        seen[task.id] = told
                        spoke = loop.time()
                        yield f"event: task\ndata: {told}\n\n"
                if loop.time() - looked > CHANGED_S:
                    looked = loop.time()
                    now = await self._state(state)
                    count = None if now == state else await self._look(lambda: self._service.index.count)
                    if count is not None:
                        state, spoke = now, loop.time()
                        yield f"event: index\ndata: {dumps(ChangedAnswer(images=count))}\n\n"
                if loop.time() - spoke > COMMENT_S:
                    spoke = loop.time()
                    yield ": still here\n\n"
                await asyncio.sleep(LOOK_S)
        finally:
            self.open -= 1

    async def _tasks(self) -> list[Task]:
        return await self._look(self._service.tasks.all) or []

    async def _state(self, before: object) -> object:
        """What changes with the index; as before where that is not known."""
        now = await self._look(self._service.library.state)
        return before if now is None else now

    async def _look(self, look: Callable[[], V]) -> V | None:
        """None while the index's server, where other servers tell of their tasks, does not answer."""
        try:
            return await to_thread.run_sync(look, limiter=self._threads)
        except StoreError:
            return None
