"""Candidates in a better order, with what speaks for each: the arithmetic between the store's bytes and the results."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from indexer.descriptor.features import CropFeatures

from .evidence import MATCH_PROBABILITY, Box, Evidence
from .geometry import FLOOR, distinctiveness_of, far_apart, find_inliers, mutual_of
from .patches import batch_patches, patches_at
from .products import Factors, cosines

X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")

# B candidates, N patches of a view, M of a candidate (zero-padded), T numbers in a token

CHUNK = 50  # candidates that are compared at once at most; from one noisy sweep of 25 to 100 that shows no optimum


@dataclass(frozen=True, eq=False)
class Match:
    """What one candidate has in common with a query.

    inlier_weight  sum of the inliers' cosines above the floor; the larger, the less by chance
    pairs      (S, 5) float32: x, y in the query, x, y in the candidate, as fractions, and the cosine; best first
    transform  (2, 3) float32, affine from fractions of the query to those of the candidate; None without inliers
    query_patch, patch  width and height of a patch, as fractions of the query and of the candidate
    turn       of the query's crop, see `CropFeatures`
    """

    inlier_weight: float
    pairs: np.ndarray
    transform: np.ndarray | None
    query_patch: tuple[float, float] = (0.0, 0.0)
    patch: tuple[float, float] = (0.0, 0.0)
    turn: int = 0


NO_MATCH = Match(0.0, np.empty((0, 5), np.float32), None)


def glance(views: Sequence[CropFeatures], packed: Sequence[bytes]) -> np.ndarray:
    """How much B candidates have in common with every fourth patch of a query, wherever it lies.  (B,) float32

    Sum of the cosines above the floor of all mutual pairs; of several crops the heaviest counts. It takes a fifth of
    the time of a `Comparison`.
    """
    queries = [_query_of(view).thinned() for view in views]
    chunks = _chunks(packed)
    return np.concatenate([np.zeros(0, np.float32), *map_threads(_glance, [queries] * len(chunks), chunks)])


class Comparison:
    """A query's views against the patches of B candidates; of the crops the one with the heaviest inliers counts.

    inlier_weight    (B,) float32: sum of the inliers' cosines above the floor
    distinctiveness  (B,) float32: how far the inliers stand out, see `geometry.distinctiveness_of`. Two lawns have many
                     like patches, of which any may be paired with any: inlier_weight is high, distinctiveness is not
    """

    def __init__(self, views: Sequence[CropFeatures], packed: Sequence[bytes]) -> None:
        """packed  the candidates' patches, as the store has them"""
        self._queries = [_query_of(view) for view in views]
        chunks = _chunks(packed) if views else []
        self._chunk = len(chunks[0]) if chunks else 1
        self._parts = map_threads(_compare, [self._queries] * len(chunks), chunks)
        shape = (max(len(views), 1), len(packed))
        weight, distinctiveness = np.zeros(shape, np.float32), np.zeros(shape, np.float32)  # (V, B)
        for n, part in enumerate(self._parts):
            columns = slice(n * self._chunk, n * self._chunk + len(part.grids))
            weight[:, columns], distinctiveness[:, columns] = part.weight, part.distinctiveness
        self._best = weight.argmax(0)  # (B,)
        candidates = np.arange(len(packed))
        self.inlier_weight: np.ndarray = weight[self._best, candidates]
        self.distinctiveness: np.ndarray = distinctiveness[self._best, candidates]

    def consistency(self, n: int) -> float:
        """By how much candidate n's inliers stand out, on average: their distinctiveness over their number, in [0, 1].

        It is small where they might as well lie elsewhere; 0 without any.
        """
        if n >= len(self.distinctiveness) or not self.inlier_weight[n]:
            return 0.0
        is_inlier = self._parts[n // self._chunk].is_inlier[self._best[n], n % self._chunk]
        return float(self.distinctiveness[n] / is_inlier.sum())

    def match(self, n: int) -> Match:
        """What candidate n has in common with the query."""
        if n >= len(self.inlier_weight) or not self.inlier_weight[n]:
            return NO_MATCH
        view = int(self._best[n])
        part = self._parts[n // self._chunk]
        return _match(n % self._chunk, view, self._queries[view], part, float(self.inlier_weight[n]))


def map_threads(call: Callable[[X, Y], Z], xs: Sequence[X], ys: Sequence[Y]) -> list[Z]:
    """call(x, y) of each pair, in order, as many at once as torch may use threads; within a call no further ones.

    The tensors of one comparison are small: a thread for each of them gains more than several for each operation.
    """
    count = torch.get_num_threads()
    if len(xs) == 1 or count == 1:
        return list(map(call, xs, ys))
    return list(one_threaded_workers(count).map(call, xs, ys))


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process, for a forked one has no threads, and by threads
_making_pools = threading.Lock()


def one_threaded_workers(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch uses one thread.

    `torch.set_num_threads` is for the thread that calls it, and for all that the process begins later: so it is called
    in new threads only, and taken back before anyone else's thread is likely to begin.
    """
    with _making_pools:
        if (pool := _pools.get((os.getpid(), count))) is None:
            pool = ThreadPoolExecutor(count, thread_name_prefix="seenit-comparison")
            together = threading.Barrier(count)
            try:
                list(pool.map(_use_one_thread, [together] * count))
            finally:
                torch.set_num_threads(count)
            _pools[os.getpid(), count] = pool
        return pool


def _use_one_thread(together: threading.Barrier) -> None:
    torch.get_num_threads()  # a thread takes over the process's number when it first asks, and must not do so later
    torch.set_num_threads(1)
    together.wait()  # so that each of the pool's threads gets one of these calls


@dataclass(frozen=True, eq=False)
class _Query:
    """A view as it is compared.

    tokens  (N, T)  as they are multiplied
    at      (N, 2)  see `patches_at`
    apart   (N, N)  see `geometry.far_apart`
    """

    view: CropFeatures
    tokens: Factors
    at: Tensor
    apart: Tensor

    def thinned(self) -> Factors:
        """Every fourth of its patches, shifted from row to row."""
        rows, cols = np.indices(self.view.grid)
        return self.tokens.some(torch.from_numpy((cols + 2 * rows) % 4 == 0).flatten())


@lru_cache(maxsize=64)  # a view meets its candidates twice, at a glance and all over, and expansion asks again
def _query_of(view: CropFeatures) -> _Query:
    return _Query(view, Factors.of_query(view.tokens), *_geometry(view.grid))


@lru_cache(maxsize=16)
def _geometry(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    at = patches_at(grid)
    return at, far_apart(at)


@dataclass(frozen=True, eq=False)
class _Compared:
    """V views against B candidates; their tokens are not kept.

    grids            rows and columns of each candidate
    weight           (V, B)        float32, see `Comparison`
    distinctiveness  (V, B)        float32, likewise
    is_inlier        (V, B, M)     bool
    cosine, nearest  (V, B, M)     float32 and int64, see `geometry.Pairs`
    transform        (V, B, 2, 3)  float32
    at               (B, M, 2)     float32
    """

    grids: tuple[tuple[int, int], ...]
    weight: np.ndarray
    distinctiveness: np.ndarray
    is_inlier: np.ndarray
    cosine: np.ndarray
    nearest: np.ndarray
    transform: np.ndarray
    at: np.ndarray


def _compare(queries: Sequence[_Query], packed: Sequence[bytes]) -> _Compared:
    """The views one by one for what is large, and together where the tensors are so small that their number counts."""
    candidates = batch_patches(packed)
    tokens = Factors.of(candidates.tokens)
    similar = [cosines(tokens, query.tokens) for query in queries]  # (B, M, N) each
    pairs = [mutual_of(similarity) for similarity in similar]
    inliers = find_inliers(
        torch.cat([of_view.cosine for of_view in pairs]),
        torch.cat([query.at[of_view.nearest] for query, of_view in zip(queries, pairs, strict=True)]),
        candidates.at.repeat(len(queries), 1, 1),
    )
    is_inlier = inliers.is_inlier.unflatten(0, (len(queries), -1))  # (V, B, M)
    distinctiveness = [
        distinctiveness_of(of_view, mutual, similarity, query.apart)
        for of_view, mutual, similarity, query in zip(is_inlier, pairs, similar, queries, strict=True)
    ]
    return _Compared(
        grids=candidates.grids,
        weight=inliers.weight.reshape(is_inlier.shape[:2]).numpy(),
        distinctiveness=torch.stack(distinctiveness).numpy(),
        is_inlier=is_inlier.numpy(),
        cosine=torch.stack([of_view.cosine for of_view in pairs]).numpy(),
        nearest=torch.stack([of_view.nearest for of_view in pairs]).numpy(),
        transform=inliers.transform.reshape(*is_inlier.shape[:2], 2, 3).numpy(),
        at=candidates.at.numpy(),
    )


def _glance(queries: Sequence[Factors], packed: Sequence[bytes]) -> np.ndarray:
    tokens = Factors.of(batch_patches(packed).tokens)
    paired = torch.stack([mutual_of(cosines(tokens, query)).cosine for query in queries])  # (V, B, M)
    return (paired - FLOOR).clamp_(min=0).sum(2).amax(0).numpy()


def _chunks(packed: Sequence[bytes]) -> list[Sequence[bytes]]:
    """What is compared at once, with something to do for every thread."""
    size = max(1, min(CHUNK, -(-len(packed) // torch.get_num_threads())))
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def _match(n: int, v: int, query: _Query, compared: _Compared, inlier_weight: float) -> Match:
    """What candidate n of a chunk has in common with view v."""
    view = query.view
    (inliers,) = compared.is_inlier[v, n].nonzero()  # (S,)
    cosine = compared.cosine[v, n, inliers]
    order = np.argsort(-cosine, kind="stable")
    inliers, cosine = inliers[order], cosine[order]
    size = np.array(view.grid[::-1], np.float32)  # columns, rows of the view
    cells = np.array(compared.grids[n][::-1], np.float32)  # columns, rows of the candidate
    turn, corner = view.frame[:, :2], view.frame[:, 2]
    here = query.at.numpy()[compared.nearest[v, n, inliers]] / size @ turn.T + corner  # (S, 2)
    there = compared.at[n, inliers] / cells  # (S, 2)
    # candidate * cells = linear @ (size * turn^-1 (query - corner)) + shift
    linear, shift = np.split(compared.transform[v, n], (2,), axis=1)
    scaled = (linear * size) @ np.linalg.inv(turn) / cells[:, None]  # (2, 2)
    moved = shift / cells[:, None] - scaled @ corner[:, None]  # (2, 1)
    wide, high = np.abs(turn) @ (1 / size)  # of the box around a patch, which may be turned
    return Match(
        inlier_weight=inlier_weight,
        pairs=np.concatenate([here, there, cosine[:, None]], axis=1),
        transform=np.concatenate([scaled, moved], axis=1),
        query_patch=(float(wide), float(high)),
        patch=(1 / float(cells[0]), 1 / float(cells[1])),
        turn=view.turn,
    )


def to_evidence(match: Match, probability: float | None) -> Evidence:
    """A match as results tell it."""
    return Evidence(
        probability=probability,
        is_match=probability is not None and probability >= MATCH_PROBABILITY,
        num_inliers=len(match.pairs),
        pairs=match.pairs,
        transform=match.transform,
        box=box_of(match.pairs[:, 2:4], match.patch),
        query_box=box_of(match.pairs[:, :2], match.query_patch),
        turn=match.turn,
    )


def box_of(points: np.ndarray, patch: tuple[float, float]) -> Box | None:
    """The box around patches whose middles are `points` (S, 2), as fractions; None where there are none.

    patch  width and height of a patch, as fractions of the image
    """
    if not len(points):
        return None
    half = np.array(patch) / 2
    low, high = (points.min(0) - half).clip(0, 1), (points.max(0) + half).clip(0, 1)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])
