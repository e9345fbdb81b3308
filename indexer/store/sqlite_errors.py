"""What SQLite says, as one line of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from ..errors import LockedError, StoreError, UnusableError, first_line
from .sqlite_schema import mend

_PASSING = (apsw.CantOpenError, apsw.ReadOnlyError, apsw.FullError, apsw.PermissionsError, apsw.NoLFSError)
_DAMAGED = (apsw.SQLITE_IOERR_DATA, apsw.SQLITE_IOERR_CORRUPTFS, apsw.SQLITE_IOERR_SHORT_READ)


@contextmanager
def sqlite_errors(doing: str, folder: Path, *, values: bool = False) -> Iterator[None]:
    """SQLite's exceptions as StoreError.

    doing   what is done to the index, for the message: `read records of`
    values  also those of values that are not of the kind that was written: an altered file may hold any
    """
    try:
        yield
    except apsw.Error as error:
        raise _told(error, doing, folder) from None
    except (ValueError, TypeError, AttributeError, OverflowError, apsw.ExecutionCompleteError) as error:
        if not values:
            raise
        raise UnusableError(f"the index at {folder} is damaged: {first_line(error)}; {mend(folder)}") from None


def is_passing(error: apsw.Error) -> bool:
    """Whether the file may be sound and only its place forbids what was tried: nothing can be written there."""
    return isinstance(error, _PASSING) or (isinstance(error, apsw.IOError) and not _is_damage(error))


def _is_damage(error: apsw.Error) -> bool:
    extended = getattr(error, "extendedresult", 0)
    return isinstance(error, (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)) or extended in _DAMAGED


def _told(error: apsw.Error, doing: str, folder: Path) -> StoreError:
    start = f"cannot {doing} the index at {folder}"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return LockedError(f"{start}: another process has it locked; wait for it to end, or stop it")
    if isinstance(error, apsw.FullError):
        return StoreError(f"{start}: its disk is full; make room, what was written before is safe")
    if _is_damage(error):
        return UnusableError(f"the index at {folder} is damaged ({first_line(error)}); {mend(folder)}")
    if isinstance(error, _PASSING):
        return StoreError(f"{start}: {first_line(error)}; check the folder and its permissions")
    if isinstance(error, apsw.IOError):
        return StoreError(f"{start}: {first_line(error)}; make room and check its disk")
    return StoreError(f"{start}: {first_line(error)}; {mend(folder)}")
