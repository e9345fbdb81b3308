"""What was found: groups of files around the one to keep."""

import os
from dataclasses import dataclass, field

import numpy as np

from indexer.store.protocol import Record

from .options import DuplicateOptions, Level


@dataclass(frozen=True)
class File:
    """A file as it was when it was indexed."""

    key: str  # ROOT/sub/folder/name.jpg
    path: str  # absolute
    size: int  # bytes
    mtime_ns: int
    id: str  # content id

    @property
    def root(self) -> str:
        """The indexed folder that it lies in."""
        path = self.path
        for _ in range(self.key.count("/")):
            path = os.path.dirname(path)
        return path


@dataclass(frozen=True)
class Difference:
    """Where a member differs from its keeper: left, top, width, height in pixels of each."""

    in_keeper: tuple[int, int, int, int]
    in_member: tuple[int, int, int, int]


@dataclass(frozen=True)
class GroupMember:
    """An image that resembles a group's keeper.

    files       all files that have its bytes
    level       how it resembles the keeper; each level's meaning is told in the README
    similarity  1 for the same bytes, the pixels' correlation for a copy, the patches' consistency for a scene; 0 where
                only names tell that a raw file and an image are of one shot
    how         what makes it of the keeper: `mirrored, cropped to 64 %`
    stays       why it is not given up for the keeper; empty where it may be
    differs_at  where it differs from the keeper, the plainest first
    transform   (2, 3), affine: fractions of the keeper to fractions of this image; None where none is known
    """

    record: Record
    files: tuple[File, ...]
    level: Level
    similarity: float
    how: str
    stays: str = ""
    differs_at: tuple[Difference, ...] = ()
    transform: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Group:
    """An image to keep, and what resembles it: the same bytes, copies and scenes, in this order.

    why  what makes it the one to keep, in words that follow `kept:`; empty where nothing may be given up for it
    """

    keeper: Record
    file: File
    members: tuple[GroupMember, ...]
    why: str = ""

    @property
    def spare(self) -> list[File]:
        """The files that may be given up for the keeper."""
        return [file for member in self.members if not member.stays for file in member.files]


@dataclass(frozen=True)
class Duplicates:
    """All groups of an index, those that free most first.

    images  records that were looked through
    notes     what the user must know: images left out, an index that is behind its folders
    """

    index: str
    options: DuplicateOptions
    groups: tuple[Group, ...]
    images: int
    seconds: float
    notes: tuple[str, ...] = ()
