"""Reads from a picture's EXIF how it is turned, when and where it was taken, and by which camera.

Surprising: nothing here fails. EXIF is written by every kind of software, often wrongly, and what makes no sense counts
as absent; a picture is never refused for it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from PIL import ExifTags, Image


@dataclass(frozen=True)
class Exif:
    orientation: int = 1  # 1 (upright) to 8
    taken_at: datetime | None = None  # UTC; a time without a zone is taken to be UTC
    camera: str | None = None
    gps: tuple[float, float] | None = None  # latitude, longitude in degrees


def read_exif(image: Image.Image) -> Exif:
    """What an opened image's EXIF tells; damaged EXIF is no EXIF."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        details = exif.get_ifd(ExifTags.IFD.Exif)
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:
        return Exif()
    return Exif(
        orientation if orientation in range(1, 9) else 1,
        _taken_at(exif, details),
        _camera(exif.get(ExifTags.Base.Make), exif.get(ExifTags.Base.Model)),
        _gps(place),
    )


def _taken_at(exif: Any, details: dict[int, Any]) -> datetime | None:
    for text, offset in (
        (details.get(ExifTags.Base.DateTimeOriginal), details.get(ExifTags.Base.OffsetTimeOriginal)),
        (details.get(ExifTags.Base.DateTimeDigitized), details.get(ExifTags.Base.OffsetTimeDigitized)),
        (exif.get(ExifTags.Base.DateTime), details.get(ExifTags.Base.OffsetTime)),
    ):
        try:
            moment = datetime.strptime(str(text).strip(" \0")[:19], "%Y:%m:%d %H:%M:%S")
            return (moment - _utc_offset(offset)).replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            continue
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
