"""Files that people look at, written whole or not at all."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from PIL import Image

from indexer.errors import SeenitError
from indexer.images.find import os_reason


@contextmanager
def whole_file(path: str | Path, what: str) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends without an exception.

    what  names the file in the message of the SeenitError that is raised where it cannot be written: `the page `
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name[:40] + ".")
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)  # a temporary file starts out private
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise SeenitError(f"cannot write {what}{path}: {os_reason(error)}; name another file") from None


@contextmanager
def whole_page(path: str | Path) -> Iterator[TextIO]:
    """`whole_file` for a page of text, open for writing."""
    with whole_file(path, "the page ") as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        yield file


def save_picture(image: Image.Image, path: str | Path, *, max_bytes: int | None = None) -> None:
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
    with whole_file(path, "") as unfinished:
        unfinished.write_bytes(packed.getvalue())
