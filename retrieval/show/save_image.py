"""Drawn images as files."""

import io
from pathlib import Path

from PIL import Image

from indexer.atomic_file import whole_file


def save_image(image: Image.Image, path: str | Path, *, max_bytes: int | None = None) -> None:
    """Write a PNG where the suffix says so, else a JPEG.

    max_bytes  a JPEG is packed harder until it is no larger, down to quality 40
    Raises SeenitError where it cannot be written.
    """
    packed = io.BytesIO()
    if Path(path).suffix.lower() == ".png":
        image.save(packed, "PNG", optimize=True)
    else:
        for quality in range(88, 36, -8):
            packed = io.BytesIO()
            image.save(packed, "JPEG", quality=quality, optimize=True)
            if max_bytes is None or packed.tell() <= max_bytes:
                break
    with whole_file(path) as file:
        file.write(packed.getvalue())
