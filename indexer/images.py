"""Finds picture files and opens them safely: by content, within limits, upright and in sRGB.

Surprising: Pillow's plugins are called directly rather than through `Image.open`. Only the plugin that the file's first
bytes ask for ever runs, and the cap on pixels is ours, per call, instead of Pillow's global one. Nothing here imports
torch; the decoder processes import this module.
"""

import contextlib
import errno
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from .errors import PictureError, SeenitError

SNIFF_BYTES = 64  # how much of a file `sniff` wants to see

# Folders that cameras' software, systems and network drives fill with copies and leftovers
SKIPPED_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found", "__macosx"}
)

OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # and MPO, by its first picture
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}
NOT_REGULAR = "not a regular file"
NO_SUCH_NAME = "no file can have this name"
HEIF_MISSING = "HEIC pictures need pillow-heif; install it with: pip install 'seenit[heic]'"
BYTES_PER_PIXEL = 10  # while a picture is decoded whole: 4 in Pillow, about as much in the format's own decoder

# EXIF orientation -> what turns the stored picture upright; 1 is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Region = tuple[int, int, int, int]  # x, y, width, height in pixels of the upright picture


@dataclass(frozen=True)
class Limits:
    """What one picture may cost.

    A JPEG is decoded at reduced scale and may have `max_pixels`. Every other format is decoded whole and is also held
    to `memory_bytes / 10` pixels (107 million by default).
    """

    max_pixels: int = 200_000_000
    memory_bytes: int = 1 << 30  # what a decoder process may take on top of its size at the start
    timeout_s: float = 30.0  # for reading and decoding one file, in a decoder process
    max_file_bytes: int = 500_000_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class FoundFile:
    """A regular file (or a link to one), as the folder's listing shows it."""

    path: str  # absolute; bytes that are not UTF-8 are surrogates, as os.fsdecode makes them
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Unreadable:
    """A folder or file that is there but cannot be read now. What it holds is unknown, not gone."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture."""

    image: Image.Image  # mode RGB, in sRGB, upright; the whole picture or the region asked for, maybe at reduced scale
    width: int  # of the whole picture at full scale, upright
    height: int
    format: str  # Pillow's name: JPEG, PNG, ...
    taken_at: datetime | None = None  # EXIF; UTC; a time without a zone is taken to be UTC
    camera: str | None = None
    gps: tuple[float, float] | None = None  # latitude, longitude in degrees

    @cached_property
    def pixels(self) -> np.ndarray:
        """`image` as (H, W, 3) uint8."""
        return np.asarray(self.image)


def find_files(
    folders: Iterable[str | Path], *, exclude_dirs: Iterable[str | Path] = ()
) -> Iterator[FoundFile | Unreadable]:
    """Every file under the folders, picture or not, each folder's entries in the order of their names.

    Left out: hidden files and folders, SKIPPED_FOLDERS, `exclude_dirs`, what is not a regular file.
    A link to a folder is followed after everything else and only into a folder not yet seen, so loops end and a file's
    path is the real one where there is one. A folder given twice, or inside another one given, is listed once.
    A folder that cannot be read, or a link that leads nowhere, yields Unreadable: what is behind it is unknown.
    SeenitError if one of `folders` is not there, or goes away.
    """
    seen: set[tuple[int, int]] = set()  # device, inode of each folder listed or excluded
    for folder in exclude_dirs:
        with contextlib.suppress(OSError):  # one that is not there need not be excluded
            seen.add(_identity(os.fspath(folder)))
    for folder in folders:
        root = os.path.abspath(os.path.expanduser(os.fspath(folder)))
        before = _identity_of_root(root)
        links: list[str] = []
        yield from _walk(root, seen, links)
        for link in links:  # grows while it is walked
            yield from _walk(link, seen, links)
        if _identity_of_root(root) != before:  # a disk taken away must not look like deleted photos
            raise SeenitError(f"the folder {root} went away while it was being listed; bring it back and try again")


def sniff(head: bytes) -> str | None:
    """The picture format of a file that starts with `head` (SNIFF_BYTES of it), None if it is not a picture.

    HEIF is told whether or not pillow-heif is installed; `decode` says what is missing.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG2000"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"  # the size of the second header: a text may well start with BM
    if re.match(rb"P[1-6]\s+[0-9#]", head):
        return "PPM"
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}:
            return "HEIF"
    return None


def is_picture(path: str | Path) -> bool:
    """Whether a regular file begins like a picture; False as well if it cannot be read."""
    try:
        with open_regular(os.fspath(path)) as file:
            return sniff(file.read(SNIFF_BYTES)) is not None
    except OSError:
        return False


def open_regular(path: str) -> IO[bytes]:
    """Open a regular file for reading, unbuffered; OSError if it is something else, without waiting for it.

    A FIFO would wait for its writer, a device might do anything when opened. A name that no file can have (a NUL in it,
    or a character that this system has no bytes for) is an OSError as well, not Python's ValueError.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    try:
        status = os.stat(path)
    except ValueError:
        raise OSError(errno.EINVAL, NO_SUCH_NAME) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR)
    file = open(os.open(path, flags), "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was put in the other's place just now
        file.close()
        raise OSError(errno.EINVAL, NOT_REGULAR)
    return file


def os_reason(error: OSError) -> str:
    """What the system says of an error, without number and path."""
    return (error.strerror or type(error).__name__).lower()


def heif_installed() -> bool:
    """Whether HEIC pictures can be decoded here."""
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        return False
    return True


def decode(
    data: bytes,
    *,
    target_px: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    region: Region | None = None,
    path: str = "",
) -> Picture:
    """Decode a picture file from memory.

    target_px  the shorter side of the image may shrink down to this but not below it, and is never enlarged; a JPEG is
               then decoded at 1/2, 1/4 or 1/8, and everything is averaged down by a whole factor. None: full scale
    region     what to cut out, in pixels of the upright picture at full scale; the part outside the picture is dropped
    path       for messages only
    An animation gives its first frame; transparency lies over white; colours are converted by the ICC profile.
    PictureError if it is not a picture, damaged, cut short, larger than `limits`, or the region lies outside it.
    """
    name = sniff(data[:SNIFF_BYTES])
    if name is None:
        raise PictureError(path, "not a picture of a format that is read here")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(data, name, target_px, limits, region, path)
    except PictureError:
        raise
    except MemoryError:
        raise PictureError(path, "needs more memory than it may take") from None
    except Image.DecompressionBombError:
        raise PictureError(path, "claims more pixels than the limit") from None
    except Exception as error:  # Pillow's plugins let through whatever a damaged file makes of them
        raise PictureError(path, _reason(name, error)) from error


def decode_file(
    path: str | Path, *, target_px: int | None = None, limits: Limits = DEFAULT_LIMITS, region: Region | None = None
) -> Picture:
    """`decode` for a file, in this process; PictureError if it is not there, not a regular file, or no picture."""
    try:
        with open_regular(str(path)) as file:
            if os.fstat(file.fileno()).st_size > limits.max_file_bytes:
                raise PictureError(str(path), f"larger than {limits.max_file_bytes / 1e6:.0f} MB")
            return decode(file.read(), target_px=target_px, limits=limits, region=region, path=str(path))
    except OSError as error:
        raise PictureError(str(path), os_reason(error)) from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """An image in any of Pillow's modes as (H, W, 3) uint8 RGB, transparency over white.

    Its ICC profile and EXIF orientation are not looked at.
    """
    return np.asarray(_to_srgb(_displayable(image), None))


def _identity_of_root(root: str) -> tuple[int, int]:
    try:
        is_folder, identity = os.path.isdir(root), _identity(root)
    except OSError as error:
        raise SeenitError(f"cannot list {root}: {os_reason(error)}; give a folder that can be read") from None
    if not is_folder:
        raise SeenitError(f"cannot list {root}: it is not a folder; give the folder that holds it")
    return identity


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _walk(top: str, seen: set[tuple[int, int]], links: list[str]) -> Iterator[FoundFile | Unreadable]:
    """The files of one folder and of the real folders in it; links to folders are added to `links`."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            identity = _identity(folder)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since its parent was listed
        except OSError as error:
            yield Unreadable(folder, os_reason(error))
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name.lower() not in SKIPPED_FOLDERS:
                        folders.append(entry.path)
                elif entry.is_symlink() and entry.is_dir():
                    links.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield FoundFile(entry.path, status.st_size, status.st_mtime_ns)
                elif entry.is_symlink() and not os.path.exists(entry.path):  # perhaps into a disk that is not here now
                    yield Unreadable(entry.path, "the link leads nowhere")
            except FileNotFoundError:
                continue  # deleted since it was listed
            except OSError as error:
                yield Unreadable(entry.path, os_reason(error))
        waiting.extend(reversed(folders))


def _reason(name: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower():
        return f"the {name} file is cut short"
    return f"damaged {name} file: {text[:100]}"


def _decode(data: bytes, name: str, target_px: int | None, limits: Limits, region: Region | None, path: str) -> Picture:
    image = _open(data, name, path)
    stored_width, stored_height = image.size
    orientation, taken_at, camera, gps = _read_exif(image)
    turned = orientation >= 5
    width, height = (stored_height, stored_width) if turned else (stored_width, stored_height)
    box = _clip(region, width, height, path) if region else (0, 0, width, height)

    short_side = min(box[2], box[3])
    if target_px and name == "JPEG":
        factor = max(1, short_side // target_px)
        image.draft(None, (stored_width // factor, stored_height // factor))
        image.decodermaxblock = max(len(data), 1)  # one call of the decoder instead of one per 64 KB
    _check_size(stored_width, stored_height, image.size, name, limits, path)
    image.load()

    picture = _displayable(image)
    scale = (picture.width / stored_width, picture.height / stored_height)
    if region:
        picture = picture.crop(_stored_box(box, orientation, (stored_width, stored_height), scale))
    if target_px:
        factor = min(picture.size) // target_px
        if factor > 1:
            picture = picture.reduce(factor)
    picture = _to_srgb(picture, image.info.get("icc_profile"))
    if orientation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
    return Picture(picture, width, height, name, taken_at, camera, gps)


def _open(data: bytes, name: str, path: str) -> ImageFile.ImageFile:
    if name != "HEIF":
        return OPENERS[name](io.BytesIO(data), "")
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise PictureError(path, HEIF_MISSING) from None
    return HeifImageFile(io.BytesIO(data))


def _check_size(width: int, height: int, decoded: tuple[int, int], name: str, limits: Limits, path: str) -> None:
    most = limits.max_pixels
    if decoded == (width, height):
        most = min(most, limits.memory_bytes // BYTES_PER_PIXEL)
    if width * height > most:
        raise PictureError(path, f"{width}x{height} pixels, more than the limit of {most / 1e6:.0f} million ({name})")


def _clip(region: Region, width: int, height: int, path: str) -> Region:
    x, y, w, h = region
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise PictureError(path, f"the region {x},{y},{w},{h} lies outside the picture of {width}x{height} pixels")
    return left, top, right - left, bottom - top


def _stored_box(
    box: Region, orientation: int, stored: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Where a box of the upright picture lies in the picture as stored, at reduced scale: left, top, right, bottom."""
    x, y, w, h = box
    if orientation >= 5:  # rows and columns change places
        x, y, w, h = y, x, h, w
    if orientation in (2, 3, 7, 8):
        x = stored[0] - x - w
    if orientation in (3, 4, 6, 7):
        y = stored[1] - y - h
    left, top = math.floor(x * scale[0]), math.floor(y * scale[1])
    return left, top, max(left + 1, math.ceil((x + w) * scale[0])), max(top + 1, math.ceil((y + h) * scale[1]))


def _displayable(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and nothing transparent: mode L, RGB, CMYK or LAB."""
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16"):
        return _eight_bits(np.asarray(image.convert("I") if image.mode == "I;16N" else image), image)
    if image.mode in ("I", "F"):
        return _eight_bits(np.asarray(image), image)
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, image: Image.Image) -> Image.Image:
    """Grey values (H, W) of more than 8 bits as an 8-bit image.

    The white that the format declares is kept: 65535 for 16 bits, 4095 for a 12-bit TIFF, 1.0 for floating point.
    Numbers that fit no such range are stretched from their least to their greatest.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    bits = _declared_bits(image)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        white = 1.0
    elif values.dtype.kind == "f" and low >= 0 and high <= 255:
        white = 255.0
    elif values.dtype.kind != "f" and low >= 0 and high < 1 << bits:
        white = float((1 << bits) - 1)
    else:
        values = values.astype(np.float32) - low
        white = max(high - low, 1e-12)
    return Image.fromarray((values * np.float32(255.0 / white) + np.float32(0.5)).astype(np.uint8))


def _declared_bits(image: Image.Image) -> int:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(258, (16,))  # BitsPerSample
        return min(16, max(8, int(bits[0] if isinstance(bits, tuple) else bits)))
    return 16


def _to_srgb(picture: Image.Image, profile: Any) -> Image.Image:
    """To RGB through the ICC profile; a broken profile, or one for other channels, is as good as none."""
    if isinstance(profile, bytes) and profile and picture.mode != "LAB":
        with contextlib.suppress(Exception):
            transform = _transform_to_srgb(profile, picture.mode)
            if transform is not None:
                return transform.apply(picture)
    if picture.mode == "LAB":
        transform = _lab_to_srgb()
        return transform.apply(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@lru_cache(maxsize=8)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode in ("L", "RGB") and "srgb" in ImageCms.getProfileDescription(source).lower():
        return None  # the profile that most pictures carry
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _read_exif(image: Image.Image) -> tuple[int, datetime | None, str | None, tuple[float, float] | None]:
    """Orientation (1 to 8), when taken, camera, GPS; damaged EXIF is no EXIF."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        details = exif.get_ifd(ExifTags.IFD.Exif)
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:
        return 1, None, None, None
    return (
        orientation if orientation in UPRIGHT else 1,
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
