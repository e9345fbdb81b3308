"""Where shards of vectors lie: a folder, or below an address of an object store. This is the one place that chooses.

A place knows named files, whole ones: it lists them with their sizes, opens and reads them, puts each in the place of
what had its name or not at all, and deletes. See `remote_place` for the other kind.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import filelock

from ..atomic_file import atomic_file, open_plain, read_plain
from ..errors import SeenitError, StoreError, UnusableError, os_reason
from ..printable import printable
from ..sources.place import is_address
from .lock import take_lock

# Kinds of addresses whose stores put objects whole; memory: fsspec's own, of one process
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


class PlaceLock(Protocol):
    """A writer's lock on a place."""

    def check(self) -> None:
        """LockedError where another writer has taken the place over."""

    def release(self) -> None: ...


class ShardPlace(Protocol):
    """See the module. Names may have a folder before them. Errors: SeenitError in one line, in `open` also OSError."""

    location: str  # as the user would type it

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of the files in the place, or in a folder in it, by name; without links and what lies deeper."""

    def names(self) -> list[str]:
        """All that lies right in the place, folders and links among it."""

    def is_there(self, name: str) -> bool: ...

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """A file for reading here and there, and its bytes; FileNotFoundError where there is none."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A whole file of at most `limit` bytes; None where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; durable when the call returns."""

    def delete(self, name: str) -> None:
        """Nothing where there is none."""

    def make(self) -> None:
        """Make the place where it is not there, as far as that is needed."""

    def discard(self) -> None:
        """Remove the place itself where nothing is left in it, as far as there is anything to remove."""

    def lock(self, wait_s: float) -> PlaceLock:
        """The writer's lock; LockedError after `wait_s`."""


@dataclass(frozen=True)
class PlacedFile:
    """One file of a place."""

    place: ShardPlace
    name: str

    def __str__(self) -> str:
        return f"{self.place.location.rstrip('/')}/{self.name}"


def takes_shards(location: str | Path) -> bool:
    """Whether a path or an address is of a kind that holds shards: file servers put no file whole or not at all."""
    return not is_address(location) or str(location).partition("://")[0].lower() in STORES


def place_at(location: str | Path) -> ShardPlace:
    """The place that a path or an address means; SeenitError for an address that takes no shards."""
    if not is_address(location):
        return FolderPlace(Path(location))
    if not takes_shards(location):
        raise SeenitError(f"{printable(str(location))} takes no shards; name a folder, or an address such as s3://...")
    from .remote_place import RemotePlace

    return RemotePlace(str(location))


class _FileLock:
    """A lock on a folder: it ends with its process, and nobody takes it over."""

    def __init__(self, lock: filelock.BaseFileLock) -> None:
        self._lock = lock

    def check(self) -> None:
        pass

    def release(self) -> None:
        self._lock.release()


class FolderPlace:
    """A folder of this machine, or of a disk that several share. Links are not followed."""

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self._folder = folder

    def sizes(self, folder: str = "") -> dict[str, int]:
        found = {}
        try:
            with os.scandir(self._inside(folder)) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):  # what is neither is refused once it is opened
                        found[entry.name] = status.st_size
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UnusableError(f"cannot read {self._folder}: {os_reason(error)}; check the folder") from None
        return found

    def names(self) -> list[str]:
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnusableError(f"cannot read {self._folder}: {os_reason(error)}; check the folder") from None

    def is_there(self, name: str) -> bool:
        return os.path.lexists(self._folder / name)

    def open(self, name: str) -> tuple[BinaryIO, int]:
        file = open_plain(self._inside(name))
        return file, os.fstat(file.fileno()).st_size

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            return read_plain(self._inside(name), limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnusableError(f"cannot read {name} of the shards in {self._folder}: {os_reason(error)}") from None

    def put(self, name: str, data: bytes) -> None:
        path = self._inside(name)
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            with atomic_file(path) as file:
                file.write(data)

    def delete(self, name: str) -> None:
        with self._writing(), suppress(FileNotFoundError):
            os.unlink(self._inside(name))

    def make(self) -> None:
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        for name in ("lock", "lock.json"):
            with suppress(OSError):
                os.unlink(self._folder / name)
        with suppress(OSError):
            os.rmdir(self._folder)

    def lock(self, wait_s: float) -> PlaceLock:
        with self._writing():
            return _FileLock(take_lock(self._folder / "lock", self._folder, wait_s))

    def _inside(self, name: str) -> Path:
        path = self._folder / name
        if path.parent != self._folder and path.parent.is_symlink():
            raise UnusableError(f"{path.parent} is a link; do not use these shards")
        return path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What writing raises, in one line."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write to {self._folder}: {os_reason(error)}; make room or check the folder, and run the same"
                " again to go on"
            ) from None
