"""Groups of rows that are linked, from edges that pass by; and groups that grew too large, cut where links are weak.

Being a copy is no equivalence: of a chain of images each resembles the next, and the ends may show different things.
So a group that is larger than it may be is taken apart by asking more of its links, until its pieces are small enough.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

STEP = 0.05  # by which more is asked of the links of a group that is too large
STRICTEST = 0.95  # links over this are kept however many they are


class Edges(Protocol):
    """Arrays of EDGE (see `neighbours`), the same ones each time that it is walked over."""

    def __iter__(self) -> Iterator[np.ndarray]: ...


# N rows
def components(count: int, links: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The smallest row of the component of each row, (N,) int64.

    links  pairs of arrays of rows, linked one to one

    for a, b in links: union(a, b); label[n] = find(n)
    Here all of a shard's links at once: each hooks the larger root to the smaller one, as long as any two differ.
    """
    parent = np.arange(count)
    for first, second in links:
        a, b = first.astype(np.int64), second.astype(np.int64)
        while len(a):
            a, b = _roots(parent, a), _roots(parent, b)
            apart = a != b
            a, b = a[apart], b[apart]
            np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
    return _roots(parent, np.arange(count))


def bounded_components(
    count: int, edges: Edges, above: float, largest: int, alike: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Components of the edges above a similarity, none larger than `largest` but for links over STRICTEST.

    alike    (N,) a row that each row is equal to, for rows that are linked in any case
    returns  the smallest row of the group of each row, (N,) int64; and how many components were cut
    """
    weights = np.ones(count, np.int64)  # equal rows count as the one that stands for them
    label = np.arange(count)
    if alike is not None:
        label, weights = alike.copy(), (alike == label).astype(np.int64)
    groups = components(count, _links(edges, above, label))[label]
    too_large = np.bincount(groups, weights, count)[groups] > largest
    num_cut = len(np.unique(groups[too_large]))
    while too_large.any() and above + STEP <= STRICTEST:
        above += STEP
        pieces = components(count, _links(edges, above, label, too_large))[label]
        groups = np.where(too_large, pieces, groups)
        too_large &= np.bincount(groups, weights, count)[groups] > largest
    return groups, num_cut


def _links(
    edges: Edges, above: float, label: np.ndarray, among: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for shard in edges:
        strong = shard[shard["similarity"] > above]
        if among is not None:
            strong = strong[among[strong["row"]] & among[strong["neighbour"]]]
        yield label[strong["row"]], label[strong["neighbour"]]


def _roots(parent: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The root of each row; paths that were walked are shortened to it."""
    roots = parent[rows]
    while True:
        above = parent[roots]
        if np.array_equal(above, roots):
            break
        roots = above
    parent[rows] = roots
    return roots
