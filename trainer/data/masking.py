"""Which patches of the global crops the student does not see: iBOT's blocks (Zhou et al. 2022).

A share of the crops is masked, and the masked ones' ratios are spread evenly over a range. Every mask is a function of
the seed, the number of the batch and the crop's place in it, so that neither a resumed run nor one on several
processes draws others.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from .ahead import to_device

SMALLEST_BLOCK = 4  # patches
LARGEST_MASK = 0.5  # of the patches, in one block
FLATTEST_BLOCK = 0.3  # height over width, and width over height
PADDING = 64  # the padded number of masked patches is a multiple of this part of all patches
_TAG = 0x6D61736B  # keeps these random numbers apart from those of the crops


# C global crops of N patches each, P picked patches
@dataclass(frozen=True)
class PatchMasks:
    """What is hidden, and which patches are scored: worked out on the CPU, so that nothing waits for a device."""

    hidden: Tensor  # (C, N) bool, True where a patch is behind the mask token
    picked: Tensor  # (P,) int64, places in C * N of the patches that are scored
    weights: Tensor  # (P,) float32, one over the number of masked patches in the patch's crop; 0 for padding
    counted: Tensor | None = None  # (P,) bool, False for padding; None: there is none

    def to(self, device: torch.device) -> "PatchMasks":
        """On the device, by copies that are not waited for."""
        parts = (self.hidden, self.picked, self.weights, self.counted)
        hidden, picked, weights, counted = (None if part is None else to_device(part, device) for part in parts)
        assert hidden is not None and picked is not None and weights is not None
        return PatchMasks(hidden, picked, weights, counted)


def pick_masked(masks: Tensor, *, padded: bool = False) -> PatchMasks:
    """The masked patches of all crops behind each other.

    masks   (C, N) bool, on the CPU
    padded  repeat the first of them up to one of few lengths: a GPU's allocator then finds the memory of the batch
            before, where sizes that vary a little from batch to batch leave gaps that nothing fits into
    """
    picked = masks.flatten().nonzero().squeeze(1)  # (M,)
    weights = mask_weights(masks, picked)
    if not padded or not len(picked):
        return PatchMasks(masks, picked, weights)
    unit = max(1, masks.numel() // PADDING)
    extra = -len(picked) % unit
    counted = torch.arange(len(picked) + extra) < len(picked)
    picked = torch.cat([picked, picked[:1].expand(extra)])
    return PatchMasks(masks, picked, torch.cat([weights, weights.new_zeros(extra)]), counted)


def mask_weights(masks: Tensor, masked: Tensor) -> Tensor:
    """For each masked patch one over the number of them in its crop.

    masks    (C, N) bool
    masked   (M,) int64  places of the masked patches in C * N
    returns  (M,)
    """
    share = 1 / masks.sum(1).clamp_min(1)  # (C,)
    return share.index_select(0, masked // masks.shape[1])


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
