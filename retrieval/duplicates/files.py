"""Files are put elsewhere or joined such that at every moment, whatever happens, the bytes are there by some name."""

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from indexer.errors import SeenitError
from indexer.files import open_regular, os_reason
from indexer.store import content_id

from .outcome import File

NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def why_not_itself(file: File) -> str:
    """Why a file is no longer what was indexed; empty where it is. By size and time; the bytes are not read."""
    try:
        status = os.lstat(file.path)
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return os_reason(error)
    if not stat.S_ISREG(status.st_mode):
        return "it is a link, not a file"
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        return "it has changed since it was indexed"
    return ""


def id_of(path: str) -> str:
    """The content id of a file as it is now; OSError where it cannot be read."""
    with open_regular(path) as file:
        return content_id(file.read())


def move_file(source: str, target: str, id: str) -> None:
    """Move a file to a name that nothing has, to another disk as well.

    id  what the bytes must be, where they have to be copied
    Raises SeenitError, with the source as it was: something has the name, the disk is full, the bytes differ.
    """
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.link(source, target)  # fails where something has the name, as a rename would not
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise SeenitError(f"cannot move {source}: there is something at {target} already") from None
            if error.errno == errno.EXDEV:
                _copy_verified(source, target, id)
            elif error.errno in NO_LINKS and not os.path.lexists(target):
                os.rename(source, target)  # a file system without links
                return
            else:
                raise
        sync_folder_of(target)
        os.unlink(source)
    except OSError as error:
        raise SeenitError(f"cannot move {source} to {target}: {os_reason(error)}; it stays where it is") from None


def _copy_verified(source: str, target: str, id: str) -> None:
    """Copy to a name that nothing has; the copy is on the disk, and its bytes are the ones asked for, on return."""
    if os.path.lexists(target):
        raise SeenitError(f"cannot move {source}: there is something at {target} already")
    unfinished = f"{target}.seenit-part-{os.getpid()}"
    try:
        with open(source, "rb") as reading, open(unfinished, "xb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            os.fsync(writing.fileno())
        shutil.copystat(source, unfinished)
        if id_of(unfinished) != id:
            raise SeenitError(f"cannot move {source}: its bytes have changed; bring the index in line: seenit index")
        try:
            os.link(unfinished, target)
        except OSError as error:
            if error.errno not in NO_LINKS or os.path.lexists(target):
                raise
            os.rename(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def join_files(kept: File, spare: File) -> bool:
    """Make `spare` another name of the file `kept`, whose bytes it has; False where it is one already.

    Raises SeenitError, with both as they were: other bytes, another disk, a file system without links.
    """
    name = os.path.join(os.path.dirname(spare.path), f".seenit-link-{os.getpid()}")
    try:
        one, other = os.lstat(kept.path), os.lstat(spare.path)
        if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino):
            return False
        if one.st_dev != other.st_dev:
            raise SeenitError(f"cannot join {spare.path}: it is on another disk than {kept.path}; use --move-to")
        for file in (kept, spare):
            if why := why_not_itself(file) or ("" if id_of(file.path) == file.id else "its bytes have changed"):
                raise SeenitError(f"cannot join {file.path}: {why}; bring the index in line: seenit index")
        os.link(kept.path, name)
        try:
            if _stamp(os.lstat(spare.path)) != _stamp(other):
                raise SeenitError(f"cannot join {spare.path}: it is being written to; try again")
            os.replace(name, spare.path)
        except BaseException:
            os.unlink(name)
            raise
        sync_folder_of(spare.path)
        return True
    except OSError as error:
        raise SeenitError(f"cannot join {spare.path} and {kept.path}: {os_reason(error)}; both stay") from None


def sync_folder_of(path: str) -> None:
    """Have the names in a file's folder on the disk; where the system cannot, they get there by themselves."""
    with contextlib.suppress(OSError):
        handle = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
