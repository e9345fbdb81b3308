"""Turns pixels into the size the ViT sees: a whole number of patches, the image's shape kept as well as that allows.

Cropping would cut away the edges, where the thing looked for may be; squashing to a square distorts it. So each image
gets the grid of about `num_patches` patches whose shape is nearest to its own. Few grids are possible (17 for 256
patches), so that batches fill quickly. Normalisation by mean and standard deviation happens beside the model.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

Mode = Literal["aspect", "squash", "crop"]
Grid = tuple[int, int]  # rows, columns of patches

MAX_ASPECT = 4.0  # a longer panorama is squeezed to this shape; not tuned
DETAIL = 4 / 3  # see detail_px; not tuned
CROP_FRACTION = 224 / 256  # the official evaluation resizes the shorter side to 256 and keeps the middle 224


def preprocess(
    pixels: np.ndarray | Image.Image, mode: Mode = "aspect", resolution: int = 224, patch_size: int = 14
) -> np.ndarray:
    """Resize an image for the ViT.

    pixels      (H, W, 3) uint8 RGB, or an image of mode RGB, which saves a copy
    mode        aspect: the grid nearest in shape; squash: a square; crop: the middle square of the official evaluation
    resolution  pixels; the result has about resolution * resolution of them
    returns     (rows * P, columns * P, 3) uint8 RGB
    """
    image = _as_image(pixels)
    side = max(1, round(resolution / patch_size))
    if mode == "aspect":
        return resize_to_grid(image, choose_grid(image.height, image.width, side * side), patch_size)
    if mode == "crop":
        middle = max(1, round(min(image.size) * CROP_FRACTION))
        left, top = (image.width - middle) // 2, (image.height - middle) // 2
        image = image.crop((left, top, left + middle, top + middle))
    return resize_to_grid(image, (side, side), patch_size)


def detail_px(resolution: int) -> int:
    """How far the shorter side may shrink while decoding, for `preprocess` to have enough to choose from.

    Everything that is embedded is decoded to this, so that a query and its indexed copy are the same pixels.
    """
    return round(DETAIL * resolution)


def choose_grid(height: int, width: int, num_patches: int = 256, max_aspect: float = MAX_ASPECT) -> Grid:
    """The grid (rows, columns) of about `num_patches` whose shape is nearest to the image's.

    Never more than 5 % above `num_patches`. An image no larger than the grid in pixels gets the same grid: it is
    enlarged. Turning the image by 90 degrees turns the grid.
    """
    aspect = math.log(max(width, 1) / max(height, 1))
    grids = possible_grids(num_patches, max_aspect)
    return min(grids, key=lambda grid: (abs(math.log(grid[1] / grid[0]) - aspect), grid))


@lru_cache(maxsize=64)
def possible_grids(num_patches: int = 256, max_aspect: float = MAX_ASPECT) -> tuple[Grid, ...]:
    """Every grid that `choose_grid` may answer: one for each possible length of the shorter side, and those turned."""
    largest = max(1, math.isqrt(num_patches))
    smallest = max(1, math.ceil(math.sqrt(num_patches / max_aspect) - 1e-9))
    grids = set()
    for short in range(min(smallest, largest), largest + 1):
        long = max(short, min(round(num_patches / short), math.floor(1.05 * num_patches / short)))
        grids |= {(short, long), (long, short)}
    return tuple(sorted(grids))


def resize_to_grid(image: np.ndarray | Image.Image, grid: Grid, patch_size: int = 14) -> np.ndarray:
    """Resize (H, W, 3) uint8 pixels or an RGB image to (rows * P, columns * P, 3) uint8; bicubic with antialiasing.

    A much larger image is first averaged down by a whole factor: 15 times faster from 12 megapixels, and as near to
    plain bicubic as Lanczos is (46 dB).
    """
    size = (grid[1] * patch_size, grid[0] * patch_size)  # Pillow wants the width first
    resized = _as_image(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=DETAIL)
    return np.array(resized)  # (rows * P, columns * P, 3), writable


def _as_image(image: np.ndarray | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
