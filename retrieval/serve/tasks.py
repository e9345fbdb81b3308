"""Long work of a server, one at a time: bringing the index in line, looking for duplicates; with its progress."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from indexer.errors import SeenitError

from .answers import TaskAnswer
from .refusal import Refusal

KEPT = 20  # tasks that are remembered
Kind = Literal["index", "duplicates"]
State = Literal["running", "done", "failed", "stopped"]


class Stopped(Exception):
    """The work was asked to stop, and has."""


@dataclass(frozen=True)
class Task:
    """One piece of work as it stands."""

    id: str
    kind: Kind
    started_at: datetime
    state: State = "running"
    stage: str = "starting"
    done: int = 0
    total: int = 0
    message: str = ""
    notes: tuple[str, ...] = ()
    summary: dict[str, Any] | None = None
    ended_at: datetime | None = None

    def answer(self) -> TaskAnswer:
        return TaskAnswer(
            id=self.id,
            kind=self.kind,
            state=self.state,
            stage=self.stage,
            done=self.done,
            total=self.total,
            message=self.message,
            notes=self.notes,
            summary=self.summary,
            started_at=self.started_at.isoformat(timespec="seconds"),
            ended_at=self.ended_at.isoformat(timespec="seconds") if self.ended_at else None,
        )


@dataclass(frozen=True)
class Outcome:
    """What a piece of work says when it is done."""

    message: str
    summary: dict[str, Any]
    notes: tuple[str, ...] = ()


class Handle:
    """What the work is given: where it reports to, and whether it is to stop."""

    def __init__(self, tasks: "Tasks", id: str) -> None:
        self._tasks = tasks
        self._id = id
        self._stop = threading.Event()

    def progress(self, stage: str, done: int, total: int) -> None:
        self._tasks.update(self._id, stage=stage, done=done, total=total)

    def say(self, line: str) -> None:
        self._tasks.note(self._id, line)

    def stop(self) -> None:
        self._stop.set()

    def stopped(self) -> bool:
        return self._stop.is_set()


class Tasks:
    """The tasks of one server, the newest first; `version` is raised by every change of one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: deque[Task] = deque(maxlen=KEPT)
        self._number = 0
        self._handle: Handle | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.version = 0

    def start(self, kind: Kind, work: Callable[[Handle], Outcome]) -> Task:
        """Begin in a thread of its own; Refusal 409 where something runs already."""
        with self._lock:
            if self._closed:
                raise Refusal(503, "the server is stopping")
            if self._tasks and self._tasks[0].state == "running":
                raise Refusal(409, f"a task of kind {self._tasks[0].kind} runs; wait for it or stop it")
            self._number += 1
            task = Task(str(self._number), kind, datetime.now(UTC))
            self._tasks.appendleft(task)
            self.version += 1
            self._handle = Handle(self, task.id)
            self._thread = threading.Thread(
                target=self._run, args=(task.id, self._handle, work), name=f"seenit-{kind}", daemon=True
            )
            self._thread.start()
        return task

    def stop(self, id: str) -> Task:
        """Ask a task to stop; what it has done stays. Refusal 404 for one that is not known."""
        with self._lock:
            task = next((task for task in self._tasks if task.id == id), None)
            if task is None:
                raise Refusal(404, f"there is no task {id}; see /api/tasks")
            if task.state == "running" and self._handle is not None:
                self._handle.stop()
            return task

    def all(self) -> list[Task]:
        with self._lock:
            return list(self._tasks)

    @property
    def running(self) -> Kind | None:
        """The kind of what runs."""
        with self._lock:
            return self._tasks[0].kind if self._tasks and self._tasks[0].state == "running" else None

    def close(self) -> None:
        """Ask what runs to stop, and wait until it has finished what it was at."""
        with self._lock:
            self._closed = True
            if self._handle is not None:
                self._handle.stop()
            thread = self._thread
        if thread is not None:
            thread.join()

    def update(self, id: str, **values: Any) -> None:
        with self._lock:
            for n, task in enumerate(self._tasks):
                if task.id == id:
                    self._tasks[n] = replace(task, **values)
                    self.version += 1

    def note(self, id: str, line: str) -> None:
        with self._lock:
            notes = next((task.notes for task in self._tasks if task.id == id), ())
        self.update(id, notes=(*notes, line))

    def _run(self, id: str, handle: Handle, work: Callable[[Handle], Outcome]) -> None:
        ended: dict[str, Any]
        try:
            outcome = work(handle)
            ended = {"state": "done", "message": outcome.message, "summary": outcome.summary}
            for note in outcome.notes:
                self.note(id, note)
        except Stopped:
            ended = {"state": "stopped", "message": "stopped; what was done is kept"}
        except SeenitError as error:
            ended = {"state": "failed", "message": str(error)}
        except Exception as error:  # ours; the server goes on
            ended = {"state": "failed", "message": f"internal error: {type(error).__name__}: {error}"}
        self.update(id, ended_at=datetime.now(UTC), **ended)
