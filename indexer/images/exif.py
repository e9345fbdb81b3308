"""Reads from an image's EXIF how it is turned, when and where it was taken, and by which camera.

Surprising: nothing here fails. EXIF is written by every kind of software, often wrongly, and what makes no sense counts
as absent; an image is never refused for it.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from PIL import ExifTags, Image

from .description import xmp_of

EARLIEST_YEAR, LATEST_YEAR = 1800, 2261
_XMP_TAGS = (b"exif:DateTimeOriginal", b"photoshop:DateCreated", b"xmp:CreateDate")
_ORIENTATIONS = {  # where the stored first row and column lie, and how exiftool says it
    name: number
    for number, names in enumerate(
        (
            ("top-left", "horizontal (normal)"),
            ("top-right", "mirror horizontal"),
            ("bottom-right", "rotate 180"),
            ("bottom-left", "mirror vertical"),
            ("left-top", "mirror horizontal and rotate 270 cw"),
            ("right-top", "rotate 90 cw"),
            ("right-bottom", "mirror horizontal and rotate 90 cw"),
            ("left-bottom", "rotate 270 cw"),
        ),
        start=1,
    )
    for name in names
}
_NAME_DATE = re.compile(
    r"(?<!\d)(19[89]\d|20\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])"
    r"(?:(?:[-_ .T]{1,3}| at )([01]\d|2[0-3])[-_.:h]?([0-5]\d)[-_.:m]?([0-5]\d))?(?=\D|\d{3}\D|$)"
)


@dataclass(frozen=True)
class Exif:
    orientation: int = 1  # 1 (upright) to 8
    taken_at: datetime | None = None  # UTC; a time without a zone is taken to be UTC
    camera: str | None = None
    gps: tuple[float, float] | None = None  # latitude, longitude in degrees
    date_source: str | None = None  # "exif" or "xmp", where `taken_at` is known


def read_exif(image: Image.Image) -> Exif:
    """What an opened image's EXIF tells, and its XMP of a date; damaged EXIF is no EXIF."""
    exif = _read_exif(image)
    if exif.taken_at:
        return replace(exif, date_source="exif")
    taken_at = xmp_date(xmp_of(image))
    return replace(exif, taken_at=taken_at, date_source="xmp") if taken_at else exif


def date_in_name(name: str) -> datetime | None:
    """The date that cameras, phones and messengers write into a file's name: `IMG_20210704_123000.jpg`; UTC."""
    for found in _NAME_DATE.finditer(name):
        year, _, month, day, *time = found.groups()
        try:
            hour, minute, second = (int(part or 0) for part in time)
            return datetime(int(year), int(month), int(day), hour, minute, second, tzinfo=UTC)
        except ValueError:
            continue
    return None


def plausible(moment: datetime | None) -> datetime | None:
    """A date that an image can have; databases hold times in ns up to 2262."""
    return moment if moment and EARLIEST_YEAR <= moment.year <= LATEST_YEAR else None


def _read_exif(image: Image.Image) -> Exif:
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        details = exif.get_ifd(ExifTags.IFD.Exif)
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:
        return Exif()
    return Exif(
        _orientation(orientation),
        _taken_at(exif, details),
        _camera(exif.get(ExifTags.Base.Make), exif.get(ExifTags.Base.Model)),
        _gps(place),
    )


def _orientation(value: Any) -> int:
    """1 to 8, also where software wrote a text: "6", or the words of exiftool and of the standard."""
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    if isinstance(value, bytes):
        value = value.decode("ascii", "ignore")
    if isinstance(value, str):
        text = " ".join(value.strip(" \0").lower().split())
        value = int(text) if re.fullmatch("[1-8]", text) else _ORIENTATIONS.get(text, 1)
    return int(value) if value in range(1, 9) else 1


def _taken_at(exif: Any, details: dict[int, Any]) -> datetime | None:
    for text, offset in (
        (details.get(ExifTags.Base.DateTimeOriginal), details.get(ExifTags.Base.OffsetTimeOriginal)),
        (details.get(ExifTags.Base.DateTimeDigitized), details.get(ExifTags.Base.OffsetTimeDigitized)),
        (exif.get(ExifTags.Base.DateTime), details.get(ExifTags.Base.OffsetTime)),
    ):
        try:
            moment = datetime.strptime(str(text).strip(" \0")[:19], "%Y:%m:%d %H:%M:%S")
            if utc := plausible((moment - _utc_offset(offset)).replace(tzinfo=UTC)):
                return utc
        except (ValueError, OverflowError):
            continue
    return None


def xmp_date(xmp: bytes) -> datetime | None:
    """When XMP says that it was taken or made; not when it was changed."""
    for tag in _XMP_TAGS:
        if found := re.search(tag + rb"\s*(?:=\s*[\"']|>)\s*(\d{4}-\d\d-\d\d(?:T[\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?)", xmp):
            try:
                moment = datetime.fromisoformat(found[1].decode())
                moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            except (ValueError, OverflowError):
                continue
            if plausible(moment):
                return moment
    return None


def _utc_offset(text: Any) -> timedelta:
    try:
        return datetime.strptime(str(text).strip(" \0"), "%z").utcoffset() or timedelta()
    except ValueError:
        return timedelta()


def _camera(make: Any, model: Any) -> str | None:
    """Make and model in one name, the make not twice: Canon + Canon EOS 5D -> Canon EOS 5D."""
    make, model = (
        " ".join("".join(c if c.isprintable() else " " for c in part).split()) if isinstance(part, str) else ""
        for part in (make, model)
    )
    if make and not model.lower().startswith(make.split()[0].lower()):
        model = f"{make} {model}".strip()
    return model[:100] or None


def _gps(place: dict[int, Any]) -> tuple[float, float] | None:
    try:
        latitude, longitude = (
            sum(float(part) / 60**power for power, part in enumerate(place[tag]))
            for tag in (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLongitude)
        )
        south = str(place.get(ExifTags.GPS.GPSLatitudeRef, "N")).upper().startswith("S")
        west = str(place.get(ExifTags.GPS.GPSLongitudeRef, "E")).upper().startswith("W")
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    if not (0 <= latitude <= 90 and 0 <= longitude <= 180):  # NaN is refused as well
        return None
    return (-latitude if south else latitude), (-longitude if west else longitude)
