"""What a file says of its image, and the name its bytes give it."""

import hashlib
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import IO

# Sources of a date that was set when the image was made; a file's time is set by any copying
REAL_DATES = ("exif", "xmp", "name", "table")
# Those that a file's name and time tell, and not what is in it
OUTER_DATES = ("name", "file")


@dataclass(frozen=True)
class Metadata:
    """What an image says of itself. `taken_at` is always UTC; `date_source` says where it comes from."""

    width: int  # pixels, after EXIF orientation
    height: int
    format: str  # Pillow's name: JPEG, PNG, ...
    taken_at: datetime | None = None
    camera: str | None = None
    gps: tuple[float, float] | None = None  # latitude, longitude in degrees
    date_source: str | None = None  # "exif", "xmp", "table", "name" (of the file), "file" (its time); None: not known
    frames: int = 1  # pages or frames in the file; the first one is what is indexed
    raw: bool = False  # a camera's sensor data
    note: str | None = None  # what is wrong with the file although it can be shown: "the end is missing"
    keywords: tuple[str, ...] = ()  # of XMP, IPTC or EXIF, in the file or in a sidecar
    rating: int | None = None  # 1 to 5 stars; 0: none given; -1: rejected
    title: str | None = None
    caption: str | None = None

    @property
    def date_in_words(self) -> str:
        """`2019-07-04` or `2019-07-04 (time of the file)`; empty where no date is known."""
        if self.taken_at is None:
            return ""
        source = _SOURCES.get(self.date_source or "", "source not known")
        return f"{self.taken_at:%Y-%m-%d}" + (f" ({source})" if source else "")


_SOURCES = {"exif": "", "xmp": "XMP", "table": "table", "name": "name of the file", "file": "time of the file"}


ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"  # of a content id


def content_id(data: bytes | memoryview) -> str:
    """A record's id: the first 128 bits of SHA-256 (which processors have instructions for) of its bytes, as a UUID."""
    return _id_of(hashlib.sha256(data).digest())


def content_id_of_file(file: IO[bytes]) -> str:
    """`content_id` of what a file still holds, read in pieces; it stands at its end then."""
    return _id_of(hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]  # it takes any binary file


def _id_of(digest: bytes) -> str:
    return str(uuid.UUID(bytes=digest[:16]))
