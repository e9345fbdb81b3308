"""Candidates in a better order, with what speaks for each: the arithmetic between the store's bytes and the results."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from indexer.descriptor.features import CropFeatures
from indexer.descriptor.patch_codec import read_codes

from .colour import colour_difference
from .evidence import MATCH_PROBABILITY, Box, Evidence
from .geometry import FLOOR, distinctiveness_of, far_apart, find_inliers, mutual_of
from .patches import FactorBatch, batch_factors, batch_tokens, patches_at
from .products import Factors, cosines

X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")

# B candidates, V views of one grid, N patches of each, M of a candidate (zero-padded), T numbers in a token

CHUNK = 50  # candidates that are compared at once at most; from one noisy sweep of 25 to 100 that shows no optimum
GLANCED = 4 * CHUNK  # the same of a glance, which takes a quarter of the memory; not tuned


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
    of_grids = _by_grid(tuple(views))
    chunks = _chunks(packed, GLANCED)
    return np.concatenate([np.zeros(0, np.float32), *map_threads(_glance, [of_grids] * len(chunks), chunks)])


class Comparison:
    """A query's views against the patches of B candidates; of the crops the one with the heaviest inliers counts.

    inlier_weight    (B,) float32: sum of the inliers' cosines above the floor
    distinctiveness  (B,) float32: how far the inliers stand out, see `geometry.distinctiveness_of`. Two lawns have many
                     like patches, of which any may be paired with any: inlier_weight is high, distinctiveness is not
    """

    def __init__(self, views: Sequence[CropFeatures], packed: Sequence[bytes]) -> None:
        """packed  the candidates' patches, as the store has them"""
        self._of_grids = _by_grid(tuple(views))
        chunks = _chunks(packed, CHUNK) if views else []
        self._chunk = len(chunks[0]) if chunks else 1
        self._parts = list(map_threads(_compare, [self._of_grids] * len(chunks), chunks))
        shape = (max(len(views), 1), len(packed))
        weight, distinctiveness = np.zeros(shape, np.float32), np.zeros(shape, np.float32)  # (views of all grids, B)
        for n, parts in enumerate(self._parts):
            columns = slice(n * self._chunk, n * self._chunk + len(parts[0].grids))
            weight[:, columns] = np.concatenate([part.weight for part in parts])
            distinctiveness[:, columns] = np.concatenate([part.distinctiveness for part in parts])
        self._best = weight.argmax(0)  # (B,)
        candidates = np.arange(len(packed))
        self.inlier_weight: np.ndarray = weight[self._best, candidates]
        self.distinctiveness: np.ndarray = distinctiveness[self._best, candidates]
        self._colour_difference: dict[int, float | None] = {}  # of those that were asked for: they are so repeatedly

    def consistency(self, n: int) -> float:
        """By how much candidate n's inliers stand out, on average: their distinctiveness over their number, in [0, 1].

        It is small where they might as well lie elsewhere; 0 without any.
        """
        if n >= len(self.distinctiveness) or not self.inlier_weight[n]:
            return 0.0
        view, grid = self._best_view(n)
        is_inlier = self._parts[n // self._chunk][grid].is_inlier[view, n % self._chunk]
        return float(self.distinctiveness[n] / is_inlier.sum())

    def colour_difference(self, n: int) -> float | None:
        """By how much candidate n's inliers differ in colour, see `colour.colour_difference`; None if not known."""
        if n >= len(self.inlier_weight) or not self.inlier_weight[n]:
            return None
        if n not in self._colour_difference:
            self._colour_difference[n] = self._compare_colours(n)
        return self._colour_difference[n]

    def _compare_colours(self, n: int) -> float | None:
        view, grid = self._best_view(n)
        part, row = self._parts[n // self._chunk][grid], n % self._chunk
        of_query = self._of_grids[grid].views[view].colours
        if part.colours is None or of_query is None:
            return None
        (inliers,) = part.is_inlier[view, row].nonzero()
        return colour_difference(of_query[part.nearest[view, row, inliers]], part.colours[row, inliers])

    def match(self, n: int) -> Match:
        """What candidate n has in common with the query."""
        if n >= len(self.inlier_weight) or not self.inlier_weight[n]:
            return NO_MATCH
        view, grid = self._best_view(n)
        part = self._parts[n // self._chunk][grid]
        return _match(n % self._chunk, view, self._of_grids[grid], part, float(self.inlier_weight[n]))

    def _best_view(self, n: int) -> tuple[int, int]:
        """The view with candidate n's heaviest inliers, by its number among those of its grid, and the grid's."""
        view, grid = int(self._best[n]), 0
        while view >= len(self._of_grids[grid].views):
            view, grid = view - len(self._of_grids[grid].views), grid + 1
        return view, grid


def map_threads(call: Callable[[X, Y], Z], xs: Sequence[X], ys: Sequence[Y]) -> Iterator[Z]:
    """call(x, y) of each pair, in order, as many at once as torch may use threads; within a call no further ones.

    The tensors of one comparison are small: a thread for each of them gains more than several for each operation.
    """
    count = torch.get_num_threads()
    if len(xs) == 1 or count == 1:
        return map(call, xs, ys)
    return one_threaded_workers(count).map(call, xs, ys)


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
class _Views:
    """Views of one grid as they are compared.

    tokens   (V * N, T)      as they are multiplied
    thinned  (V * N / 4, T)  every fourth of each view's patches, shifted from row to row
    at       (N, 2)          see `patches_at`
    apart    (N, N)          see `geometry.far_apart`
    placed   of each view how it lies in the query, see `_placed`
    """

    views: tuple[CropFeatures, ...]
    tokens: Factors
    thinned: Factors
    at: Tensor
    apart: Tensor
    placed: tuple["_Placed", ...]

    def similarity(self, candidates: Factors, tokens: Factors) -> Tensor:
        """Cosines (B, M, V, N) of the candidates' patches with `tokens` (V * N, T), in one product.  float32"""
        return cosines(candidates, tokens).unflatten(2, (len(self.views), -1))


@lru_cache(maxsize=64)  # views meet their candidates twice, at a glance and all over, and expansion asks again
def _by_grid(views: tuple[CropFeatures, ...]) -> tuple[_Views, ...]:
    """Views of one grid together, for one pass is quicker than several."""
    by_grid: dict[tuple[int, int], list[CropFeatures]] = {}
    for view in views:
        by_grid.setdefault(view.grid, []).append(view)
    return tuple(_of_one_grid(grid, tuple(some)) for grid, some in by_grid.items())


def _of_one_grid(grid: tuple[int, int], views: tuple[CropFeatures, ...]) -> _Views:
    tokens = Factors.of_query(np.concatenate([view.tokens for view in views]))
    rows, cols = np.indices(grid)
    fourth = np.tile(((cols + 2 * rows) % 4 == 0).ravel(), len(views))
    return _Views(views, tokens, tokens.some(torch.from_numpy(fourth)), *_geometry(grid), tuple(map(_placed, views)))


_Placed = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]


def _placed(view: CropFeatures) -> _Placed:
    """Turn (2, 2) and corner (2,) of a view's frame, the turn's inverse, and the box around a patch, as fractions."""
    turn, corner = view.frame[:, :2], view.frame[:, 2]
    wide, high = np.abs(turn) @ (1 / np.array(view.grid[::-1], np.float32))  # for it may be turned
    return turn, corner, np.linalg.inv(turn), (float(wide), float(high))


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
    colours          (B, M, 2)     int8; None where one of the candidates has none
    """

    grids: tuple[tuple[int, int], ...]
    weight: np.ndarray
    distinctiveness: np.ndarray
    is_inlier: np.ndarray
    cosine: np.ndarray
    nearest: np.ndarray
    transform: np.ndarray
    at: np.ndarray
    colours: np.ndarray | None


def _compare(of_grids: Sequence[_Views], packed: Sequence[bytes]) -> list[_Compared]:
    """The views of each grid against the candidates."""
    candidates = batch_factors(packed)
    return [_compare_views(views, candidates) for views in of_grids]


def _compare_views(views: _Views, candidates: FactorBatch) -> _Compared:
    similarity = views.similarity(candidates.tokens, views.tokens)  # (B, M, V, N)
    pairs = mutual_of(similarity)
    shape = pairs.cosine.shape[:2]
    inliers = find_inliers(
        pairs.cosine.flatten(0, 1),
        views.at[pairs.nearest.flatten(0, 1)],
        candidates.at.expand(len(views.views), -1, -1, -1).flatten(0, 1),
    )
    is_inlier = inliers.is_inlier.unflatten(0, shape)  # (V, B, M)
    return _Compared(
        grids=candidates.grids,
        weight=inliers.weight.unflatten(0, shape).numpy(),
        distinctiveness=distinctiveness_of(is_inlier, pairs, similarity.permute(2, 0, 1, 3), views.apart).numpy(),
        is_inlier=is_inlier.numpy(),
        cosine=pairs.cosine.numpy(),
        nearest=pairs.nearest.numpy(),
        transform=inliers.transform.unflatten(0, shape).numpy(),
        at=candidates.at.numpy(),
        colours=None if candidates.colours is None else candidates.colours.numpy(),
    )


def _glance(of_grids: Sequence[_Views], packed: Sequence[bytes]) -> np.ndarray:
    candidates = batch_tokens(read_codes(packed))
    cosine_of = [views.similarity(candidates, views.thinned) for views in of_grids]  # (B, M, V, N) each
    paired = [mutual_of(similarity, overwrite=True).cosine for similarity in cosine_of]  # (V, B, M) each
    return (torch.cat(paired) - FLOOR).clamp_(min=0).sum(2).amax(0).numpy()


def _chunks(packed: Sequence[bytes], most: int) -> list[Sequence[bytes]]:
    """What is compared at once, with something to do for every thread."""
    size = max(1, min(most, -(-len(packed) // torch.get_num_threads())))
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def _match(n: int, v: int, views: _Views, compared: _Compared, inlier_weight: float) -> Match:
    """What candidate n of a chunk has in common with view v."""
    view, (turn, corner, turned_back, patch) = views.views[v], views.placed[v]
    (inliers,) = compared.is_inlier[v, n].nonzero()  # (S,)
    cosine = compared.cosine[v, n, inliers]
    order = np.argsort(-cosine, kind="stable")
    inliers, cosine = inliers[order], cosine[order]
    size = np.array(view.grid[::-1], np.float32)  # columns, rows of the view
    cells = np.array(compared.grids[n][::-1], np.float32)  # columns, rows of the candidate
    here = views.at.numpy()[compared.nearest[v, n, inliers]] / size @ turn.T + corner  # (S, 2)
    there = compared.at[n, inliers] / cells  # (S, 2)
    # candidate * cells = linear @ (size * turn^-1 (query - corner)) + shift
    linear, shift = np.split(compared.transform[v, n], (2,), axis=1)
    scaled = (linear * size) @ turned_back / cells[:, None]  # (2, 2)
    moved = shift / cells[:, None] - scaled @ corner[:, None]  # (2, 1)
    return Match(
        inlier_weight=inlier_weight,
        pairs=np.concatenate([here, there, cosine[:, None]], axis=1),
        transform=np.concatenate([scaled, moved], axis=1),
        query_patch=patch,
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
