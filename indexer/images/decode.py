"""Decodes images safely: told by content, within limits, upright and in sRGB.

Surprising: Pillow's plugins are called directly rather than through `Image.open`. Only the plugin that the file's first
bytes ask for ever runs, and the cap on pixels is ours, per call, instead of Pillow's global one. Nothing here imports
torch; the decoder processes import this module.
"""

import io
import math
import os
import re
import warnings
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import ImageError, os_reason
from .colour import displayable, to_srgb
from .description import NO_DESCRIPTION, Description, read_description
from .embedded import put_in_exif
from .exif import Exif, read_exif
from .find import open_regular
from .raw import RAW_MISSING, is_raw, raw_installed, read_raw

SNIFF_BYTES = 64  # how much of a file `sniff` wants to see

OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # and MPO, by its first image
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}
NEEDS_MEMORY = "needs more memory than it may take"
MOST_MISSING = 0.25  # of a JPEG's rows, up to which it is shown with a note, as viewers do
BYTES_PER_PIXEL = 10  # while an image is decoded whole: 4 in Pillow, about as much in the format's own decoder

RAW_HEADS = (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM")  # of makers' own formats

# EXIF orientation -> what turns the stored image upright; 1 is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Region = tuple[int, int, int, int]  # x, y, width, height in pixels of the upright image


@dataclass(frozen=True)
class Limits:
    """What one image may cost.

    A JPEG is decoded at reduced scale and may have `max_pixels`. Every other format is decoded whole and is also held
    to `memory_bytes / 10` pixels (107 million by default).
    """

    max_pixels: int = 200_000_000
    memory_bytes: int = 1 << 30  # what a decoder process may take on top of its size at the start
    timeout_s: float = 30.0  # for reading and decoding one file, in a decoder process
    max_file_bytes: int = 500_000_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded image."""

    image: Image.Image  # mode RGB, in sRGB, upright; the whole image or the region asked for, maybe at reduced scale
    width: int  # of the whole image at full scale, upright
    height: int
    format: str  # Pillow's name: JPEG, PNG, ...; RAW for a camera's sensor data
    taken_at: datetime | None = None  # EXIF or XMP; UTC; a time without a zone is taken to be UTC
    camera: str | None = None
    gps: tuple[float, float] | None = None  # latitude, longitude in degrees
    date_source: str | None = None  # "exif" or "xmp", where `taken_at` is known
    frames: int = 1  # pages or frames in the file, of which this is the first
    note: str | None = None  # what is wrong with the file although it can be shown
    description: Description = NO_DESCRIPTION

    @cached_property
    def pixels(self) -> np.ndarray:
        """`image` as (H, W, 3) uint8."""
        return np.asarray(self.image)


def sniff(head: bytes) -> str | None:
    """The image format of a file that starts with `head` (SNIFF_BYTES of it), None if it is not an image.

    Raw files are told whether or not their reader is installed; `decode` says what is missing. A raw file
    that is a TIFF is told as TIFF; see `raw.is_raw`.
    """
    if head.startswith(RAW_HEADS) or head[4:12] == b"ftypcrx ":
        return "RAW"
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


def is_image(path: str | Path) -> bool:
    """Whether a regular file begins like an image; False as well if it cannot be read."""
    try:
        with open_regular(os.fspath(path)) as file:
            return sniff(file.read(SNIFF_BYTES)) is not None
    except OSError:
        return False


def decode(
    data: bytes,
    *,
    target_px: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    region: Region | None = None,
    path: str = "",
) -> DecodedImage:
    """Decode an image file from memory.

    target_px  the shorter side of the image may shrink down to this but not below it, and is never enlarged; a JPEG is
               then decoded at 1/2, 1/4 or 1/8, and everything is averaged down by a whole factor. None: full scale
    region     what to cut out, in pixels of the upright image at full scale; the part outside the image is dropped
    path       for messages only
    An animation gives its first frame; transparency lies over white, or over black where the art itself is white;
    colours are converted by the ICC profile. A JPEG that lacks up to a quarter of its rows comes with a note.
    ImageError if it is not an image, damaged, cut short, larger than `limits`, or the region lies outside it.
    """
    name = sniff(data[:SNIFF_BYTES])
    if name is None:
        raise ImageError(path, "not an image of a format that is read here")
    if name == "TIFF" and is_raw(data, path):
        name = "RAW"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if name == "RAW":
                return _decode_raw(data, target_px, limits, region, path)
            try:
                return _decode(data, name, target_px, limits, region, path)
            except OSError as error:
                if name != "JPEG" or "truncated" not in str(error):
                    raise
                return _decode_cut(data, target_px, limits, region, path)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(path, NEEDS_MEMORY) from None
    except Image.DecompressionBombError:
        raise ImageError(path, "claims more pixels than the limit") from None
    except Exception as error:  # Pillow's plugins let through whatever a damaged file makes of them
        raise ImageError(path, _reason(name, error)) from error


def decode_file(
    path: str | Path, *, target_px: int | None = None, limits: Limits = DEFAULT_LIMITS, region: Region | None = None
) -> DecodedImage:
    """`decode` for a file, in this process; ImageError if it is not there, not a regular file, or no image."""
    return decode(read_image_file(path, limits), target_px=target_px, limits=limits, region=region, path=str(path))


def read_image_file(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a file; ImageError if it is not there, not a regular file, or larger than the limit."""
    name = str(path)
    try:
        with open_regular(name) as file:
            if os.fstat(file.fileno()).st_size > limits.max_file_bytes:
                raise ImageError(name, f"larger than {limits.max_file_bytes / 1e6:.0f} MB")
            return file.read()
    except OSError as error:
        raise ImageError(name, os_reason(error)) from None


def _decode(
    data: bytes, name: str, target_px: int | None, limits: Limits, region: Region | None, path: str
) -> DecodedImage:
    image = _open(data, name)
    put_in_exif(image, data, name)
    exif, description = read_exif(image), read_description(image)
    deep = any(";16" in str(tile.args) for tile in image.tile)
    if name == "TIFF":  # Pillow turns it upright while loading, and says its size as if it had
        _check_size(*image.size, image.size, name, limits, path)
        image.load()
        exif = replace(exif, orientation=1)
    stored_width, stored_height = image.size
    width, height = (stored_height, stored_width) if exif.orientation >= 5 else image.size
    box = _clip(region, width, height, path) if region else (0, 0, width, height)

    short_side = min(box[2], box[3])
    if target_px and name == "JPEG":
        factor = max(1, short_side // target_px)
        image.draft(None, (stored_width // factor, stored_height // factor))
        image.decodermaxblock = max(len(data), 1)  # one call of the decoder instead of one per 64 KB
    _check_size(stored_width, stored_height, image.size, name, limits, path)
    image.load()

    shown = displayable(image, deep)
    scale = (shown.width / stored_width, shown.height / stored_height)
    if region:
        shown = shown.crop(_stored_box(box, exif.orientation, (stored_width, stored_height), scale))
    shown = to_srgb(_reduced(shown, target_px), image.info.get("icc_profile"))
    if exif.orientation in UPRIGHT:
        shown = shown.transpose(UPRIGHT[exif.orientation])
    return _image(shown, width, height, name, exif, description, _count_frames(data, name))


def _decode_cut(data: bytes, target_px: int | None, limits: Limits, region: Region | None, path: str) -> DecodedImage:
    """A JPEG that lacks its end, if most of it is there.

    What is missing is what changes with the bytes that stand in for it: rows that come out the same whether nothing or
    noise follows are the file's own.
    """
    noise = bytes(byte for byte in np.random.default_rng(0).bytes(4096) if byte != 0xFF)
    ends = (b"\xff\xd9", noise * (1 + len(data) // len(noise)) + b"\xff\xd9")
    shown, other = (_decode(data + end, "JPEG", target_px, limits, None, path) for end in ends)
    differs = (np.asarray(shown.image) != np.asarray(other.image)).any((1, 2))  # (H,)
    if _lacks_refinement(data):
        raise ImageError(path, "the JPEG file is cut short: only a coarse image is there")
    missing = 1 - float(differs.argmax()) / len(differs) if differs.any() else 0.0  # of the rows, to the bottom
    if missing > MOST_MISSING:
        raise ImageError(path, f"the JPEG file is cut short: {missing:.0%} of it is missing")
    note = f"its last bytes are missing, and with them up to {missing:.0%} of its rows"
    if region:
        shown = _decode(data + ends[0], "JPEG", target_px, limits, region, path)
    return replace(shown, note=note)


def _lacks_refinement(data: bytes) -> bool:
    """Whether a JPEG's last scan is not one that brings the numbers to full precision: it is progressive, and early."""
    at = data.rfind(b"\xff\xda")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at >= 0 and end <= len(data) and bool(data[end - 1] & 0x0F)


def _decode_raw(data: bytes, target_px: int | None, limits: Limits, region: Region | None, path: str) -> DecodedImage:
    if not raw_installed():
        raise ImageError(path, RAW_MISSING)
    exif, description = Exif(), NO_DESCRIPTION
    if data[:4] in (b"II*\0", b"MM\0*"):
        container = TiffImagePlugin.TiffImageFile(io.BytesIO(data), "")
        exif, description = read_exif(container), read_description(container)
    pixels = read_raw(data, min(limits.max_pixels, limits.memory_bytes // (2 * BYTES_PER_PIXEL)), path)
    image = Image.fromarray(pixels)
    width, height = image.size
    if region:
        x, y, w, h = _clip(region, width, height, path)
        image = image.crop((x, y, x + w, y + h))
    return _image(_reduced(image, target_px), width, height, "RAW", exif, description, 1)


def _image(
    image: Image.Image, width: int, height: int, name: str, exif: Exif, description: Description, frames: int
) -> DecodedImage:
    return DecodedImage(
        image,
        width,
        height,
        name,
        exif.taken_at,
        exif.camera,
        exif.gps,
        exif.date_source,
        frames,
        description=description,
    )


def _reduced(image: Image.Image, target_px: int | None) -> Image.Image:
    factor = min(image.size) // target_px if target_px else 1
    return image.reduce(factor) if factor > 1 else image


def _count_frames(data: bytes, name: str) -> int:
    """Pages or frames; as many as can be counted where a later one is damaged."""
    if name not in ("TIFF", "GIF", "WEBP", "PNG", "AVIF", "HEIF"):
        return 1
    image = _open(data, name)  # counting moves the reader, and may leave it in a bad state
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except Exception:
        return max(1, image.tell() + 1)


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    if name != "HEIF":
        return OPENERS[name](io.BytesIO(data), "")
    from pillow_heif import HeifImageFile  # here, since most folders hold none

    return HeifImageFile(io.BytesIO(data))


def _check_size(width: int, height: int, decoded: tuple[int, int], name: str, limits: Limits, path: str) -> None:
    most = limits.max_pixels
    if decoded == (width, height):
        most = min(most, limits.memory_bytes // BYTES_PER_PIXEL)
    if width * height > most:
        raise ImageError(path, f"{width}x{height} pixels, more than the limit of {most / 1e6:.0f} million ({name})")


def _clip(region: Region, width: int, height: int, path: str) -> Region:
    x, y, w, h = region
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise ImageError(path, f"the region {x},{y},{w},{h} lies outside the image of {width}x{height} pixels")
    return left, top, right - left, bottom - top


def _stored_box(
    box: Region, orientation: int, stored: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Where a box of the upright image lies in the image as stored, at reduced scale: left, top, right, bottom."""
    x, y, w, h = box
    if orientation >= 5:  # rows and columns change places
        x, y, w, h = y, x, h, w
    if orientation in (2, 3, 7, 8):
        x = stored[0] - x - w
    if orientation in (3, 4, 6, 7):
        y = stored[1] - y - h
    left, top = math.floor(x * scale[0]), math.floor(y * scale[1])
    return left, top, max(left + 1, math.ceil((x + w) * scale[0])), max(top + 1, math.ceil((y + h) * scale[1]))


def _reason(name: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower():
        return f"the {name} file is cut short"
    return f"damaged {name} file: {text[:100]}"
