"""In which order candidates are compared, so that twenty copies of one photo cost twenty comparisons and not 190.

First the pictures that look like keepers with all their candidates. Two copies need not be compared with each other
where what they are copies of was; what remains is. Last, copies of copies: every picture that a chain of confirmed
pairs leads to is held against the keeper itself. An enlarged cut-out of a mirrored copy has little in common with the
original that patches would find, yet the way from one to the other is known, link by link. Chained, the links say where
to look, and the pixels decide.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

import numpy as np

from .groups import Pair

ROUNDS = 6  # keepers of one chain that are tried
Transform = np.ndarray  # (2, 3) from fractions of one picture to fractions of another


def with_keepers(first: np.ndarray, second: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Which pairs have a likely keeper at one end: a picture none of whose candidates comes before it and is one.

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
    """Which candidates (P,) need no look of their own: what they are copies of is one picture, or was compared.

    pairs  confirmed so far
    tried  pairs (lower row, higher row) that were compared
    """
    like: dict[int, set[int]] = defaultdict(set)
    for pair in pairs:
        like[pair.first].add(pair.second)
        like[pair.second].add(pair.first)

    def known(one: int, other: int) -> bool:
        ones, others = like[one], like[other]
        if not (ones | {one}).isdisjoint(others | {other}):
            return True
        return any((min(a, b), max(a, b)) in tried for a in ones for b in others)

    return np.array([known(one, other) for one, other in zip(first.tolist(), second.tolist(), strict=True)], bool)


def untried_pairs(
    pairs: Sequence[Pair], order: Sequence[int], tried: set[tuple[int, int]]
) -> Iterator[tuple[int, int, Transform]]:
    """Pairs of rows that chains of confirmed ones connect and nobody compared, with the chained transform.

    order  all rows, those to keep first
    tried  pairs (lower row, higher row) that were compared
    For each chain the first keeper with all the others; where some do not belong to it, the first of those with the
    rest, and so on.
    """
    beside: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        beside[pair.first].append(pair)
        beside[pair.second].append(pair.turned())
    rank = {row: n for n, row in enumerate(order)}
    seen: set[int] = set()
    for start in order:
        if start in seen or start not in beside:
            continue
        reached = _reached_from(start, beside)
        seen |= reached.keys()
        free = sorted(reached, key=rank.__getitem__) if len(reached) > 2 else []
        for _ in range(ROUNDS):
            if len(free) < 2:
                break
            keeper, others = free[0], free[1:]
            ways = _reached_from(keeper, beside)
            own = {pair.second for pair in beside[keeper]}
            for row in others:
                if (min(keeper, row), max(keeper, row)) not in tried:
                    yield keeper, row, ways[row]
            free = [row for row in others if row not in own]


def _reached_from(start: int, beside: dict[int, list[Pair]]) -> dict[int, Transform]:
    """Every row that pairs lead to, with the transform from `start` along the shortest way."""
    ways: dict[int, Transform] = {start: np.eye(3)[:2]}
    waiting = deque([start])
    while waiting:
        row = waiting.popleft()
        for pair in beside[row]:
            if pair.second not in ways:
                assert pair.transform is not None
                ways[pair.second] = (_square(pair.transform) @ _square(ways[row]))[:2]
                waiting.append(pair.second)
    return ways


def _square(transform: Transform) -> np.ndarray:
    return np.vstack([transform, (0, 0, 1)])
