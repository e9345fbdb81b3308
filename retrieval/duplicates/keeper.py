"""Which image of a group is kept: the order that `--keep` stands for, its tie-breaks, and why one came first."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from indexer.images.metadata import Metadata
from indexer.store.protocol import Record, StoredFile

Keep = Literal["resolution", "bytes", "format", "oldest", "newest"]
KEEPS: tuple[Keep, ...] = get_args(Keep)

RAW, LOSSLESS, HEIC, LOSSY, POOR = range(5)
FORMATS = {
    "RAW": RAW,
    "PNG": LOSSLESS,
    "TIFF": LOSSLESS,
    "BMP": LOSSLESS,
    "PPM": LOSSLESS,
    "HEIF": HEIC,
    "AVIF": HEIC,
    "GIF": POOR,
}  # all others are lossy
Key = tuple[object, ...]


@dataclass(frozen=True)
class Folders:
    """The folders that decide before all else, as keys of the index; see DuplicateOptions.

    Each of `prefer` and `reference` is one folder that the user named, with all the keys it has.
    """

    prefer: tuple[tuple[str, ...], ...] = ()
    reference: tuple[tuple[str, ...], ...] = ()

    def is_reference(self, key: str) -> bool:
        return any(_below(key, folder) for folder in self.reference)

    def rank(self, key: str) -> int:
        """0 in a reference folder, then the preferred ones in their order, then all others."""
        if self.is_reference(key):
            return 0
        first = next((n for n, folder in enumerate(self.prefer) if _below(key, folder)), len(self.prefer))
        return 1 + first

    def rank_of(self, record: Record) -> int:
        """Of the file of an image that comes first."""
        return min(self.rank(file.key) for file in record.files)


NO_FOLDERS = Folders()


def keeping_order(keep: Keep, folders: Folders = NO_FOLDERS) -> Callable[[Record], Key]:
    """A sort key that puts the image to keep first.

    resolution  most pixels, what a camera wrote, format, most bytes, taken first; see `groups.stars` for pixels that
                show nothing
    bytes       most bytes, most pixels, what a camera wrote, format, taken first
    format      format, most pixels, what a camera wrote, most bytes, taken first
    oldest      taken first, most pixels, what a camera wrote, format, most bytes
    newest      taken last, most pixels, what a camera wrote, format, most bytes
    Formats: raw, lossless, HEIC and AVIF, other lossy ones, GIF. What a camera wrote has its EXIF. Before all that
    comes the folder, and then whether a file is whole. What is still equal is kept by its id, so that two runs agree.
    """
    parts = _parts(keep, folders)
    return lambda record: tuple(of(record) for of, _ in parts)


def why_before(keep: Keep, folders: Folders, keeper: Record, other: Record) -> str:
    """What puts one image before another in the order of keeping, in words that follow `kept:`; empty where nothing
    does."""
    for of, words in _parts(keep, folders):
        if of(keeper) != of(other):
            return words if of(keeper) < of(other) else ""
    return ""


def _parts(keep: Keep, folders: Folders) -> list[tuple[Callable[[Record], Key], str]]:
    """The order's parts, the most important first, each with what it says of the image that it puts first."""
    folder = (lambda record: (folders.rank_of(record),), "its folder comes first")
    whole = (lambda record: (record.metadata.note is not None,), "it is whole")
    pixels = (lambda record: (-record.metadata.width * record.metadata.height,), "it has the most pixels")
    camera = (lambda record: (not from_camera(record.metadata),), "it has the camera's EXIF")
    format = (lambda record: (FORMATS.get(record.metadata.format, LOSSY),), "its format loses less")
    size = (lambda record: (-max(file.size for file in record.files),), "it has the most bytes")
    first = (lambda record: _date(record, 1), "it is the oldest")
    last = (lambda record: _date(record, -1), "it is the newest")
    by_name: dict[Keep, list[tuple[Callable[[Record], Key], str]]] = {
        "resolution": [pixels, camera, format, size, first],
        "bytes": [size, pixels, camera, format, first],
        "format": [format, pixels, camera, size, first],
        "oldest": [first, pixels, camera, format, size],
        "newest": [last, pixels, camera, format, size],
    }
    by_id = (lambda record: (record.id,), "nothing else tells them apart; the same one is kept each time")
    return [folder, whole, *by_name[keep], by_id]


def from_camera(metadata: Metadata) -> bool:
    """Whether an image has what cameras write and messengers take away."""
    return metadata.raw or metadata.camera is not None or metadata.date_source == "exif" or metadata.gps is not None


def _date(record: Record, sign: int) -> Key:
    """Images with a date of their own first, then those with their file's time, then those without any."""
    taken = record.metadata.taken_at.timestamp() if record.metadata.taken_at else None
    return (taken is None, record.metadata.date_source == "file", sign * (taken or 0.0))


def why_never(member: Metadata, keeper: Metadata) -> str:
    """Why an image is never given up for this keeper, however like it looks; empty where it may be.

    Holds for what its pixels cannot show: a raw file's numbers, further pages, a keeper that lacks its end.
    """
    if member.raw:
        return "it is a raw file"
    if member.frames > 1:
        return f"it has {member.frames} pages or frames, of which only the first was compared"
    if keeper.note and not member.note:
        return f"the keeper is damaged: {keeper.note}"
    return ""


def files_in_order(record: Record, keep: Keep, folders: Folders = NO_FOLDERS) -> list[StoredFile]:
    """A record's files, which hold the same bytes, the one to keep first: by folder, by age (the newest first for
    `newest`), then the one in the least deep folder, then by name."""

    def key(file: StoredFile) -> Key:
        age = -file.mtime_ns if keep == "newest" else file.mtime_ns
        return (folders.rank(file.key), age, file.key.count("/"), len(os.path.basename(file.key)), file.key)

    return sorted(record.files, key=key)


def why_file_before(keep: Keep, folders: Folders, kept: StoredFile, other: StoredFile) -> str:
    """What puts one of two files with the same bytes first, in words that follow `it`."""
    if folders.rank(kept.key) != folders.rank(other.key):
        return "is in the folder that comes first"
    if kept.mtime_ns != other.mtime_ns:
        return "is the newest" if keep == "newest" else "is the oldest"
    return "lies least deep, or has the shortest name"


def _below(key: str, folder: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{one}/") for one in folder)
