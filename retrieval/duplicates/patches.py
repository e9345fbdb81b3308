"""How one image would have to be moved to lie on another, as their stored patches tell: plain or mirrored.

`retrieval.rerank.geometry` looks for shifts, turns and zooms; a mirrored copy has none. So the first image is
compared twice, once with its patches where they are and once with their places mirrored, and the better of the two
counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rerank.geometry import find_inliers, mutual_pairs
from ..rerank.patches import batch_patches

CHANCE = 0.35  # share of all pairs that the best transform gathers by chance: of one texture, or of nothing in common

# B images beside the first one


@dataclass(frozen=True, eq=False)
class Moves:
    """What B images have in common with one, by their patches.

    inlier_weight    (B,)       sum of the agreeing pairs' cosines above the floor, as reranking has it
    surplus    (B,)       what of it is more than chance
    transform  (B, 2, 2, 3)  from fractions of the one to fractions of the other: found plain, found mirrored
    """

    inlier_weight: Tensor
    surplus: Tensor
    transform: Tensor


def moves_between(first: bytes, others: Sequence[bytes]) -> Moves:
    """Compare an image's packed patches with those of others."""
    one, many = batch_patches([first]), batch_patches(others)
    pairs = mutual_pairs(one.tokens[0], many.tokens)
    rows, cols = one.grids[0]
    cells = torch.tensor([grid[::-1] for grid in many.grids], dtype=torch.float32)  # (B, 2) columns, rows
    mirrored = torch.stack([cols - one.at[0, :, 0], one.at[0, :, 1]], 1)  # (M, 2)
    # plain and mirrored together, for small tensors cost as much as large ones
    start = torch.cat([at[pairs.nearest] for at in (one.at[0], mirrored)])  # (2 * B, M, 2)
    found = find_inliers(pairs.cosine.repeat(2, 1), start, many.at.repeat(2, 1, 1))
    transforms = []
    for sign, transform in zip((1, -1), found.transform.chunk(2), strict=True):
        # other * cells = linear @ (x of cols or 1 - x of cols, y of rows) + shift
        linear, shift = transform.split((2, 1), dim=2)
        scaled = linear * torch.tensor([sign * cols, rows], dtype=torch.float32)
        moved = shift if sign == 1 else shift + linear[..., :1] * cols
        transforms.append(torch.cat([scaled, moved], 2) / cells[..., None])
    weight, best = found.weight.view(2, -1).max(0)  # (B,)
    chance = CHANCE * found.total.view(2, -1).gather(0, best[None])[0]
    return Moves(weight, (weight - chance).clamp(min=0), torch.stack(transforms, 1))
