"""Which image of a group is kept: the order that `--keep` stands for, with all its tie-breaks."""

import os
from collections.abc import Callable
from typing import Literal, get_args

from indexer.images.metadata import Metadata
from indexer.store.protocol import Record, StoredFile

Keep = Literal["resolution", "bytes", "format", "oldest", "newest"]
KEEPS: tuple[Keep, ...] = get_args(Keep)

LOSSLESS, LOSSY, POOR = 0, 1, 2
FORMATS = {"PNG": LOSSLESS, "TIFF": LOSSLESS, "BMP": LOSSLESS, "PPM": LOSSLESS, "GIF": POOR}  # all others are lossy


def keeping_order(keep: Keep) -> Callable[[Record], tuple[object, ...]]:
    """A sort key that puts the image to keep first.

    resolution  most pixels, lossless format, most bytes, taken first; see `groups.stars` for pixels that show nothing
    bytes       most bytes, most pixels, lossless format, taken first
    format      lossless format, most pixels, most bytes, taken first
    oldest      taken first, most pixels, lossless format, most bytes
    newest      taken last, most pixels, lossless format, most bytes
    A file that lacks its end comes after all whole ones, whatever the order. What is still equal is kept by its id, so
    that two runs agree.
    """

    def key(record: Record) -> tuple[object, ...]:
        metadata = record.metadata
        pixels = -metadata.width * metadata.height
        lossless = FORMATS.get(metadata.format, LOSSY)
        size = -max((file.size for file in record.files), default=0)
        taken = metadata.taken_at.timestamp() if metadata.taken_at else None
        first = (taken is None, taken or 0.0)
        last = (taken is None, -(taken or 0.0))
        by_name: dict[Keep, tuple[object, ...]] = {
            "resolution": (pixels, lossless, size, first),
            "bytes": (size, pixels, lossless, first),
            "format": (lossless, pixels, size, first),
            "oldest": (first, pixels, lossless, size),
            "newest": (last, pixels, lossless, size),
        }
        return (metadata.note is not None, *by_name[keep], record.id)

    return key


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


def files_in_order(record: Record, keep: Keep) -> list[StoredFile]:
    """A record's files, which hold the same bytes, the one to keep first: by age (the newest first for `newest`), then
    the one in the least deep folder, then by name."""

    def key(file: StoredFile) -> tuple[object, ...]:
        age = -file.mtime_ns if keep == "newest" else file.mtime_ns
        return (age, file.key.count("/"), len(os.path.basename(file.key)), file.key)

    return sorted(record.files, key=key)
