"""Files written whole or not at all, and never through a link that somebody else laid."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A new file beside `path`, open for writing bytes; it takes the place of `path` when the block ends well.

    Until then what lay at `path` stays, and after an exception nothing new is left. A link at `path` is replaced, what
    it points to is not touched. Raises OSError where the folder cannot be written.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)  # a temporary file starts out private
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def read_plain(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of a regular file, which is not opened through a link; OSError where it is none, or too large."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise OSError(f"{path} is no regular file of at most {max_bytes:,} bytes")
        return file.read(max_bytes)
