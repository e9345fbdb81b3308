"""One job of a decoder process, from a path to pixels for the ViT; and every way in which it can end.

Surprising: a file that gives no image is an outcome and no exception. Most folders hold such files, and each kind is
treated differently: remembered, forgotten, or tried again.
"""

import mimetypes
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np

from ..errors import DownloadError, ImageError, os_reason
from ..sources.place import ImageRef, is_address, read_place
from .decode import DEFAULT_LIMITS, SNIFF_BYTES, DecodedImage, Limits, decode, sniff
from .description import Description, read_xmp, sidecar_of
from .exif import date_in_name, plausible, xmp_date
from .find import Unreadable, open_regular, stamp_ns
from .metadata import Metadata, content_id
from .preprocess import Grid, Mode, detail_px, preprocess
from .raw import RAW_MISSING, is_raw, raw_installed

Kind = Literal["decode", "hash", "sniff"]


@dataclass(frozen=True)
class Job:
    """What a decoder process is to do with a file.

    path   of the file; for a `Work` of another module also any other name, which comes back with the outcome
    kind   `decode`: everything, for an image to be embedded; `hash`: only the id, to recognise a renamed file;
           `sniff`: only whether it begins like an image
    order  what a `Work` of another module needs to know, in JSON's types
    """

    path: str
    kind: Kind = "decode"
    order: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Jobs on small files that go to a process in one message, as the message costs more than a small file's reading.

    Each gets its own outcome. Where one of them costs the process, all are done again, one at a time.
    """

    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Settings:
    """How an image is brought to the ViT's size, and what it may cost."""

    resolution: int = 224
    patch_size: int = 14
    mode: Mode = "aspect"
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image ready to be embedded.

    pixels  (rows * P, columns * P, 3)  uint8 RGB
    """

    path: str
    id: str  # content_id of the file
    size: int  # bytes
    mtime_ns: int
    pixels: np.ndarray
    grid: Grid  # rows, columns of patches
    metadata: Metadata  # taken_at falls back on the file's name, then on its time


@dataclass(frozen=True, eq=False)
class Cut:
    """What a `Work` of another module made of one image.

    pixels  uint8, of the shape that the work says
    grid    rows and columns, of patches or of pixels, as the work says
    width, height  of the image
    """

    path: str
    pixels: np.ndarray
    grid: Grid
    width: int
    height: int


@dataclass(frozen=True)
class Hashed:
    """The answer to a `hash` job of a file that begins like an image."""

    path: str
    id: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class BeginsLikeImage:
    """The answer to a `sniff` job of such a file."""

    path: str


@dataclass(frozen=True)
class NotAnImage:
    """Something else than an image, told by its first bytes; the rest was not read."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Broken:
    """Damaged, too large, or what crashes or exhausts a fresh decoder: its own bytes' doing.

    Worth remembering until the file changes.
    """

    path: str
    reason: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Vanished:
    """The file was gone when its turn came."""

    path: str


@dataclass(frozen=True)
class Changed:
    """The file was written to while it was read; it is to be taken up next time."""

    path: str


@dataclass(frozen=True)
class Accident(Unreadable):
    """Its decoder was killed or stood still, twice, on a machine without memory or with a disk that slept.

    Nothing is known against the file: it is to be tried again in the next run, as all that is Unreadable.
    """


Outcome = Decoded | Cut | Hashed | BeginsLikeImage | NotAnImage | Broken | Vanished | Changed | Unreadable | Accident
Work = Callable[[Job, Settings], Outcome]


def read_image(job: Job, settings: Settings) -> Outcome:
    """Do one job in this process: the file is read once, told by its first bytes, hashed and decoded from memory.

    A job whose order names a `place` is about an image of a source that is no folder, see `indexer.sync.scan`.
    """
    read = _read_entry(job, settings.limits) if "place" in job.order else _read_file(job, settings.limits)
    if not isinstance(read, _Read):
        return read
    path, data, limits = job.path, read.data, settings.limits
    if (read.format == "RAW" or (read.format == "TIFF" and is_raw(data, read.name))) and not raw_installed():
        return Unreadable(path, RAW_MISSING)

    file_id = content_id(data)
    if job.kind == "hash":
        return Hashed(path, file_id, read.size, read.mtime_ns)
    try:
        image = decode(data, target_px=detail_px(settings.resolution), limits=limits, path=read.name)
    except ImageError as error:
        return Broken(path, error.reason, read.size, read.mtime_ns)
    pixels = preprocess(image.image, settings.mode, settings.resolution, settings.patch_size)
    grid = (pixels.shape[0] // settings.patch_size, pixels.shape[1] // settings.patch_size)
    metadata = _metadata(image, read)
    return Decoded(path, file_id, read.size, read.mtime_ns, pixels, grid, metadata)


@dataclass(frozen=True, eq=False)
class _Read:
    """An image file's bytes, and what is known of it besides.

    name     of the file or member, which tells its kind and perhaps its date
    sidecar  the XMP beside it
    about    what its source says of it
    """

    name: str
    data: bytes
    format: str
    size: int
    mtime_ns: int
    sidecar: bytes = b""
    about: Mapping[str, Any] = field(default_factory=dict)


def _read_file(job: Job, limits: Limits) -> "_Read | Outcome":
    path = job.path
    try:
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            size, mtime_ns = before.st_size, stamp_ns(before)
            format_name = sniff(file.read(SNIFF_BYTES))
            if format_name is None:
                return NotAnImage(path, size, mtime_ns)
            if job.kind == "sniff":
                return BeginsLikeImage(path)
            if size > limits.max_file_bytes:
                reason = f"{size / 1e6:.0f} MB, more than the limit of {limits.max_file_bytes / 1e6:.0f} MB"
                return Broken(path, reason, size, mtime_ns)
            file.seek(0)
            data = file.read(size + 1)  # one more, to notice that it has grown
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        return Vanished(path)
    except OSError as error:
        return Unreadable(path, os_reason(error))
    if (after.st_size, stamp_ns(after), len(data)) != (size, mtime_ns, size):
        return Changed(path)
    return _Read(path, data, format_name, size, mtime_ns, sidecar_of(path) if job.kind == "decode" else b"")


def _read_entry(job: Job, limits: Limits) -> "_Read | Outcome":
    """An image of a source that is no folder; what is not known of it before it is read, is not in its order."""
    path, order = job.path, job.order
    if order["place"] is None:
        return Unreadable(path, "its source does not tell where it is")
    place = ImageRef(*order["place"])
    told: int | None = order["size"]
    mtime_ns: int = order["stamp_ns"]
    name = place.member or place.path
    try:
        head = None
        if job.kind == "sniff" or told is None or told > limits.max_file_bytes or not _named_like_an_image(name):
            head = read_place(place, max(limits.max_file_bytes, told or 0), most=SNIFF_BYTES)
            if sniff(head) is None:
                return NotAnImage(path, len(head) if told is None else told, mtime_ns)
        if job.kind == "sniff":
            return BeginsLikeImage(path)
        data = head if head is not None and told == len(head) else read_place(place, limits.max_file_bytes)
    except ImageError as error:
        return Broken(path, error.reason, told or 0, mtime_ns)
    except FileNotFoundError:
        return Vanished(path)
    except (OSError, DownloadError) as error:
        return Unreadable(path, os_reason(error) if isinstance(error, OSError) else str(error))
    if told is not None and len(data) != told:
        return Changed(path)
    format_name = sniff(data[:SNIFF_BYTES])
    if format_name is None:
        return NotAnImage(path, len(data), mtime_ns)
    sidecar = sidecar_of(name) if job.kind == "decode" and not place.member and not is_address(name) else b""
    return _Read(name, data, format_name, len(data), mtime_ns, sidecar, order["about"])


def _named_like_an_image(name: str) -> bool:
    """So that a film at an address is not fetched whole to learn that it is none."""
    return (mimetypes.guess_type(name)[0] or "").startswith("image/")


def lost(job: Job, reason: str, *, accident: bool = False) -> Outcome:
    """What to say of a file whose decoding gave no answer."""
    path = job.path
    if "stamp_ns" in job.order:
        size = job.order["size"] or 0
        return Accident(path, reason) if accident else Broken(path, reason, size, job.order["stamp_ns"])
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return Vanished(path)
    except OSError as error:
        return Unreadable(path, os_reason(error))
    return Accident(path, reason) if accident else Broken(path, reason, status.st_size, stamp_ns(status))


def _metadata(image: DecodedImage, read: _Read) -> Metadata:
    beside, about = read.sidecar, read.about
    said = Description(tuple(about.get("keywords", ())), about.get("rating"), about.get("title"), about.get("caption"))
    description = said.over(read_xmp(beside)).over(image.description)
    taken_at, source = image.taken_at, image.date_source
    if taken_at is None:
        taken_at, source = xmp_date(beside), "xmp"
    if taken_at is None:
        taken_at, source = date_outside([(os.path.basename(read.name), read.mtime_ns)])
    if "taken_at" in about:
        taken_at, source = plausible(datetime.fromisoformat(about["taken_at"]).astimezone(UTC)), "table"
    place = (about["latitude"], about["longitude"]) if {"latitude", "longitude"} <= set(about) else image.gps
    return Metadata(
        image.width,
        image.height,
        image.format,
        taken_at,
        about.get("camera", image.camera),
        place,
        source,
        image.frames,
        image.format == "RAW",
        image.note,
        description.keywords,
        description.rating,
        description.title,
        description.caption,
    )


def date_outside(files: Iterable[tuple[str, int]]) -> tuple[datetime | None, str | None]:
    """The date that files of one content tell by their names and times, and its source; both None where none does.

    files  name and time of each, in ns. The first name with a date decides, else the earliest time: a copy's is later.
    """
    files = list(files)
    for name, _ in files:
        if taken_at := date_in_name(name):
            return taken_at, "name"
    times = [moment for _, mtime_ns in files if (moment := _utc(mtime_ns))]
    return (min(times), "file") if times else (None, None)


def _utc(mtime_ns: int) -> datetime | None:
    try:
        return plausible(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=mtime_ns // 1000))
    except OverflowError:
        return None
