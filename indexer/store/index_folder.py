"""An embedded index as a folder: who may write it, whether its disk can do what a write-ahead log needs.

INDEX/index.sqlite   the index; beside it, while it is open, index.sqlite-wal and index.sqlite-shm
INDEX/tags.json      the second copy of the tags
INDEX/lock           locked while a process writes; the lock dies with its process
INDEX/lock.json      who that is, for the message
"""

import os
from contextlib import suppress
from pathlib import Path

import filelock

from ..errors import SeenitError, StoreError, first_line
from ..printable import pasted, printable
from .lock import take_lock
from .sqlite_schema import DATABASE_NAME, refuse_odd_files
from .tag_copy import TAGS_NAME

# Kinds of drive that share no memory between the machines that use them.
NETWORK_DRIVES = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "fuse.sshfs", "fuse.rclone", "davfs")
MARKER = "shards.json"  # of a folder that holds vectors as shards, see `shard_store`
ITEMS = "items"  # the folder of images that were added by themselves
_OURS = {DATABASE_NAME + suffix for suffix in ("", "-wal", "-shm", "-journal")} | {TAGS_NAME, "lock", "lock.json"}


def is_index_folder(folder: str | Path) -> bool:
    """Whether an embedded index lies in a folder."""
    return os.path.lexists(os.path.join(folder, DATABASE_NAME))


def is_shard_folder(folder: str | Path) -> bool:
    """Whether vectors lie in a folder as shards."""
    return os.path.lexists(os.path.join(folder, MARKER))


def no_index_in_shards(location: str | Path) -> SeenitError:
    """That shards of vectors lie where an index is needed."""
    return SeenitError(
        f"{printable(str(location))} holds shards of seenit embed, and no index; make one of them with:"
        f" seenit copy {pasted(location)} INDEX"
    )


def claim_folder(folder: Path, wait_s: float) -> filelock.BaseFileLock:
    """The writer's lock on the index at `folder`, which is made if need be; see `lock.take_lock`."""
    refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return take_lock(folder / "lock", folder, wait_s)
    except OSError as error:
        raise StoreError(f"cannot write to the index at {folder}: {first_line(error)}; check the folder") from None


def refuse_missing(folder: Path) -> None:
    """SeenitError unless there is an index at `folder`."""
    if folder.exists() and not folder.is_dir():
        raise SeenitError(f"{folder} is a file; an index is a folder, name another place with --index")
    if refuse_odd_files(folder):
        return
    refuse_first_version(folder)
    if is_shard_folder(folder):
        raise no_index_in_shards(folder)
    raise SeenitError(f"no index at {folder}; create one with: seenit index FOLDER --index {pasted(folder)}")


def refuse_foreign(folder: Path) -> None:
    """SeenitError unless there is an index at `folder`, or room for a new one."""
    if folder.exists() and not folder.is_dir():
        raise SeenitError(f"{folder} is a file; an index is a folder, name another place with --index")
    try:
        if refuse_odd_files(folder):
            return
        refuse_first_version(folder)
        others = [name for name in os.listdir(folder) if name not in {*_OURS, ITEMS} and not _unfinished(name)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot open the index at {folder}: {first_line(error)}; check the folder") from None
    if others:
        raise SeenitError(f"{folder} holds other files and no index; name a new or empty folder with --index")


def refuse_first_version(folder: Path) -> None:
    if (folder / "shard").is_dir() or (folder / "shard.new").is_dir():
        raise SeenitError(
            f"the index at {folder} was made by the first version of seenit, which this one does not read; move it"
            " away and index again"
        )


def remove_blank(folder: Path, *, also_tags: bool = False) -> None:
    """Remove the files of an index that holds nothing; what else lies in the folder stays, and the folder with it."""
    for name in _OURS if also_tags else _OURS - {TAGS_NAME}:
        with suppress(OSError):
            os.unlink(folder / name)
    with suppress(OSError):
        os.rmdir(folder)


def shares_memory(folder: Path) -> bool:
    """Whether all who can reach the folder run on this machine, as a write-ahead log needs it."""
    return drive_kind(folder) not in NETWORK_DRIVES


def drive_kind(folder: Path, mounts: str = "/proc/self/mounts") -> str:
    """The kind of file system a folder lies on; empty where the system does not tell."""
    try:
        lines = Path(mounts).read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    place = os.path.join(os.path.realpath(folder), "")
    found = ("", "")  # mount point, kind
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 2:
            point = os.path.join(fields[1].replace("\\040", " ").replace("\\134", "\\"), "")
            if place.startswith(point) and len(point) >= len(found[0]):
                found = (point, fields[2])
    return found[1]


def _unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")
