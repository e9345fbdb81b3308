"""Links to points of a graph that hardly any link leads to.

While HNSW (Malkov and Yashunin, 2018) grows, each point keeps links in different directions and drops the rest. So a
point in a dense place may end with two or three links towards it, and a search passes it by however thorough it is:
among 1,000,000 vectors a hundredth of the nearest ten was not found, by a search of 256 as by one of 1,536. Most lists
have empty places left. Here the nearest of such a point take it into theirs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .faiss_library import faiss
from .protocol import never

# Chosen on store_speed.py with 1,000,000 records: recall@10 .989 -> .9935, nine seconds more for the build
FEWEST = 6  # links towards a point
NEAREST = 12  # points that are asked to take it in
EF_SEARCH = 64  # for finding them
POINTS = 4096  # looked for at once
LISTS = 20_000  # read at once


def link_faint_points(index: Any, stop: Callable[[], bool] = never) -> int:
    """Give points that few links lead to more of them, where lists have room; how many were given.

    index  faiss.IndexHNSW, in memory and not mapped
    """
    lists = _Lists(index.hnsw, index.ntotal)
    given = 0
    faint = np.flatnonzero(lists.incoming() < FEWEST)
    for start in range(0, len(faint), POINTS):
        if stop():
            break
        points = faint[start : start + POINTS]
        vectors = np.stack([index.reconstruct(int(point)) for point in points])
        parameters = faiss().SearchParametersHNSW(efSearch=EF_SEARCH)
        _, near = index.search(vectors, min(NEAREST, index.ntotal), params=parameters)
        given += lists.extend(near.ravel(), np.repeat(points, near.shape[1]))
    return given


class _Lists:
    """The lowest level's lists of neighbours, as they lie in the graph's own memory: places filled first, then -1."""

    def __init__(self, hnsw: Any, count: int) -> None:
        self._count = count
        self._width = hnsw.cum_nb_neighbors(1)
        self._first = faiss().rev_swig_ptr(hnsw.offsets.data(), count + 1).astype(np.int64)[:-1]
        self._links = faiss().rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())  # int32, written to

    def of(self, points: np.ndarray) -> np.ndarray:
        """(P, width) int32"""
        return np.asarray(self._links[self._first[points, None] + np.arange(self._width)])

    def incoming(self) -> np.ndarray:
        """How many links lead to each point.  (N,) int64"""
        total = np.zeros(self._count, np.int64)
        for start in range(0, self._count, LISTS):
            links = self.of(np.arange(start, min(start + LISTS, self._count)))
            total += np.bincount(links[links >= 0], minlength=self._count)
        return total

    def extend(self, owners: np.ndarray, points: np.ndarray) -> int:
        """Write each point (E,) into its owner's list (E,) where it is not there yet and has room; how many fitted."""
        apart = (owners >= 0) & (owners != points)
        owners, points = owners[apart], points[apart]
        order = np.argsort(owners, kind="stable")
        owners, points = owners[order], points[order]
        lists = self.of(owners)
        new = ~(lists == points[:, None]).any(1)
        owners, points, room = owners[new], points[new], (lists[new] < 0).sum(1)
        rank = np.arange(len(owners)) - np.searchsorted(owners, owners)  # among those for the same owner
        fits = rank < room
        self._links[(self._first[owners] + self._width - room + rank)[fits]] = points[fits]
        return int(fits.sum())
