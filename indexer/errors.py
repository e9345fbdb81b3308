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


class LockedError(StoreError):
    """Another process is using this index."""


def first_line(what: object) -> str:
    """The first line of what an exception or a server says, shortened; of an exception without words its kind."""
    if isinstance(what, OSError) and what.strerror:
        return what.strerror.lower()
    lines = str(what).strip().splitlines() or [type(what).__name__ if isinstance(what, BaseException) else ""]
    return lines[0][:300]


def os_reason(error: OSError) -> str:
    """What the system says of an error, without number and path."""
    return (error.strerror or type(error).__name__).lower()
