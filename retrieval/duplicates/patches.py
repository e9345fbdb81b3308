"""How one image would have to be moved to lie on another, as their stored patches tell: plain or mirrored.

`retrieval.rerank.geometry` looks for shifts, turns and zooms; a mirrored copy has none. So the first image is
compared twice, once with its patches where they are and once with their places mirrored, and the better of the two
counts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..rerank.geometry import find_inliers, mutual_pairs
from ..rerank.patches import PatchBatch

CHANCE = 0.35  # share of all pairs that the best transform gathers by chance: of one texture, or of nothing in common

# B images, P pairs of them, M patches of one


@dataclass(frozen=True, eq=False)
class PatchMoves:
    """What the patches of P pairs of images have in common.

    surplus    (P,)           float32, sum of the agreeing pairs' cosines above the floor, beyond chance
    transform  (P, 2, 2, 3)   float32, from fractions of the first to the second's: found plain, found mirrored
    """

    surplus: np.ndarray
    transform: np.ndarray


def moves_between(patches: PatchBatch, first: Tensor, second: Tensor) -> PatchMoves:
    """Compare the patches of pairs of B images; first and second are (P,) int64, each pair's places among them."""
    pairs = mutual_pairs(*(patches.tokens.index_select(0, one) for one in (first, second)))
    cells = torch.tensor([grid[::-1] for grid in patches.grids], dtype=torch.float32)  # (B, 2) columns, rows
    at, own = patches.at[first], cells[first, None]  # (P, M, 2), (P, 1, 2)
    mirrored = torch.stack([own[..., 0] - at[..., 0], at[..., 1]], 2)
    partner = pairs.nearest[..., None].expand(-1, -1, 2)
    # plain and mirrored together, for small tensors cost as much as large ones
    start = torch.cat([one.gather(1, partner) for one in (at, mirrored)])  # (2 * P, M, 2)
    found = find_inliers(pairs.cosine.repeat(2, 1), start, patches.at[second].repeat(2, 1, 1))
    transforms = []
    for sign, transform in zip((1, -1), found.transform.chunk(2), strict=True):
        # other * cells = linear @ (x of cols or 1 - x of cols, y of rows) + shift
        linear, shift = transform.split((2, 1), dim=2)
        scaled = linear * own * torch.tensor([sign, 1])
        moved = shift if sign == 1 else shift + linear[..., :1] * own[..., :1]
        transforms.append(torch.cat([scaled, moved], 2) / cells[second, :, None])
    weight, best = found.weight.view(2, -1).max(0)  # (P,)
    chance = CHANCE * found.total.view(2, -1).gather(0, best[None])[0]
    return PatchMoves((weight - chance).clamp(min=0).numpy(), torch.stack(transforms, 1).numpy())
