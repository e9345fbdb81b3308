"""One process at a time: a lock file, and a note beside it that says who holds it.

The lock dies with its process, the note may stay; so the note is only for the message and never a reason to wait.
"""

import json
import os
import sys
import time
from pathlib import Path

import filelock

from .errors import LockedError, StoreError


def take_lock(path: Path, location: object, wait_s: float) -> filelock.BaseFileLock:
    """Lock the file at `path`, for the index at `location`, and write `path` with the suffix .json beside it.

    Raises LockedError, which names the process that holds it, after `wait_s`; OSError where the files cannot be made.
    """
    lock = filelock.FileLock(path, timeout=wait_s, is_singleton=False)
    note = path.with_suffix(".json")
    try:
        lock.acquire(poll_interval=0.02)
    except filelock.Timeout:
        raise LockedError(
            f"the index at {location} is in use by another process{_holder(note)}; wait for it to end, or stop it"
        ) from None
    except NotImplementedError:
        raise StoreError(f"the disk of {path.parent} knows no locks; put this folder on a local disk") from None
    holder = {"pid": os.getpid(), "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]), "since": time.time()}
    try:
        note.write_text(json.dumps(holder), "utf-8", "backslashreplace")
    except OSError:
        lock.release()
        raise
    return lock


def _holder(note: Path) -> str:
    """(`seenit index`, process 12, since 12:03); empty where the note does not tell."""
    try:
        holder = json.loads(note.read_text("utf-8"))
        since = time.strftime("%H:%M", time.localtime(holder["since"]))
        return f" (`{holder['command']}`, process {holder['pid']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
