"""Lists the files under folders, and opens one without waiting or being tricked.

Surprising: what cannot be read is told apart from what is gone, because a caller deletes what is gone from its index. A
disk that was unplugged, a folder without permission or a link that leads nowhere must not look like deleted photos.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import SeenitError

# Folders that cameras' software, systems and network drives fill with copies and leftovers
SKIPPED_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found", "__macosx"}
)
NOT_REGULAR = "not a regular file"


@dataclass(frozen=True)
class FoundFile:
    """A regular file (or a link to one), as the folder's listing shows it."""

    path: str  # absolute; bytes that are not UTF-8 are surrogates, as os.fsdecode makes them
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Unreadable:
    """A folder or file that is there but cannot be read now. What it holds is unknown, not gone."""

    path: str
    reason: str


def find_files(
    folders: Iterable[str | Path], *, exclude_dirs: Iterable[str | Path] = ()
) -> Iterator[FoundFile | Unreadable]:
    """Every file under the folders, picture or not, each folder's entries in the order of their names.

    Left out: hidden files and folders, SKIPPED_FOLDERS, `exclude_dirs`, what is not a regular file.
    A link to a folder is followed after everything else and only into a folder not yet seen, so loops end and a file's
    path is the real one where there is one. A folder given twice, or inside another one given, is listed once.
    A folder that cannot be read, or a link that leads nowhere, yields Unreadable: what is behind it is unknown.
    SeenitError if one of `folders` is not there, or goes away.
    """
    seen: set[tuple[int, int]] = set()  # device, inode of each folder listed or excluded
    for folder in exclude_dirs:
        with contextlib.suppress(OSError):  # one that is not there need not be excluded
            seen.add(_identity(os.fspath(folder)))
    for folder in folders:
        root = os.path.abspath(os.path.expanduser(os.fspath(folder)))
        before = _identity_of_root(root)
        links: list[str] = []
        yield from _walk(root, seen, links)
        for link in links:  # grows while it is walked
            yield from _walk(link, seen, links)
        if _identity_of_root(root) != before:  # a disk taken away must not look like deleted photos
            raise SeenitError(f"the folder {root} went away while it was being listed; bring it back and try again")


def open_regular(path: str) -> IO[bytes]:
    """Open a regular file for reading, unbuffered; OSError if it is something else, without waiting for it.

    A FIFO would wait for its writer, a device might do anything when opened. A name that no file can have (a NUL in it,
    or a character that this system has no bytes for) is an OSError as well, not Python's ValueError.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    try:
        status = os.stat(path)
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name") from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR)
    file = open(os.open(path, flags), "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was put in the other's place just now
        file.close()
        raise OSError(errno.EINVAL, NOT_REGULAR)
    return file


def os_reason(error: OSError) -> str:
    """What the system says of an error, without number and path."""
    return (error.strerror or type(error).__name__).lower()


def _identity_of_root(root: str) -> tuple[int, int]:
    try:
        is_folder, identity = os.path.isdir(root), _identity(root)
    except OSError as error:
        raise SeenitError(f"cannot list {root}: {os_reason(error)}; give a folder that can be read") from None
    if not is_folder:
        raise SeenitError(f"cannot list {root}: it is not a folder; give the folder that holds it")
    return identity


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _walk(top: str, seen: set[tuple[int, int]], links: list[str]) -> Iterator[FoundFile | Unreadable]:
    """The files of one folder and of the real folders in it; links to folders are added to `links`."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            identity = _identity(folder)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since its parent was listed
        except OSError as error:
            yield Unreadable(folder, os_reason(error))
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name.lower() not in SKIPPED_FOLDERS:
                        folders.append(entry.path)
                elif entry.is_symlink() and entry.is_dir():
                    links.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield FoundFile(entry.path, status.st_size, status.st_mtime_ns)
                elif entry.is_symlink() and not os.path.exists(entry.path):  # perhaps into a disk that is not here now
                    yield Unreadable(entry.path, "the link leads nowhere")
            except FileNotFoundError:
                continue  # deleted since it was listed
            except OSError as error:
                yield Unreadable(entry.path, os_reason(error))
        waiting.extend(reversed(folders))
