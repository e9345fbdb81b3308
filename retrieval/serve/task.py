"""One piece of long work of a server, as it stands."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from .answers import TaskAnswer

Kind = Literal["index", "duplicates"]
State = Literal["running", "done", "failed", "stopped"]


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
