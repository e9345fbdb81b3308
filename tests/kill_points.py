"""Moves, puts back or joins files in a process that is killed right before its n-th system call on files.

    python tests/kill_points.py         reads jobs, one a line: ["move"|"undo"|"join"|"copy", FOLDER, N, is copied]

FOLDER gets the photos and all that happens to them; whoever gave the job looks at what is left. `copy` moves as if the
target were another disk, and `is copied` undoes such a move. Each job runs in a fork of a process that has imported
everything, and its return code is written as a line: 0 where there were fewer than N calls, -9 where it was killed.
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.images.metadata import Metadata, content_id
from indexer.store.protocol import Record, StoredFile
from retrieval.duplicates import names
from retrieval.duplicates.hardlink import join_same_bytes
from retrieval.duplicates.move import move_spare, read_moves, undo_moves
from retrieval.duplicates.options import DuplicateOptions
from retrieval.duplicates.outcome import Duplicates, File, Group, GroupMember

CALLS = ("open", "link", "unlink", "rename", "replace", "mkdir", "rmdir", "fsync", "stat", "fstat", "lstat", "utime")
IMAGE = b"\xff\xd8\xff"  # what a JPEG begins with


def found_in(folder: Path) -> Duplicates:
    """Two groups: a photo with its copy and a smaller one in two files; and one more copy in a folder of its own."""
    kept, same = file_at(folder, "a/photo.jpg", b"photo"), file_at(folder, "b/photo.jpg", b"photo")
    small = [file_at(folder, f"b/small{n}.jpg", b"small") for n in range(2)]
    other, deep = file_at(folder, "a/other.jpg", b"other"), file_at(folder, "c/d/deep.jpg", b"other")
    groups = (
        Group(record(kept), kept, (GroupMember(record(same), (same,), "exact", 1.0, ""), near(small))),
        Group(record(other), other, (GroupMember(record(deep), (deep,), "exact", 1.0, ""),)),
    )
    return Duplicates(str(folder / ".seenit"), DuplicateOptions(), groups, 3, 0.1)


def near(files: list[File]) -> GroupMember:
    return GroupMember(record(files[0]), tuple(files), "near", 0.9, "")


def record(file: File) -> Record:
    return Record(file.id, (StoredFile(file.key, file.size, file.mtime_ns),), Metadata(8, 6, "JPEG"), "fit")


def file_at(folder: Path, name: str, data: bytes) -> File:
    path = folder / name
    if not path.exists():  # the second process finds what the first one left
        return File(f"0/{name}", str(path), len(IMAGE + data), 0, content_id(IMAGE + data))
    status = path.stat()
    return File(f"0/{name}", str(path), status.st_size, status.st_mtime_ns, content_id(IMAGE + data))


def make_photos(folder: Path) -> None:
    for name, data in {
        "a/photo.jpg": b"photo",
        "b/photo.jpg": b"photo",
        "b/small0.jpg": b"small",
        "b/small1.jpg": b"small",
        "a/other.jpg": b"other",
        "c/d/deep.jpg": b"other",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(IMAGE + data)


def act(what: str, folder: Path) -> None:
    """What the user asked for; done again it finishes what a kill left."""
    if what in ("move", "copy"):
        move_spare(found_in(folder / "photos"), folder / "away")
    elif what == "join":
        join_same_bytes(found_in(folder / "photos"))
    else:
        for manifest in sorted((folder / "away").glob("*.jsonl")):
            undo_moves(read_moves(manifest))


def kill_before(number: int) -> None:
    """From now on the process dies before its system call with this number, counted from 1."""
    count = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counting

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))


def on_another_disk() -> None:
    """Links between folders fail as between disks; those in one folder work."""
    real = names.Name.link_to

    def link_to(source: names.Name, target: names.Name) -> None:
        if source.folder() != target.folder():
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    names.Name.link_to = link_to  # type: ignore[method-assign,assignment]
    from retrieval.duplicates import move

    line = move._line
    move._line = lambda *args: {**line(*args), "copied": True}


def run(what: str, folder: str, number: int, copied: bool) -> int:
    """The return code of a fork that does the work."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if what == "copy" or copied:
            on_another_disk()
        kill_before(number)
        act(what, Path(folder))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for job in sys.stdin:
        print(run(*json.loads(job)), flush=True)
