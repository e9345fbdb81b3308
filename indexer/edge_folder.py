"""An embedded index as a folder on a disk: who may use it, whether there is room, its blobs, its bytes by part.

    INDEX/shard/         the engine's files: write-ahead log, segments, indexes
    INDEX/lock           locked while a process has the index open; the lock dies with its process
    INDEX/lock.json      who that is, for the message
    INDEX/NAME           the blobs

What is surprising: the engine writes through memory maps, and a full disk then kills the process with a bus error,
nothing lost but nothing said either. So room is asked for before each write.
"""

import os
import re
import shutil
from pathlib import Path

import filelock

from .errors import SeenitError, StoreError, first_line
from .index_lock import take_lock

OPEN_BYTES = 32 << 20  # what the engine may lay out when it opens an index
BLOB_NAME = re.compile(r"[a-z0-9_-][a-z0-9_.-]*")
RESERVED = ("shard", "shard.new", "lock", "lock.json")


def claim_folder(folder: Path, write: bool, wait_s: float) -> filelock.BaseFileLock:
    """Lock the index at `folder`, which is made if need be where `write` allows it; see `EdgeStore.open`."""
    _refuse_foreign(folder, write)
    try:
        ask_for_room(folder, OPEN_BYTES, f"cannot open the index at {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        return take_lock(folder / "lock", folder, wait_s)
    except OSError as error:
        raise StoreError(f"cannot open the index at {folder}: {first_line(error)}; check the folder") from None


def _refuse_foreign(folder: Path, write: bool) -> None:
    """SeenitError unless there is an index at `folder`, or room for a new one where one may be made."""
    if folder.exists() and not folder.is_dir():
        raise SeenitError(f"{folder} is a file; an index is a folder, name another place with --index")
    made_here = any((folder / name).exists() for name in ("lock", "lock.json", "shard"))
    if not write and not made_here:
        raise SeenitError(f"no index at {folder}; create one with: seenit index FOLDER --index {folder}")
    try:
        if write and not made_here and folder.exists() and any(folder.iterdir()):
            raise SeenitError(f"{folder} holds other files and no index; name a new or empty folder with --index")
    except OSError as error:
        raise StoreError(f"cannot open the index at {folder}: {first_line(error)}; check the folder") from None


def ask_for_room(folder: Path, needed: int, failure: str) -> None:
    """StoreError unless so many bytes are free where `folder` is, or where it would be made."""
    existing = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StoreError(f"{failure}: {free >> 20} MB are free on its disk, {needed >> 20} MB are needed; make room")


def read_blob(folder: Path, name: str) -> bytes | None:
    try:
        return _blob(folder, name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {name} of the index at {folder}: {first_line(error)}") from None


def write_blob(folder: Path, name: str, data: bytes) -> None:
    """Written under another name and renamed, so that the old content stays until the new one is whole."""
    path = _blob(folder, name)
    unfinished = path.with_name(f"{name}.part")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {name} to the index at {folder}: {first_line(error)}; make room and run it again"
        ) from None


def blob_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and _is_blob(path.name))


def _blob(folder: Path, name: str) -> Path:
    assert _is_blob(name), name
    return folder / name


def _is_blob(name: str) -> bool:
    return bool(BLOB_NAME.fullmatch(name)) and name not in RESERVED and not name.endswith(".part")


def read_ahead(folder: Path) -> None:
    """Bring the records into the page cache, file by file, before all of them are read.

    The engine lets go of their pages when it opens an index and maps them for reads here and there, so that each
    record would wait for the disk by itself.
    """
    buffer = bytearray(1 << 20)
    for path in (folder / "shard" / "segments").glob("*/payload_storage/page_*.dat"):
        try:
            left = _bytes_on_disk(path.stat())  # filled from the front; the rest of the file is a hole
            with open(path, "rb", buffering=0) as file:
                while left > 0 and (read := file.readinto(buffer)):
                    left -= read
        except OSError:  # the engine removes a segment at any time; and it will tell of a disk that fails
            continue


def bytes_by_part(folder: Path) -> dict[str, int]:
    """Bytes on disk of global, graph, records (patches included), log, blobs."""
    parts: dict[str, int] = {}
    for place, _, names in os.walk(folder):
        part = _part(Path(place).relative_to(folder).parts)
        for name in names:
            try:
                size = _bytes_on_disk(os.stat(os.path.join(place, name)))
            except FileNotFoundError:  # the engine removes a segment at any time
                continue
            parts[part] = parts.get(part, 0) + size
    return parts


def _bytes_on_disk(status: os.stat_result) -> int:
    """The engine's files are sparse; only some systems tell how much of one is really there."""
    return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size


def _part(folders: tuple[str, ...]) -> str:
    """Which part of the index the files of INDEX/folders... belong to."""
    if not folders or not folders[0].startswith("shard"):
        return "blobs"
    if "wal" in folders:
        return "log"
    names = {"vector_storage-global": "global", "vector_index-global": "graph"}
    return next((names[folder] for folder in folders if folder in names), "records")
