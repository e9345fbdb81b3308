"""Stored patches of candidates as padded arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from indexer.descriptor.patch_codec import unpack_patches


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """Patches of B images side by side.

    tokens  (B, M, T)  float32, L2-normalised, zero-padded
    mask    (B, M)     True where the patch is real
    at      (B, M, 2)  float32, x and y of each patch's middle, in patches
    grids   rows and columns of each image
    """

    tokens: Tensor
    mask: Tensor
    at: Tensor
    grids: tuple[tuple[int, int], ...]


def batch_patches(packed: Sequence[bytes]) -> PatchBatch:
    """The patches of several images as one batch."""
    patches = unpack_patches(packed)
    counts = np.array(patches.counts, int)
    mask = np.arange(counts.max(initial=0)) < counts[:, None]  # (B, M)
    middles = patches.positions[:, ::-1] + np.float32(0.5)
    if mask.all():  # as good as always; then there is nothing to pad, and nothing large to copy
        tokens, at = patches.tokens.reshape(*mask.shape, -1), middles.reshape(*mask.shape, 2)
    else:
        tokens = np.zeros((*mask.shape, patches.tokens.shape[1]), np.float32)
        at = np.zeros((*mask.shape, 2), np.float32)
        tokens[mask], at[mask] = patches.tokens, middles
    return PatchBatch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(at), patches.grids)


def patches_at(grid: tuple[int, int]) -> Tensor:
    """x and y of the middle of every patch of a grid in raster order, in patches.  (rows * columns, 2)"""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([cols.flatten(), rows.flatten()], dim=1) + 0.5
