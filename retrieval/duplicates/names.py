"""Names of files below a folder, reached without following any link, so that a move touches what it was told to touch.

A folder that was replaced by a link makes one file appear under two paths, and unlinking "the other one" then destroys
the only copy. So every folder below the named one is opened in turn and refuses to be a link, and what is done after
that is done relative to the opened folder: what somebody puts in its place meanwhile is not seen.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from indexer.errors import SeenitError, os_reason
from indexer.images.decode import SNIFF_BYTES, sniff
from indexer.images.find import open_regular
from indexer.images.metadata import content_id
from indexer.index.keys import relative_parts

HANDLES = {os.open, os.stat, os.link, os.unlink, os.rename, os.mkdir} <= os.supports_dir_fd  # not so on Windows
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True)
class Name:
    """A name in a folder, whether or not a file has it.

    path    for messages
    at      what the calls of `os` take: the last part of the path, or all of it where `handle` is None
    handle  of the opened folder; None where the system has none
    """

    path: str
    at: str
    handle: int | None

    def status(self) -> os.stat_result | None:
        """What has the name, a link not followed; None where nothing has it."""
        try:
            return os.stat(self.at, dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def folder(self) -> tuple[int, int]:
        """Device and number of the folder: what tells whether two paths are one."""
        status = os.stat(os.path.dirname(self.path)) if self.handle is None else os.fstat(self.handle)
        return status.st_dev, status.st_ino

    def beside(self, name: str) -> "Name":
        """Another name in the same folder."""
        path = os.path.join(os.path.dirname(self.path), name)
        return Name(path, path if self.handle is None else name, self.handle)

    def reading(self) -> IO[bytes]:
        """The regular file opened; OSError where it is something else."""
        if self.handle is None:
            return open_regular(self.path)
        flags = os.O_RDONLY | NO_FOLLOW | os.O_NONBLOCK
        file = open(os.open(self.at, flags, dir_fd=self.handle), "rb", buffering=0)  # noqa: SIM115 - the caller's
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError("not a regular file")
        return file

    def creating(self) -> IO[bytes]:
        """A new file; FileExistsError where something has the name."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | getattr(os, "O_BINARY", 0)
        return open(os.open(self.at, flags, 0o600, dir_fd=self.handle), "wb")

    def link_to(self, other: "Name") -> None:
        """Give the file a second name; FileExistsError where something has it."""
        options = {} if self.handle is None else {"follow_symlinks": False}
        os.link(self.at, other.at, src_dir_fd=self.handle, dst_dir_fd=other.handle, **options)

    def rename_to(self, other: "Name") -> None:
        os.rename(self.at, other.at, src_dir_fd=self.handle, dst_dir_fd=other.handle)

    def replace(self, other: "Name") -> None:
        os.replace(self.at, other.at, src_dir_fd=self.handle, dst_dir_fd=other.handle)

    def unlink(self) -> None:
        os.unlink(self.at, dir_fd=self.handle)

    def sync_folder(self) -> None:
        """Have the folder's names on the disk; where the system cannot, they get there by themselves."""
        if self.handle is not None:
            with contextlib.suppress(OSError):
                os.fsync(self.handle)


@contextlib.contextmanager
def reach(top: str, path: str, *, make: bool = False) -> Iterator[Name]:
    """The name `path` below the folder `top`; folders on the way are made with `make`.

    `top` itself may be a link: it is what the user named.
    Raises SeenitError where `path` is not below `top`, or a folder on the way is a link; FileNotFoundError where one
    is missing.
    """
    parts = relative_parts(path, top)
    if not parts or os.path.normpath(path) != path:
        raise SeenitError(f"{path} does not lie in {top}")
    if not HANDLES:
        yield Name(path, _checked(top, tuple(parts), make), None)
        return
    handle = os.open(top, os.O_RDONLY | FOLDER)
    try:
        for depth, part in enumerate(parts[:-1], start=1):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=handle)
            try:
                below = os.open(part, os.O_RDONLY | FOLDER | NO_FOLLOW, dir_fd=handle)
            except FileNotFoundError:
                raise
            except OSError:
                raise SeenitError(f"{os.path.join(top, *parts[:depth])} is a link or no folder") from None
            os.close(handle)
            handle = below
        yield Name(path, parts[-1], handle)
    finally:
        os.close(handle)


def _checked(top: str, parts: tuple[str, ...], make: bool) -> str:
    """The same without handles: every folder is looked at once."""
    folder = top
    for part in parts[:-1]:
        folder = os.path.join(folder, part)
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or getattr(status, "st_reparse_tag", 0) != 0:
            raise SeenitError(f"{folder} is a link or no folder")
    return os.path.join(folder, parts[-1])


def why_not(name: Name, size: int, id: str) -> str:
    """Why a name is not the image with this size and content id; empty where it is. Reads all of its bytes."""
    try:
        status = name.status()
        if status is None:
            return "it is gone"
        if not stat.S_ISREG(status.st_mode):
            return "it is a link, not a file" if stat.S_ISLNK(status.st_mode) else "it is no regular file"
        if status.st_size != size:
            return "it has changed"
        with name.reading() as file:
            data = file.read()
    except OSError as error:
        return os_reason(error)
    if content_id(data) != id:
        return "its bytes have changed"
    return "" if sniff(data[:SNIFF_BYTES]) else "it is no image"
