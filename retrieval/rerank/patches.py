"""Stored patches of candidates as padded arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from indexer.descriptor.patch_codec import ManyPatches, PatchCodes, read_codes, unpack_patches

from .products import Factors, multiplies_bytes


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


@dataclass(frozen=True, eq=False)
class FactorBatch:
    """The same as they are multiplied: `tokens` are Factors of (B, M, T), the rest as in `PatchBatch`.

    colours  (B, M, 2)  int8, zero-padded, see `mean_colours`; None where one of the images has none
    """

    tokens: Factors
    at: Tensor
    grids: tuple[tuple[int, int], ...]
    colours: Tensor | None = None


def batch_patches(packed: Sequence[bytes]) -> PatchBatch:
    """The patches of several images as one batch."""
    patches = unpack_patches(packed)
    mask = _real(patches)
    return PatchBatch(_padded(patches.tokens, mask), torch.from_numpy(mask), _middles(patches, mask), patches.grids)


def batch_factors(packed: Sequence[bytes]) -> FactorBatch:
    """The patches of several images as one batch, ready for `products.cosines`."""
    codes = read_codes(packed)
    mask = _real(codes)
    return FactorBatch(batch_tokens(codes), _middles(codes, mask), codes.grids, _colours(codes, mask))


def batch_tokens(codes: PatchCodes) -> Factors:
    """Their tokens alone, (B, M, T)."""
    mask = _real(codes)
    numbers, step = codes.numbers(whole=multiplies_bytes())
    return Factors(_padded(numbers, mask), _padded(step, mask))


def _real(patches: ManyPatches | PatchCodes) -> np.ndarray:
    """(B, M) bool, True where a patch is real once the images stand side by side."""
    counts = np.array(patches.counts, int)
    return np.arange(counts.max(initial=0)) < counts[:, None]


def _middles(patches: ManyPatches | PatchCodes, mask: np.ndarray) -> Tensor:
    """(B, M, 2) float32, x and y of each patch's middle, in patches."""
    return _padded(patches.positions[:, ::-1] + np.float32(0.5), mask)


def _colours(patches: PatchCodes, mask: np.ndarray) -> Tensor | None:
    return None if patches.colours is None else _padded(patches.colours, mask)


def _padded(rows: np.ndarray, mask: np.ndarray) -> Tensor:
    """(K of all, X) -> (B, M, X), with zeros where the mask (B, M) is False."""
    if mask.all():  # as good as always; then there is nothing to pad, and nothing large to copy
        return torch.from_numpy(rows).view(*mask.shape, -1)
    padded = np.zeros((*mask.shape, rows.shape[1]), rows.dtype)
    padded[mask] = rows
    return torch.from_numpy(padded)


def patches_at(grid: tuple[int, int]) -> Tensor:
    """x and y of the middle of every patch of a grid in raster order, in patches.  (rows * columns, 2)"""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([cols.flatten(), rows.flatten()], dim=1) + 0.5
