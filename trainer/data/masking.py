"""Which patches of the global crops the student does not see: iBOT's blocks (Zhou et al. 2022).

A share of the crops is masked, and the masked ones' ratios are spread evenly over a range. Every mask is a function of
the seed, the number of the batch and the crop's place in it, so that neither a resumed run nor one on several
processes draws others.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..config import Config

SMALLEST_BLOCK = 4  # patches
LARGEST_MASK = 0.5  # of the patches, in one block
FLATTEST_BLOCK = 0.3  # height over width, and width over height
_TAG = 0x6D61736B  # keeps these random numbers apart from those of the crops


def draw_masks(
    config: Config, grid: tuple[int, int], batch_number: int, *, rank: int = 0, world_size: int = 1
) -> Tensor:
    """The masks of this process's global crops.

    grid     rows, columns of patches in a global crop; N = rows * columns
    returns  (2 * B, N) bool, True where a patch is hidden; view-major, B = batch_size / world_size
    """
    crops = 2 * config.batch_size
    masked = int(crops * config.mask_probability)
    rng = np.random.default_rng([config.seed, batch_number, _TAG])
    place = rng.permutation(crops)  # place[slot] < masked: this slot has the place-th smallest ratio
    edges = np.linspace(*config.mask_ratio, masked + 1)
    own = config.batch_size // world_size
    masks = np.zeros((2 * own, grid[0] * grid[1]), dtype=bool)
    for view in range(2):
        for image in range(own):
            slot = view * config.batch_size + rank * own + image
            if place[slot] < masked:
                rng = np.random.default_rng([config.seed, batch_number, _TAG, slot + 1])
                ratio = rng.uniform(edges[place[slot]], edges[place[slot] + 1])
                masks[view * own + image] = block_mask(grid, int(ratio * masks.shape[1]), rng).ravel()
    return torch.from_numpy(masks)


def block_mask(grid: tuple[int, int], num_patches: int, rng: np.random.Generator) -> np.ndarray:
    """A mask of at most `num_patches` made of rectangles; fewer where ten tries for one more rectangle fail.

    returns  (rows, columns) bool
    """
    mask = np.zeros(grid, dtype=bool)
    largest = LARGEST_MASK * mask.size
    while (left := num_patches - int(mask.sum())) > 0:
        if not _add_block(mask, min(left, largest), rng):
            break
    return mask


def _add_block(mask: np.ndarray, most: float, rng: np.random.Generator) -> bool:
    """Hide one more rectangle of at most `most` patches that are still seen."""
    rows, cols = mask.shape
    for _ in range(10):
        area = rng.uniform(min(SMALLEST_BLOCK, most), max(SMALLEST_BLOCK, most))
        aspect = math.exp(rng.uniform(math.log(FLATTEST_BLOCK), -math.log(FLATTEST_BLOCK)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= cols:
            continue
        top, left = rng.integers(0, rows - height + 1), rng.integers(0, cols - width + 1)
        block = mask[top : top + height, left : left + width]
        if 0 < block.size - int(block.sum()) <= most:
            block[:] = True
            return True
    return False
