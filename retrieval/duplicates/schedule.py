"""In which order candidates are compared, so that twenty copies of one photo cost twenty comparisons and not 190.

First the images that look like keepers with all their candidates. Two copies need not be compared with each other
where what they are copies of was; what remains is. Last, copies of copies: every image that a chain of confirmed
pairs leads to is held against the keeper itself. An enlarged cut-out of a mirrored copy has little in common with the
original that patches would find, yet the way from one to the other is known, link by link. Chained, the links say where
to look, and the pixels decide.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

import numpy as np

from ..geometry import inverse_numpy, square
from .groups import Pair

REACH = 64  # images to which chains are followed from one
LEAST_SHARED = 0.1  # of one of two images, for a chain to go on
GRID = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), -1).reshape(-1, 2)  # (64, 2), places in an image
Transform = np.ndarray  # (2, 3) from fractions of one image to fractions of another


def with_keepers(first: np.ndarray, second: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Which pairs have a likely keeper at one end: an image none of whose candidates comes before it and is one.

    first, second  (P,)  rows
    order          all rows in them, those to keep first
    returns        (P,)  bool
    """
    beside: dict[int, list[int]] = defaultdict(list)
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        beside[one].append(other)
        beside[other].append(one)
    keepers: set[int] = set()
    for row in order:
        if not keepers.intersection(beside[row]):
            keepers.add(row)
    return np.isin(first, list(keepers)) | np.isin(second, list(keepers))


def settled(first: np.ndarray, second: np.ndarray, pairs: Sequence[Pair], tried: set[tuple[int, int]]) -> np.ndarray:
    """Which candidates (P,) need no look of their own: what they are copies of is one image, or was compared.

    pairs  confirmed so far; that two lie in one collage says nothing of them
    tried  pairs (lower row, higher row) that were compared
    """
    like: dict[int, set[int]] = defaultdict(set)
    for pair in pairs:
        if pair.share_most:
            like[pair.first].add(pair.second)
            like[pair.second].add(pair.first)

    def known(one: int, other: int) -> bool:
        ones, others = like[one], like[other]  # of an image with very many copies they are not copied
        if one in others or not ones.isdisjoint(others):
            return True
        return any((min(a, b), max(a, b)) in tried for a in ones for b in others)

    return np.array([known(one, other) for one, other in zip(first.tolist(), second.tolist(), strict=True)], bool)


def untried_pairs(
    pairs: Sequence[Pair], order: Sequence[int], tried: set[tuple[int, int]]
) -> Iterator[tuple[int, int, Transform]]:
    """Pairs of rows that chains of confirmed ones connect and nobody compared, with the chained transform.

    pairs  those with `stays` are no copies of each other, and links of chains all the same
    order  all rows, those to keep first
    tried  pairs (lower row, higher row) that were compared
    Each image that is no copy of one before it that shares most with it is held against all that its chains lead to.
    """
    beside: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        beside[pair.first].append(pair)
        beside[pair.second].append(pair.turned())
    known = set(tried)
    served: set[int] = set()
    for row in order:
        if row in served or row not in beside:
            continue
        served |= {pair.second for pair in beside[row] if pair.share_most and not pair.stays}
        for other, way in _reached_from(row, beside).items():
            code = (min(row, other), max(row, other))
            if other != row and code not in known:
                known.add(code)
                yield row, other, way


def _reached_from(start: int, beside: dict[int, list[Pair]]) -> dict[int, Transform]:
    """The rows that pairs lead to, nearest first, with the transform from `start` along the shortest way.

    A way ends where nothing of the start is left: two photos of one collage share nothing.
    """
    ways: dict[int, Transform] = {start: np.eye(3)[:2]}
    waiting = deque([start])
    while waiting and len(ways) < REACH:
        row = waiting.popleft()
        for pair in beside[row]:
            if len(ways) >= REACH:  # an image may have thousands of copies
                break
            if pair.second in ways:
                continue
            assert pair.transform is not None
            way = (square(pair.transform) @ square(ways[row]))[:2]
            if _shared(way) >= LEAST_SHARED:
                ways[pair.second] = way
                waiting.append(pair.second)
    return ways


def _shared(way: Transform) -> float:
    """How much of one image lies on the other, as a share of the one of which that is more."""
    there, back = (np.abs(GRID @ one[:, :2].T + one[:, 2] - 0.5) < 0.5 for one in (way, inverse_numpy(way)))
    return float(max(there.all(1).mean(), back.all(1).mean()))
