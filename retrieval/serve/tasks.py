"""Long work of a server, one at a time: bringing the index in line, looking for duplicates; with its progress.

Where several servers share an index, each sees the tasks of all of them, may ask any to stop, and starts none while one
runs elsewhere; see `task_board`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from indexer.errors import SeenitError, StoreError

from .refusal import Refusal
from .task import Kind, Task
from .task_board import BEAT_S, TaskBoard

KEPT = 20  # tasks that are remembered
LOOK_S = 1.0  # between looks at whether another server has something to say to a task that runs here


class Stopped(Exception):
    """The work was asked to stop, and has."""


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
    """The tasks of one server and of those that share its index, the newest first."""

    def __init__(self, board: TaskBoard | None = None) -> None:
        """board: where servers of one index meet; None where this is the only one."""
        self._board = board
        self._lock = threading.Lock()
        self._tasks: deque[Task] = deque(maxlen=KEPT)
        self._number = 0
        self._handle: Handle | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, kind: Kind, work: Callable[[Handle], Outcome]) -> Task:
        """Begin in a thread of its own; Refusal 409 where something runs already."""
        running = next((task for task in self.all(at_once=True) if task.state == "running"), None)
        with self._lock:
            if self._closed:
                raise Refusal(503, "the server is stopping")
            if self._tasks and self._tasks[0].state == "running":
                running = self._tasks[0]
            if running is not None:
                raise Refusal(409, f"a task of kind {running.kind} runs; wait for it or stop it")
            self._number += 1
            id = str(self._number) if self._board is None else f"{self._board.server}.{self._number}"
            task = Task(id, kind, datetime.now(UTC))
            self._tasks.appendleft(task)
            self._handle = Handle(self, task.id)
            self._thread = threading.Thread(
                target=self._run, args=(task.id, self._handle, work), name=f"seenit-{kind}", daemon=True
            )
            self._thread.start()
        return task

    def stop(self, id: str) -> Task:
        """Ask a task to stop; what it has done stays. Refusal 404 for one that is not known."""
        task = next((task for task in self.all(at_once=True) if task.id == id), None)
        if task is None:
            raise Refusal(404, f"there is no task {id[:100]}; see /api/tasks")
        with self._lock:
            own = any(one.id == id for one in self._tasks)
            if own and task.state == "running" and self._handle is not None:
                self._handle.stop()
        if not own and task.state == "running" and self._board is not None:
            self._board.ask_to_stop(id)
        return task

    def all(self, *, at_once: bool = False) -> list[Task]:
        """What is known, of other servers as of a moment ago, or as of now."""
        others = self._board.others(at_once=at_once) if self._board is not None else []
        with self._lock:
            own = list(self._tasks)
        return sorted([*own, *others], key=lambda task: task.started_at, reverse=True)[:KEPT]

    @property
    def running(self) -> Kind | None:
        """The kind of what runs here."""
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

    def note(self, id: str, line: str) -> None:
        with self._lock:
            notes = next((task.notes for task in self._tasks if task.id == id), ())
        self.update(id, notes=(*notes, line))

    def _run(self, id: str, handle: Handle, work: Callable[[Handle], Outcome]) -> None:
        over = threading.Event()
        teller = None
        if self._board is not None:
            teller = threading.Thread(
                target=self._tell, args=(self._board, id, handle, over), name="seenit-board", daemon=True
            )
            teller.start()
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
        over.set()
        if teller is not None:
            teller.join()

    def _tell(self, board: TaskBoard, id: str, handle: Handle, over: threading.Event) -> None:
        """Tell the others of a task that runs here, and take up their wish that it stops, until it is over."""
        told: list[Task] = []
        told_at = 0.0
        while True:
            ending = over.is_set()
            with suppress(StoreError):  # the task itself says what is wrong with the index's server
                with self._lock:
                    own = list(self._tasks)
                if own != told or time.monotonic() - told_at > BEAT_S:
                    board.write(own)
                    told, told_at = own, time.monotonic()
                if ending:
                    board.ended(id)
                elif board.asked_to_stop(id):
                    handle.stop()
            if ending:
                return
            over.wait(LOOK_S)
