"""One writer at a time: a lock file, and a note beside it that says who holds it.

The lock dies with its process, the note may stay; so the note is only for the message and never a reason to wait.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import filelock

from ..atomic_file import atomic_file, read_plain
from ..errors import LockedError, StoreError


def take_lock(path: Path, location: object, wait_s: float) -> filelock.BaseFileLock:
    """Lock the file at `path`, for the index at `location`, and write `path` with the suffix .json beside it.

    Raises LockedError, which names the process that holds it, after `wait_s`; OSError where the files cannot be made;
    StoreError where `path` is a link or no regular file.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise StoreError(f"{path} is no regular file; remove it")
    lock = filelock.FileLock(path, timeout=wait_s, is_singleton=False, thread_local=False)
    note = path.with_suffix(".json")
    try:
        lock.acquire(poll_interval=0.02)
    except filelock.Timeout:
        raise LockedError(
            f"the index at {location} is being written by another process{_holder(note)}; wait for it to end, stop it,"
            " or wait longer with --wait SECONDS"
        ) from None
    except NotImplementedError:
        raise StoreError(f"the disk of {path.parent} knows no locks; put this folder on a local disk") from None
    holder = {"pid": os.getpid(), "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]), "since": time.time()}
    with suppress(OSError), atomic_file(note) as file:  # only a message: a full disk may still delete records
        file.write(json.dumps(holder).encode("utf-8", "backslashreplace"))
    return lock


def _holder(note: Path) -> str:
    """(`seenit index`, process 12, since 12:03); empty where the note does not tell."""
    try:
        holder = json.loads(read_plain(note, 10_000))
        since = time.strftime("%H:%M", time.localtime(float(holder["since"])))
        return f" (`{str(holder['command'])[:80]}`, process {int(holder['pid'])}, since {since})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ""
