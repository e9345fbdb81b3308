"""Files written whole or not at all, and never through a link that somebody else laid."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import SeenitError, os_reason

_PLAIN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def atomic_path(path: str | Path, *, mode: int = 0o666) -> Iterator[Path]:
    """The path of a new empty file beside `path`, for libraries that write to a path; see `atomic_file`.

    mode  who may read and write it, as far as the user's umask grants it
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        granted = os.fstat(handle).st_mode
        os.close(handle)
        yield temporary
        os.chmod(temporary, granted)  # some libraries take rights away
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def atomic_file(path: str | Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file beside `path`, open for writing bytes; it takes the place of `path` when the block ends well.

    Until then what lay at `path` stays, and after an exception nothing new is left. A link at `path` is replaced, what
    it points to is not touched. Raises OSError where the folder cannot be written.
    """
    with atomic_path(path, mode=mode) as temporary, open(temporary, "wb") as file:
        yield file


@contextmanager
def whole_file(path: str | Path, next_step: str = "name another file") -> Iterator[BinaryIO]:
    """`atomic_file` for a file that a user named: SeenitError, with the step to take, where it cannot be written."""
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise SeenitError(f"cannot write {path}: {os_reason(error)}; {next_step}") from None


def make_folder(path: str | Path, next_step: str) -> None:
    """A folder that a user named, where it is missing; SeenitError, with the step to take, where it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SeenitError(f"cannot make {path}: {os_reason(error)}; {next_step}") from None


def read_plain(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of a regular file, which is not opened through a link; OSError where it is none, or too large."""
    with os.fdopen(os.open(path, _PLAIN), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise OSError(f"{path} is no regular file of at most {max_bytes:,} bytes")
        return file.read(max_bytes)


def open_plain(path: str | Path) -> BinaryIO:
    """A regular file, open for reading bytes, which is not opened through a link; OSError where it is none."""
    file = os.fdopen(os.open(path, _PLAIN), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is no regular file")
    return file


def last_bytes(path: str | Path, count: int) -> bytes:
    """The last bytes of a file, not opened through a link; none where it is not there or cannot be read."""
    try:
        with os.fdopen(os.open(path, _PLAIN), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - count))
            return file.read(count)
    except OSError:
        return b""
