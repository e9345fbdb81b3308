"""Files are put elsewhere or joined such that at every moment, whatever happens, the bytes are there by some name."""

import contextlib
import errno
import os
import shutil
import stat

from indexer.errors import SeenitError, os_reason
from indexer.images.find import stamp_ns

from .names import Name, reach, why_not
from .outcome import File

NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
PART = ".seenit-part-"  # in the name of a copy that is not finished; hidden, so that it is never indexed


def why_not_itself(file: File) -> str:
    """Why a file is no longer what was indexed; empty where it is.

    Reads all of its bytes: a program may have changed them and put the time back. A file behind a link counts as
    another one.
    """
    try:
        with reach(file.root, file.path) as name:
            status = name.status()
            if status is not None and stat.S_ISREG(status.st_mode) and stamp_ns(status) != file.mtime_ns:
                return "it has changed since it was indexed"
            return why_not(name, file.size, file.id)
    except FileNotFoundError:
        return "it is gone"
    except SeenitError as error:
        return str(error)
    except OSError as error:
        return os_reason(error)


def move_name(source: Name, target: Name, id: str) -> None:
    """Move a file to a name that nothing has, to another disk as well.

    id  what the bytes must be, where they have to be copied
    Raises SeenitError, with the source as it was: something has the name, the disk is full, the bytes differ, somebody
    put another file in its place just now.
    """
    try:
        before = source.status()
        if before is None or not stat.S_ISREG(before.st_mode):
            raise SeenitError(f"cannot move {source.path}: it is no regular file any more")
        try:
            source.link_to(target)  # fails where something has the name, as a rename would not
            linked = True
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise SeenitError(f"cannot move {source.path}: there is something at {target.path} already") from None
            if error.errno in NO_LINKS and target.status() is None:
                source.rename_to(target)  # a file system without links
                target.sync_folder()
                return
            if error.errno != errno.EXDEV:
                raise
            _copy_verified(source, target, id)
            linked = False
        target.sync_folder()
        now, there = source.status(), target.status()
        expected = _stamp(before)
        if now is None or _stamp(now) != expected or (linked and (there is None or _stamp(there) != expected)):
            raise SeenitError(f"cannot move {source.path}: somebody is writing to it; it is at {target.path} as well")
        source.unlink()
        source.sync_folder()
    except OSError as error:
        raise SeenitError(
            f"cannot move {source.path} to {target.path}: {os_reason(error)}; it stays where it is"
        ) from None


def _copy_verified(source: Name, target: Name, id: str) -> None:
    """Copy to a name that nothing has; the copy is on the disk, and its bytes are the ones asked for, on return."""
    if target.status() is not None:
        raise SeenitError(f"cannot move {source.path}: there is something at {target.path} already")
    unfinished = target.beside(f".{os.path.basename(target.path)}{PART}{os.getpid()}")
    made = False
    try:
        with source.reading() as reading, unfinished.creating() as writing:
            made = True
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            status = os.fstat(reading.fileno())
            if os.chmod in os.supports_fd:
                os.chmod(writing.fileno(), stat.S_IMODE(status.st_mode))
            if os.utime in os.supports_fd:
                os.utime(writing.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(writing.fileno())
            size = status.st_size
        if why := why_not(unfinished, size, id):
            raise SeenitError(f"cannot move {source.path}: {why}; bring the index in line: seenit index")
        try:
            unfinished.link_to(target)
        except OSError as error:
            if error.errno not in NO_LINKS or target.status() is not None:
                raise
            unfinished.rename_to(target)
    finally:
        if made:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()


def join_files(kept: File, spare: File) -> bool:
    """Make `spare` another name of the file `kept`, whose bytes it has; False where it is one already.

    Killed at any moment it leaves both paths with their bytes; a hidden third name may stay behind, which the next
    run takes away. Raises SeenitError, with both as they were: other bytes, another disk, a file system without links.
    """
    try:
        with reach(kept.root, kept.path) as one, reach(spare.root, spare.path) as other:
            return _join(kept, one, spare, other)
    except OSError as error:
        raise SeenitError(f"cannot join {spare.path} and {kept.path}: {os_reason(error)}; both stay") from None


def _join(kept: File, one: Name, spare: File, other: Name) -> bool:
    third = other.beside(f".{os.path.basename(spare.path)}.seenit-link")
    first, second = one.status(), other.status()
    if first is None or second is None:
        raise SeenitError(f"cannot join {spare.path} and {kept.path}: one of them is gone; run: seenit index")
    if (left := third.status()) is not None and _is_one(left, first):  # an earlier run was killed
        third.unlink()
        first = one.status() or first
    if _is_one(first, second):
        return False
    if first.st_dev != second.st_dev:
        raise SeenitError(f"cannot join {spare.path}: it is on another disk than {kept.path}; use --move-to")
    for file in (kept, spare):
        if why := why_not_itself(file):
            raise SeenitError(f"cannot join {file.path}: {why}; bring the index in line: seenit index")
    one.link_to(third)
    try:
        here, there, same = one.status(), other.status(), third.status()
        if here is None or there is None or same is None or _stamp(there) != _stamp(second) or not _is_one(here, same):
            raise SeenitError(f"cannot join {spare.path}: it is being written to; try again")
        third.replace(other)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            third.unlink()
        raise
    other.sync_folder()
    return True


def _is_one(first: os.stat_result, second: os.stat_result) -> bool:
    """Whether two names are of one file."""
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
