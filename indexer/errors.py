"""The exceptions of a user's mistakes and of the world's accidents.

Every message is one line that says what happened, where, and the next step to take; the command line prints it and
exits 1. Our own mistakes are `assert`s.
"""

WAIT_S = 10.0  # seconds that a writer waits for another one, before it is a LockedError


class SeenitError(Exception):
    """Anything that a user can understand and act upon."""


class ImageError(SeenitError):
    """One image cannot be read; `reason` is short and without the path, the message has both."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read {path}: {reason}")
        self.path = path
        self.reason = reason


class CheckpointError(SeenitError):
    """A weights file is not what it should be: unknown layout, missing or misshapen tensors, truncated."""


class DownloadError(SeenitError):
    """A file could not be fetched whole."""


class StoreError(SeenitError):
    """The vector store refused, is not reachable, or does not hold what was expected."""


class UnusableError(StoreError):
    """The index is damaged, or another program's or version's: waiting does not help."""


class AwayError(SeenitError):
    """A folder, or what was in it, is not there now; its drive may come back."""


class LockedError(StoreError):
    """Another process is using this index."""


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later although the user does nothing about this index."""
    if isinstance(error, UnusableError):
        return False
    return isinstance(error, (AwayError, StoreError, DownloadError, OSError, MemoryError))


def first_line(what: object) -> str:
    """The first line of what an exception or a server says, shortened; of an exception without words its kind."""
    if isinstance(what, OSError) and what.strerror:
        return what.strerror.lower()
    lines = str(what).strip().splitlines() or [type(what).__name__ if isinstance(what, BaseException) else ""]
    return lines[0][:300]


def on_one_line(what: object) -> str:
    """All lines of an exception or a text as one, shortened; of an exception without words its kind."""
    return " ".join(str(what).split())[:200] or type(what).__name__


def os_reason(error: OSError) -> str:
    """The system's text for an error, without number and path."""
    return (error.strerror or type(error).__name__).lower()
