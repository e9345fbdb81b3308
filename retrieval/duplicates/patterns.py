"""Whole pictures as small grey patterns that can be compared in all eight positions, which descriptors cannot.

A picture that was turned by a quarter, stood on its head or mirrored lies far away in the space of descriptors, for a
house on its head is no house. Its pattern is the same one turned. So patterns find the copies that show the whole
picture, in whichever position; descriptors and patches find those that show a part of it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .candidates import Candidates, near_pairs
from .proof import normalised

# N pictures, P pairs

SIDE = 16  # cells of a pattern's sides
WINDOW = 5  # cells within which contrast is evened out
NEIGHBOURS = 8  # of each picture in each position
PAIRS_AT_ONCE = 16_384


def patterns_of(thumbnails: Tensor) -> np.ndarray:
    """Grey squares to patterns.

    thumbnails  (N, S, S)  float32 in [0, 255], S a multiple of SIDE
    returns     (N, SIDE * SIDE)  float16, L2-normalised; zeros where a picture is flat
    """
    small = avg_pool2d(thumbnails[:, None], thumbnails.shape[-1] // SIDE)
    flat = normalised(small, WINDOW).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-3)).half().numpy()


def positions() -> list[Callable[[np.ndarray], np.ndarray]]:
    """The eight ways to lay patterns (N, SIDE * SIDE): turned by quarters, mirrored or not. The first one is as is."""
    return [partial(_laid, quarters=quarters, mirrored=mirrored) for mirrored in (False, True) for quarters in range(4)]


def _laid(rows: np.ndarray, quarters: int, mirrored: bool) -> np.ndarray:
    squares = rows.reshape(-1, SIDE, SIDE)
    squares = squares[:, :, ::-1] if mirrored else squares
    return np.ascontiguousarray(np.rot90(squares, quarters, (1, 2))).reshape(len(rows), -1)


def alike_in_any_position(
    rows: np.ndarray, least: float, report: Callable[[int], None] = lambda done: None
) -> Candidates:
    """Pairs whose patterns (N, SIDE * SIDE) correlate with `least` or more in one of the positions."""
    return near_pairs(rows, least, NEIGHBOURS, versions=positions(), report=report)


def likeness(rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The best correlation over all positions of some pairs of patterns.  (P,) float32"""
    best = np.full(len(first), -1, np.float32)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        one, other = (torch.from_numpy(rows[at[part]].astype(np.float32)) for at in (first, second))
        for lay in positions():
            turned = torch.from_numpy(lay(one.numpy()))
            best[part] = np.maximum(best[part], (turned * other).sum(1).numpy())
    return best
