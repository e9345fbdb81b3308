"""Tells which of two copies was made from the other, by the traces that JPEG leaves.

A JPEG's coefficients are multiples of its quantisation steps. What is made from it, mirrored, turned, enlarged or
saved again at a higher quality, still has coefficients near those multiples, which no other image has. So the file
whose steps are found in the other one's pixels is the original. Where the other one was compressed much more strongly,
or the JPEG has hardly any loss, there are no traces, and nothing is told.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from indexer.images.decode import UPRIGHT
from indexer.images.exif import read_exif

# by, bx blocks of 8 x 8 pixels down and across

MOST_STEPS = 6  # a coefficient may be away from 0: further ones are too uncertain
FINER = 3.0  # times, that the other JPEG's own step must be, for its multiples are found anyway
LARGE, LARGEST = 3, 40  # steps, between which a coefficient tells of damping
SAME_TONE = 2.0  # levels, that half of the blocks' means may differ by
MOST_SIDE = 1536  # pixels of the sides of the part that is looked at
LEAST_OF_A_KIND = 20  # of one frequency, for its damping to be learnt
LEAST_DAMPED = 0.4  # what is left of a frequency, under which the two do not show the same there
SCALED = 1.02  # times as large along a line, from which on an image was resized
COSINES = np.array(
    [[np.cos((2 * x + 1) * u * np.pi / 16) * (np.sqrt(1 / 8) if u == 0 else 0.5) for x in range(8)] for u in range(8)]
)


@dataclass(frozen=True)
class TraceTest:
    """What decides: the least step that is looked at (finer ones leave no trace behind the other's rounding), how many
    coefficients there must be, and from which trace on an image was made from the JPEG."""

    least_step: float
    least_count: int
    trace: float


# chosen on 12 photos x 33 edits: one size, made from it .49 and more, not so .30 at most; two sizes, enlarged twice and
# saved at quality 60 .10 and more for originals of quality 90, not so .06 at most. On others, duplicates_keeper.py: of
# 3,168 pairs none is told the wrong way round
ONE_SIZE, TWO_SIZES = TraceTest(3, 300, 0.4), TraceTest(8, 1000, 0.1)


@dataclass(frozen=True, eq=False)
class Jpeg:
    """What a JPEG's file tells: its luma as stored (H, W) uint8, its steps (8, 8), and what turns it upright."""

    luma: np.ndarray
    steps: np.ndarray
    orientation: int


def read_jpeg(data: bytes) -> Jpeg | None:
    """None where the bytes are no JPEG in colour or grey."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.mode not in ("L", "RGB"):
                return None
            tables = getattr(image, "quantization", {})
            steps = np.array(tables[0], np.float64).reshape(8, 8)
            orientation = read_exif(image).orientation
            return Jpeg(_luma(image), steps, orientation)
    except (OSError, ValueError, KeyError, Image.DecompressionBombError):
        return None


def made_from(source: Jpeg, other: Image.Image, transform: np.ndarray, other_steps: np.ndarray | None = None) -> bool:
    """Whether the other image was made from the JPEG; see trace_of.

    other_steps  (8, 8)  the other one's own, where it is a JPEG as well; None where it is none
    """
    length = max(source.luma.shape)
    scaled = not 1 / SCALED < max(other.size) / length < SCALED
    test = TWO_SIZES if scaled else ONE_SIZE
    trace = trace_of(source, other, transform, test, None if scaled else other_steps)
    return trace is not None and trace >= test.trace


def trace_of(
    source: Jpeg, other: Image.Image, transform: np.ndarray, test: TraceTest, other_steps: np.ndarray | None = None
) -> float | None:
    """How plainly an image carries a JPEG's steps: 1 entirely, about 0 not at all; None where it cannot be told.

    other        upright, in RGB
    transform    (2, 3)  from fractions of the upright source to fractions of the other, whole on whole
    other_steps  (8, 8)  that the other one has anyway, for it is a JPEG of this size
    """
    laid = _laid_on(other, transform)
    if laid is None:
        return None
    if source.orientation in UPRIGHT:
        laid = laid.transpose(_undone(UPRIGHT[source.orientation]))
    height, width = source.luma.shape
    laid_to_size = laid.size != (width, height)
    if laid_to_size:
        laid = laid.resize((width, height), Image.Resampling.BICUBIC)
    own, others = _coefficients(source.luma), _coefficients(_luma(laid))  # (by, bx, 8, 8)
    if np.median(np.abs(own - others)[..., 0, 0]) / 8 > SAME_TONE:
        return None  # coefficients of another tone are no multiples any more
    usable = source.steps >= test.least_step
    if other_steps is not None:  # in the position of the source its rows and columns may have changed places
        usable &= source.steps >= FINER * np.maximum(other_steps, other_steps.T)
    count = np.round(own / source.steps)
    counted = (np.abs(count) >= 1) & (np.abs(count) <= MOST_STEPS) & usable
    counted[..., 0, 0] = False
    damping = _damping(count, others / source.steps, LARGE if laid_to_size else 1)
    counted &= damping >= LEAST_DAMPED  # in a smooth image all is near 0, which is a multiple of every step
    if laid_to_size:
        others = others / np.maximum(damping, LEAST_DAMPED)
    if counted.sum() < test.least_count:
        return None
    away = (others / source.steps - count)[counted]
    return float(np.cos(2 * np.pi * away).mean())  # 0 on average wherever in a step the others may lie


def _laid_on(other: Image.Image, transform: np.ndarray) -> Image.Image | None:
    """The other image in the position of the source; None where that is neither turned by quarters nor mirrored."""
    linear = np.round(transform[:, :2])
    if np.abs(transform[:, :2] - linear).max() > 0.02 or abs(abs(np.linalg.det(linear)) - 1) > 1e-6:
        return None
    way = next(way for way, position in POSITIONS.items() if np.array_equal(linear, position))
    return other if way is None else other.transpose(way)


# what lays an image on another one -> the linear part of the transform from that one to it, in fractions
POSITIONS: dict[Image.Transpose | None, np.ndarray] = {
    None: np.array([[1, 0], [0, 1]]),
    Image.Transpose.FLIP_LEFT_RIGHT: np.array([[-1, 0], [0, 1]]),
    Image.Transpose.FLIP_TOP_BOTTOM: np.array([[1, 0], [0, -1]]),
    Image.Transpose.ROTATE_180: np.array([[-1, 0], [0, -1]]),
    Image.Transpose.TRANSPOSE: np.array([[0, 1], [1, 0]]),
    Image.Transpose.TRANSVERSE: np.array([[0, -1], [-1, 0]]),
    Image.Transpose.ROTATE_90: np.array([[0, -1], [1, 0]]),
    Image.Transpose.ROTATE_270: np.array([[0, 1], [-1, 0]]),
}


def _undone(way: Image.Transpose) -> Image.Transpose:
    swapped = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    return swapped.get(way, way)


def _luma(image: Image.Image) -> np.ndarray:
    return np.asarray(image if image.mode == "L" else image.convert("YCbCr").getchannel(0))


def _coefficients(luma: np.ndarray) -> np.ndarray:
    """Of the whole blocks in the middle of a plane (H, W).  (by, bx, 8, 8)"""
    down, across = (min(length, MOST_SIDE) // 8 for length in luma.shape)
    top, left = (8 * ((length // 8 - blocks) // 2) for length, blocks in zip(luma.shape, (down, across), strict=True))
    middle = luma[top : top + 8 * down, left : left + 8 * across].astype(np.float32)
    blocks = middle.reshape(down, 8, across, 8).transpose(0, 2, 1, 3) - 128
    return np.asarray(COSINES @ blocks @ COSINES.T)


def _damping(count: np.ndarray, others: np.ndarray, least: int) -> np.ndarray:
    """What is left of each frequency, for resampling takes some of it away; 0 where too few tell.  (8, 8)

    count   (by, bx, 8, 8)  the source's coefficients in steps, whole numbers
    others  (by, bx, 8, 8)  the other one's, in the same steps
    least   steps, under which a coefficient tells nothing: of those that were rounded to 1, most were less in any image
    """
    large = (np.abs(count) >= least) & (np.abs(count) <= LARGEST)
    product, power = ((one * large).sum((0, 1)) for one in (count * others, count * count))
    return np.where(large.sum((0, 1)) >= LEAST_OF_A_KIND, product / np.maximum(power, 1e-6), 0.0)
