"""Files that people look at, written whole or not at all."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from PIL import Image

from indexer.atomic_file import atomic_file
from indexer.errors import SeenitError
from indexer.images.find import os_reason


@contextmanager
def whole_file(path: str | Path, what: str) -> Iterator[BinaryIO]:
    """`indexer.atomic_file` for a file that people look at.

    what  names the file in the message of the SeenitError that is raised where it cannot be written: `the page `
    """
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise SeenitError(f"cannot write {what}{path}: {os_reason(error)}; name another file") from None


@contextmanager
def whole_page(path: str | Path) -> Iterator[TextIO]:
    """`whole_file` for a page of text, open for writing."""
    with whole_file(path, "the page ") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        yield text
        text.detach()  # flushed; the file is closed by whoever opened it


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
    with whole_file(path, "") as file:
        file.write(packed.getvalue())
