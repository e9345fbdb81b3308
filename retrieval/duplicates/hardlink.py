"""Exact copies become one file with several names: the room of all but one is free, and every path still works."""

from dataclasses import dataclass

from indexer.errors import SeenitError

from .files import join_files
from .outcome import Duplicates, File


@dataclass(frozen=True)
class Joined:
    """What was done: how many files became names of another, their bytes, and one line for each that did not."""

    files: int
    size: int
    left: tuple[str, ...]


def same_bytes(found: Duplicates) -> list[tuple[File, File]]:
    """The file to keep and a spare one, for every spare file of every image, keeper or member."""
    pairs = []
    for group in found.groups:
        for member in group.members:
            kept, *spare = (group.file, *member.files) if member.level == "exact" else member.files
            pairs += [(kept, file) for file in spare]
    return list(dict.fromkeys(pairs))


def join_same_bytes(found: Duplicates) -> Joined:
    """Replace exact copies by hard links; the bytes of both are read and compared right before.

    The name keeps its path and gets the other file's time and permissions. A file is left alone where the two lie on
    different disks, where either is no longer what was indexed, or where the file system has no links.
    """
    left = []
    files = size = 0
    for kept, spare in same_bytes(found):
        try:
            if join_files(kept, spare):
                files, size = files + 1, size + spare.size
        except SeenitError as error:
            left.append(str(error))
    return Joined(files, size, tuple(left))
