"""Brings an image of any of Pillow's modes to opaque 8-bit RGB in sRGB.

Surprising: Pillow's own conversions are not enough. They cut 16-bit grey off at 255, drop transparency without a
background, and leave the ICC profile to the caller.
"""

import contextlib
import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601
FULL = 0.6  # of the range of 14 bits, under which it is as well a dark image of 16
LEAST_CONTRAST = 40  # grey levels, of art to a white backdrop


def to_rgb(image: Image.Image) -> np.ndarray:
    """An image in any of Pillow's modes as (H, W, 3) uint8 RGB, transparency over white or black.

    Its ICC profile and EXIF orientation are not looked at.
    """
    return np.asarray(to_srgb(displayable(image), None))


def displayable(image: Image.Image, deep: bool = False) -> Image.Image:
    """The image with 8 bits a channel and nothing transparent: mode L, RGB, CMYK or LAB.

    deep  whether the file holds 16 bits a channel, of which Pillow has kept the upper 8 where there are colours
    """
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        backdrop = Image.new("RGB", image.size, _backdrop(image))
        backdrop.paste(image, mask=image.getchannel("A"))
        return backdrop
    if image.mode == "RGB" and deep:
        return _spread(image)
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16"):
        return _eight_bits(np.asarray(image.convert("I") if image.mode == "I;16N" else image), image)
    if image.mode in ("I", "F"):
        return _eight_bits(np.asarray(image), image)
    return image.convert("RGB")


def _backdrop(image: Image.Image) -> tuple[int, int, int]:
    """White, or black behind what would hardly show on white: by an RGBA image's pixels that are not transparent."""
    pixels = np.asarray(image.resize((min(image.width, 128), min(image.height, 128)), Image.Resampling.BOX), np.float32)
    alpha = pixels[..., 3]
    if not alpha.any():
        return (255, 255, 255)
    contrast = float(((255 - pixels[..., :3] @ GREY) * alpha).sum() / alpha.sum())
    return (0, 0, 0) if contrast < LEAST_CONTRAST else (255, 255, 255)


def _spread(image: Image.Image) -> Image.Image:
    """Colours of 10 to 14 bits that were stored in 16, and so came out dark, to the full range."""
    extrema = image.getextrema()
    highest = max(int(high) for _, high in extrema if isinstance(high, (int, float)))  # type: ignore[misc]
    bits = next(bits for bits in (2, 4, 6, 8) if highest < 1 << bits)
    white = (1 << bits) - 1
    return (
        image if bits == 8 or not highest else image.point([min(255, round(255 * n / white)) for n in range(256)] * 3)
    )


def to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """To RGB through the ICC profile; a broken profile, or one for other channels, is as good as none."""
    if isinstance(profile, bytes) and profile and image.mode != "LAB":
        with contextlib.suppress(Exception):
            transform = _transform_to_srgb(profile, image.mode)
            if transform is not None:
                return transform.apply(image)
    if image.mode == "LAB":
        return _lab_to_srgb().apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray, image: Image.Image) -> Image.Image:
    """Grey values (H, W) of more than 8 bits as an 8-bit image.

    The white that the file declares is kept: 4095 for a 12-bit TIFF, what MaxSampleValue says, 1.0 for floating point.
    16 bits that hold numbers of 8, 10, 12 or 14 only are such numbers: scanners and sensors write them so.
    Numbers that fit no such range are stretched from their least to their greatest.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    bits, told = _declared(image)
    if not told and values.dtype.kind != "f" and low >= 0:
        bits = next((fewer for fewer in (8, 10, 12) if high < 1 << fewer), bits)
        if bits == 16 and FULL * (1 << 14) <= high < 1 << 14:
            bits = 14
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


def _declared(image: Image.Image) -> tuple[int, bool]:
    """Bits that the file says its numbers have, and whether that is more than the room that they take."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16, False
    bits = min(16, max(8, _first(image.tag_v2.get(258, 16))))  # BitsPerSample
    white = _first(image.tag_v2.get(281, 0))  # MaxSampleValue
    if 0 < white < (1 << bits) - 1:
        return max(8, white.bit_length()), True
    return bits, bits < 16


def _first(value: Any) -> int:
    try:
        return int(value[0] if isinstance(value, tuple) else value)
    except (TypeError, ValueError, IndexError):
        return 0


@lru_cache(maxsize=8)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode in ("L", "RGB") and "srgb" in ImageCms.getProfileDescription(source).lower():
        return None  # the profile that most images carry
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
