"""Where the servers of one index, several processes behind one name, tell each other of their tasks.

Each server writes its own tasks, as JSON, into a blob of the index's store, and reads those of the others. While
something runs it writes at least every BEAT_S. What is surprising: no clock is compared, for machines' clocks differ.
A reader counts how long a blob of another server stays as it is by its own clock, and takes a task that is silent for
SILENT_S for one whose server has ended.
"""

import json
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from indexer.errors import StoreError
from indexer.store.protocol import SERVING, Store

from .task import Task

BEAT_S = 5.0
SILENT_S = 30.0
READ_S = 1.0  # between readings of what others wrote
MOST_SERVERS = 20  # whose blobs are kept; servers come and go
_TASKS, _STOP = f"{SERVING}tasks.", f"{SERVING}stop."


@dataclass(frozen=True)
class _Heard:
    """What another server wrote last, and when that was first seen, by this process's clock."""

    data: bytes
    since: float
    tasks: tuple[Task, ...]


class TaskBoard:
    """The tasks of the other servers of an index; its calls block, and come from any thread. StoreError as of a store.

    store  of the index
    """

    def __init__(self, store: Store) -> None:
        self.server = secrets.token_hex(4)  # of this process; begins the ids of its tasks
        self._store = store
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._read_at = -READ_S
        self._beats = 0

    def write(self, tasks: Sequence[Task]) -> None:
        """Tell the others what runs and ran here."""
        self._beats += 1
        values = {"beat": self._beats, "tasks": [_to_json(task) for task in tasks]}
        self._store.write_blob(_TASKS + self.server, json.dumps(values).encode())

    def others(self, *, at_once: bool = False) -> list[Task]:
        """The tasks of the other servers, those that fell silent as failed; as of READ_S ago, or as of now."""
        with self._lock:
            now = time.monotonic()
            if at_once or now - self._read_at >= READ_S:
                self._read(now)
                self._read_at = now
            return [
                _silent(task) if task.state == "running" and now - heard.since > SILENT_S else task
                for heard in self._heard.values()
                for task in heard.tasks
            ]

    def _read(self, now: float) -> None:
        names = [name for name in self._store.blob_names() if name.startswith(_TASKS)]
        heard: dict[str, _Heard] = {}
        for name in names:
            server = name.removeprefix(_TASKS)
            data = self._store.read_blob(name) if server != self.server else None
            if data is None:
                continue
            known = self._heard.get(server)
            heard[server] = known if known is not None and known.data == data else _Heard(data, now, _tasks_of(data))
        self._heard = heard

    def ask_to_stop(self, id: str) -> None:
        """Of a task of another server, which looks for that while it runs."""
        self._store.write_blob(_STOP + id, b"")

    def asked_to_stop(self, id: str) -> bool:
        """Whether another server was asked to stop this task, which runs here."""
        return self._store.read_blob(_STOP + id) is not None

    def ended(self, id: str) -> None:
        """Nobody needs to ask for this task's end any more."""
        self._store.delete_blob(_STOP + id)

    def tidy(self) -> None:
        """Remove what servers left that ended long ago."""
        with suppress(StoreError):
            told = {name: self._store.read_blob(name) for name in self._store.blob_names() if name.startswith(_TASKS)}
            last = {name: _last_of(_tasks_of(data or b"")) for name, data in told.items()}
            for name in sorted(last, key=lambda name: last[name], reverse=True)[MOST_SERVERS:]:
                self._store.delete_blob(name)


def _silent(task: Task) -> Task:
    return replace(task, state="failed", message="its server has ended; what was done is kept")


def _last_of(tasks: Sequence[Task]) -> datetime:
    return max((task.ended_at or task.started_at for task in tasks), default=datetime.min.replace(tzinfo=UTC))


def _to_json(task: Task) -> dict[str, Any]:
    ended_at = task.ended_at.isoformat() if task.ended_at else None
    return {**asdict(task), "started_at": task.started_at.isoformat(), "ended_at": ended_at}


def _tasks_of(data: bytes) -> tuple[Task, ...]:
    """What a server wrote; nothing where another version of seenit wrote something else."""
    try:
        return tuple(
            Task(
                **{
                    **values,
                    "notes": tuple(values["notes"]),
                    "started_at": datetime.fromisoformat(values["started_at"]),
                    "ended_at": datetime.fromisoformat(values["ended_at"]) if values["ended_at"] else None,
                }
            )
            for values in json.loads(data)["tasks"]
        )
    except (ValueError, TypeError, KeyError):
        return ()
