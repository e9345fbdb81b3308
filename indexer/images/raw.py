"""Cameras' raw files: told from other TIFFs, and developed by LibRaw where it is installed.

Surprising: most raw files are TIFFs whose first image is a small preview. Read as a TIFF they would be indexed from the
preview, as if that were all that they hold.
"""

import io
import os
import struct
from functools import lru_cache

import numpy as np

from ..errors import ImageError

RAW_MISSING = "raw: a camera's raw file; to read it: pip install 'seenit[photo]'"
# fmt: off
SUFFIXES = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".nef", ".nrw",
    ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
))
# fmt: on
NEW_SUBFILE_TYPE, PHOTOMETRIC, SUB_IFDS, DNG_VERSION = 254, 262, 330, 50706
SENSOR = (32803, 34892)  # PhotometricInterpretation: colour filter array, linear raw
MAX_TAGS = 4096  # read of a directory


def is_raw(data: bytes, path: str = "") -> bool:
    """Whether a TIFF is a camera's raw file: by its first directory, or by the suffix of its name.

    A first image that says it is a reduced one, with others behind SubIFDs, is a preview of something else.
    """
    if os.path.splitext(path)[1].lower() in SUFFIXES or data[8:10] == b"CR":
        return True
    tags = _first_directory(data)
    preview = bool(tags.get(NEW_SUBFILE_TYPE, 0) & 1) and SUB_IFDS in tags
    return DNG_VERSION in tags or preview or tags.get(PHOTOMETRIC) in SENSOR


@lru_cache(maxsize=1)
def raw_installed() -> bool:
    try:
        import rawpy  # noqa: F401
    except ImportError:
        return False
    return True


def read_raw(data: bytes, max_pixels: int, path: str) -> np.ndarray:
    """The developed image (H, W, 3) uint8, upright, in sRGB with the camera's white balance.

    Raises ImageError where LibRaw cannot read it, or where it has more pixels than that.
    """
    import rawpy

    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            count = raw.sizes.width * raw.sizes.height
            if count > max_pixels:
                raise ImageError(path, f"raw: {count:,} pixels, more than the limit of {max_pixels / 1e6:.0f} million")
            pixels = raw.postprocess(use_camera_wb=True, output_bps=8)
            return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))  # a grey sensor gives one
    except rawpy.LibRawError as error:
        text = " ".join(os.fsdecode(part) if isinstance(part, bytes) else str(part) for part in error.args)
        raise ImageError(path, f"raw: the raw reader cannot read it ({text[:80]})") from None


def _first_directory(data: bytes) -> dict[int, int]:
    """Tags of a TIFF's first directory with their first number where it is in the entry; empty where damaged."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
        entry, first, value = (20, start + 8, 12) if big else (12, start + 2, 8)
        tags = {}
        for number in range(min(count, MAX_TAGS)):
            tag, kind = struct.unpack_from(order + "HH", data, first + number * entry)
            number_format = {1: "B", 3: "H", 4: "I"}.get(kind, "I")
            tags[tag] = struct.unpack_from(order + number_format, data, first + number * entry + value)[0]
    except (struct.error, OverflowError):  # an offset of 64 bits
        return {}
    return tags
