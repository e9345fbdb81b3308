"""Images as small grey patterns that can be compared in all eight positions, and part with whole.

An image that was turned by a quarter, stood on its head or mirrored lies far away in the space of descriptors, for a
house on its head is no house. Its pattern is the same one turned. So patterns find the copies that show the whole
image, in whichever position; descriptors and patches find those that show a part of it. A collage of two or four is
like none of what it is made of, but its halves or quarters are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .candidates import DuplicateCandidates, near_pairs
from .mapped import mapped
from .proof import normalised

# N images, P pairs

SIDE = 16  # cells of a pattern's sides
WINDOW = 5  # cells within which contrast is evened out
NEIGHBOURS = 8  # of each image in each position
PAIRS_AT_ONCE = 4096
QUARTERS = tuple((left, top, 0.5, 0.5) for top in (0, 0.5) for left in (0, 0.5))
HALVES = ((0, 0, 1, 0.5), (0, 0.5, 1, 0.5), (0, 0, 0.5, 1), (0.5, 0, 0.5, 1))
PARTS = QUARTERS + HALVES  # left, top, width and height as fractions of an image


@dataclass(frozen=True, eq=False)
class Patterns:
    """What N images look like, all of them and in parts; zeros, which are like nothing, for those without an image.

    whole  (N, SIDE * SIDE)         float16, L2-normalised
    parts  (N, PARTS, SIDE * SIDE)  likewise, mapped from a file that is gone when this is
    """

    whole: np.ndarray
    parts: np.ndarray


def empty_patterns(count: int) -> Patterns:
    """Zeros, to be filled in."""
    return Patterns(np.zeros((count, SIDE * SIDE), np.float16), mapped(np.float16, count, len(PARTS), SIDE * SIDE))


def patterns_of(thumbnails: Tensor) -> np.ndarray:
    """Grey squares to patterns.

    thumbnails  (N, S, S)  float32 in [0, 255], S a multiple of SIDE
    returns     (N, SIDE * SIDE)  float16, L2-normalised; zeros where an image is flat
    """
    flat = normalised(adaptive_avg_pool2d(thumbnails[:, None], SIDE), WINDOW).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-3)).half().numpy()


def patterns_of_parts(thumbnails: Tensor) -> np.ndarray:
    """Likewise of every one of PARTS, S a multiple of 2 * SIDE.  (N, PARTS, SIDE * SIDE)"""
    side = thumbnails.shape[-1]
    parts = []
    for part in PARTS:
        left, top, width, height = (round(side * share) for share in part)
        parts.append(patterns_of(thumbnails[:, top : top + height, left : left + width]))
    return np.stack(parts, 1)


def positions() -> list[Callable[[np.ndarray], np.ndarray]]:
    """The eight ways to lay patterns (N, SIDE * SIDE): turned by quarters, mirrored or not. The first one is as is."""
    return [partial(_laid, quarters=quarters, mirrored=mirrored) for mirrored in (False, True) for quarters in range(4)]


def _laid(rows: np.ndarray, quarters: int, mirrored: bool) -> np.ndarray:
    squares = rows.reshape(-1, SIDE, SIDE)
    squares = squares[:, :, ::-1] if mirrored else squares
    return np.ascontiguousarray(np.rot90(squares, quarters, (1, 2))).reshape(len(rows), -1)


def alike_in_any_position(
    rows: np.ndarray, least: float, report: Callable[[int], None] = lambda done: None
) -> DuplicateCandidates:
    """Pairs whose patterns (N, SIDE * SIDE) correlate with `least` or more in one of the positions."""
    versions = [partial(lambda lay, block: lay(rows[block]), lay) for lay in positions()]
    return near_pairs(rows, least, NEIGHBOURS, versions=versions, report=report)


def alike_in_part(
    patterns: Patterns, least: float, report: Callable[[int], None] = lambda done: None
) -> DuplicateCandidates:
    """Pairs of which one has a part that correlates with all of the other with `least` or more."""
    versions = [partial(lambda part, block: patterns.parts[block, part], part) for part in range(len(PARTS))]
    return near_pairs(patterns.whole, least, NEIGHBOURS, versions=versions, report=report)


def likeness(rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best correlation over all positions of some pairs of patterns, and the position.  (P,) float32, (P,) int64"""
    best, position = np.full(len(first), -1, np.float32), np.zeros(len(first), np.int64)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        one, other = (torch.from_numpy(rows[at[part]].astype(np.float32)) for at in (first, second))
        alike = torch.stack([(torch.from_numpy(lay(one.numpy())) * other).sum(1) for lay in positions()])  # (8, P)
        best[part], position[part] = (of_pairs.numpy() for of_pairs in alike.max(0))
    return best, position


def whole_on_whole(position: np.ndarray) -> np.ndarray:
    """How pairs lie whose patterns are most alike in a position (P,).

    returns  (P, 2, 3) float32, from fractions of the first to fractions of the second
    """
    return _turns()[position]


@cache
def _turns() -> np.ndarray:
    """The transforms (8, 2, 3) of `positions`, as they move the places of the cells."""
    middles = (np.arange(SIDE) + 0.5) / SIDE
    places = np.stack([np.tile(middles, SIDE), np.repeat(middles, SIDE)])  # (2, SIDE * SIDE)
    sources = [np.concatenate([lay(places), np.ones((1, SIDE * SIDE))]) for lay in positions()]
    return np.stack([np.linalg.lstsq(one.T, places.T, rcond=None)[0].T.round(6) for one in sources]).astype(np.float32)


def whole_in_part(patterns: Patterns, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How some pairs lie where one of each is a part of the other.

    returns  (P, 2, 3) float32, from fractions of the first to fractions of the second
    """
    boxes = np.array([[[width, 0, left], [0, height, top]] for left, top, width, height in PARTS], np.float32)
    back = np.array([[[1 / w, 0, -left / w], [0, 1 / h, -top / h]] for left, top, w, h in PARTS], np.float32)
    ways = np.concatenate([boxes, back])  # the first is a part of the second, or around it
    best = np.empty(len(first), np.int64)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        block = slice(start, start + PAIRS_AT_ONCE)
        ends = ((first[block], second[block]), (second[block], first[block]))
        alike = [
            np.einsum("pc,pnc->pn", patterns.whole[one], patterns.parts[around], dtype=np.float32)
            for one, around in ends
        ]
        best[block] = np.concatenate(alike, 1).argmax(1)
    return ways[best]
