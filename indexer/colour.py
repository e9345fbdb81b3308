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


def to_rgb(image: Image.Image) -> np.ndarray:
    """An image in any of Pillow's modes as (H, W, 3) uint8 RGB, transparency over white.

    Its ICC profile and EXIF orientation are not looked at.
    """
    return np.asarray(to_srgb(displayable(image), None))


def displayable(image: Image.Image) -> Image.Image:
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


def to_srgb(picture: Image.Image, profile: Any) -> Image.Image:
    """To RGB through the ICC profile; a broken profile, or one for other channels, is as good as none."""
    if isinstance(profile, bytes) and profile and picture.mode != "LAB":
        with contextlib.suppress(Exception):
            transform = _transform_to_srgb(profile, picture.mode)
            if transform is not None:
                return transform.apply(picture)
    if picture.mode == "LAB":
        return _lab_to_srgb().apply(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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


@lru_cache(maxsize=8)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode in ("L", "RGB") and "srgb" in ImageCms.getProfileDescription(source).lower():
        return None  # the profile that most pictures carry
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
