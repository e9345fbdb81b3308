"""Where one image's bytes are, and how a decoder process reads them. Imports neither torch nor an HTTP client."""

import os
import re
from typing import NamedTuple

from ..errors import ImageError
from ..images.find import open_regular

WHOLE_FILE = -1
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class ImageRef(NamedTuple):
    """Where one image's bytes are."""

    path: str  # an image, or the tar file that it lies in; a file, or an address such as s3://bucket/key
    start: int = 0  # bytes
    size: int = WHOLE_FILE
    member: str = ""  # its name in the tar file
    private: bool = False  # whether an http address of this machine or its own network may be asked

    @property
    def name(self) -> str:
        """How to call it in a message."""
        path = self.path
        if is_address(path):
            from ..web import printable_url

            path = printable_url(path)
        return f"{path}: {self.member}" if self.member else path


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a text is an address (`s3://...`) and no path."""
    return _ADDRESS.match(str(path)) is not None


def read_place(place: ImageRef, limit: int, *, most: int | None = None) -> bytes:
    """The bytes of an image, or its `most` first ones.

    limit  bytes that an image may have
    OSError where they cannot be had (FileNotFoundError where they are gone), ImageError where they are over the limit
    or fewer than there should be.
    """
    if is_address(place.path):
        from .remote import read_range

        size = None if place.size == WHOLE_FILE else place.size
        _check_size(place, size, limit)
        data = read_range(place.path, place.start, size, limit=limit, most=most, allow_private=place.private)
        expected = size if most is None or size is None else min(size, most)
    else:
        with open_regular(place.path) as file:
            size = os.fstat(file.fileno()).st_size if place.size == WHOLE_FILE else place.size
            _check_size(place, size if most is None else None, limit)
            file.seek(place.start)
            expected = size if most is None else min(size, most)
            data = file.read(expected)
    if expected is not None and len(data) < expected:
        raise ImageError(place.name, "the file is cut short")
    return data


def _check_size(place: ImageRef, size: int | None, limit: int) -> None:
    if size is not None and size > limit:
        raise ImageError(place.name, f"{size / 1e6:.0f} MB, more than the limit of {limit / 1e6:.0f} MB")
