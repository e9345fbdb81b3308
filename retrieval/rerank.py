"""Candidates in a better order, with what speaks for each: the arithmetic between the store's bytes and the results."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from indexer.checkpoint import best_dtype
from indexer.embed import View
from indexer.patch_codec import unpack_patches

from .calibrate import BELIEVED
from .evidence import Box, Evidence
from .match import Agreement, Pairs, agree, distinct_support, mutual_pairs

X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")

# B candidates, N patches of a view, M of a candidate (zero-padded), T numbers in a token

SUPPORT_SCALE = 6.0  # support at which agreement has gone 63 % of its way from 0 to 1
DISTINCT_SCALE = 3.0  # likewise of what is distinct
LARGEST_HEAT = 256  # rows and columns of a heat map
CHUNK = 256  # candidates that are compared at once


@dataclass(frozen=True, eq=False)
class Candidates:
    """Patches of B pictures side by side.

    tokens  (B, M, T)  float32, L2-normalised, zero-padded
    mask    (B, M)     True where the patch is real
    at      (B, M, 2)  float32, x and y of each patch's middle, in patches
    grids   rows and columns of each picture
    """

    tokens: Tensor
    mask: Tensor
    at: Tensor
    grids: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Match:
    """What one candidate has in common with a query.

    support    sum of the agreeing pairs' cosines above the floor; the larger, the less by chance
    pairs      (S, 5) float32: x, y in the query, x, y in the candidate, as fractions, and the cosine; best first
    transform  (2, 3) float32, affine from fractions of the query to those of the candidate; None where nothing agrees
    query_patch, patch  width and height of a patch, as fractions of the query and of the candidate
    """

    support: float
    pairs: np.ndarray
    transform: np.ndarray | None
    query_patch: tuple[float, float] = (0.0, 0.0)
    patch: tuple[float, float] = (0.0, 0.0)


NO_MATCH = Match(0.0, np.empty((0, 5), np.float32), None)


def fused(cosine: np.ndarray, support: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    """Scores in [-1, 1] of candidates, each (B,): half their global cosine, half how far their patches agree."""
    return 0.5 * cosine + 0.25 * saturated(support, SUPPORT_SCALE) + 0.25 * saturated(distinct, DISTINCT_SCALE)


def saturated(support: np.ndarray, scale: float) -> np.ndarray:
    """Support as a number in [0, 1): what a picture has in common beyond some ten patches adds little."""
    return 1 - np.exp(-support / scale)


class Comparison:
    """A query's views against the patches of B candidates; of the views the one that agrees most counts.

    support   (B,) float32: sum of the agreeing pairs' cosines above the floor
    distinct  (B,) float32: how far they stand out, see `match.distinct_support`. Two lawns have many like patches, of
              which any may be paired with any: support is high, distinct is not
    """

    def __init__(self, views: Sequence[View], packed: Sequence[bytes]) -> None:
        """packed  the candidates' patches, as the store has them"""
        self._views = views
        self._parts = [_compare(views, packed[start : start + CHUNK]) for start in range(0, len(packed), CHUNK)]
        by_view = torch.zeros(len(packed), max(len(views), 1))  # (B, V)
        distinct = torch.zeros_like(by_view)
        for n, part in enumerate(self._parts):
            for view, one in enumerate(part):
                rows = slice(n * CHUNK, (n + 1) * CHUNK)
                by_view[rows, view], distinct[rows, view] = one.agreement.weight, one.distinct
        support, self._best = by_view.max(1)  # (B,)
        self.support: np.ndarray = support.numpy()
        self.distinct: np.ndarray = distinct.gather(1, self._best[:, None])[:, 0].numpy()

    def agreement(self, n: int) -> float:
        """How far candidate n's patches agree with the query's and with nothing else, in [0, 1)."""
        return float(saturated(self.distinct[n], DISTINCT_SCALE)) if n < len(self.distinct) else 0.0

    def match(self, n: int) -> Match:
        """What candidate n has in common with the query."""
        if n >= len(self.support) or not self.support[n]:
            return NO_MATCH
        view = int(self._best[n])
        return _match(n % CHUNK, self._views[view], self._parts[n // CHUNK][view], float(self.support[n]))


def in_threads(call: Callable[[X, Y], Z], xs: Sequence[X], ys: Sequence[Y]) -> list[Z]:
    """call(x, y) of each pair, in order, as many at once as torch may use threads.

    The tensors of one comparison are small: a thread for each query gains more than several for each operation.
    """
    if len(xs) == 1:
        return [call(xs[0], ys[0])]
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(call, xs, ys))


def side_by_side(packed: Sequence[bytes]) -> Candidates:
    """The patches of several pictures as one batch."""
    patches = unpack_patches(packed)
    counts = np.array(patches.counts, int)
    mask = np.arange(counts.max(initial=0)) < counts[:, None]  # (B, M)
    middles = patches.positions[:, ::-1] + np.float32(0.5)
    if mask.all():  # as good as always; then there is nothing to pad, and nothing large to copy
        tokens, at = patches.tokens.reshape(*mask.shape, -1), middles.reshape(*mask.shape, 2)
    else:
        tokens = np.zeros((*mask.shape, patches.tokens.shape[1]), np.float32)
        at = np.zeros((*mask.shape, 2), np.float32)
        tokens[mask], at[mask] = patches.tokens, middles
    return Candidates(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(at), patches.grids)


def patches_at(grid: tuple[int, int]) -> Tensor:
    """x and y of the middle of every patch of a grid in raster order, in patches.  (rows * columns, 2)"""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([cols.flatten(), rows.flatten()], dim=1) + 0.5


@dataclass(frozen=True, eq=False)
class _Compared:
    """One view against some candidates; their tokens are not kept."""

    at: Tensor
    grids: tuple[tuple[int, int], ...]
    pairs: Pairs
    agreement: Agreement
    distinct: Tensor


def _compare(views: Sequence[View], packed: Sequence[bytes]) -> list[_Compared]:
    candidates = side_by_side(packed)
    dtype = best_dtype("cpu")
    tokens = candidates.tokens.to(dtype)
    compared = []
    for view in views:
        query, query_at = torch.from_numpy(view.tokens).to(dtype), patches_at(view.grid)
        pairs = mutual_pairs(query, tokens, candidates.mask)
        agreement = agree(pairs, query_at, candidates.at)
        distinct = distinct_support(agreement, pairs, query, tokens, query_at)
        compared.append(_Compared(candidates.at, candidates.grids, pairs, agreement, distinct))
    return compared


def _match(n: int, view: View, compared: _Compared, support: float) -> Match:
    agrees = compared.agreement.agrees[n].nonzero()[:, 0]  # (S,)
    cosine, order = compared.pairs.cosine[n, agrees].sort(descending=True)
    agrees = agrees[order]
    size = np.array(view.grid[::-1], np.float32)  # columns, rows of the view
    cells = np.array(compared.grids[n][::-1], np.float32)  # columns, rows of the candidate
    turn, corner = view.frame[:, :2], view.frame[:, 2]
    here = patches_at(view.grid)[compared.pairs.nearest[n, agrees]].numpy() / size @ turn.T + corner  # (S, 2)
    there = compared.at[n, agrees].numpy() / cells  # (S, 2)
    # candidate * cells = linear @ (size * turn^-1 (query - corner)) + shift
    linear, shift = compared.agreement.transform[n].split((2, 1), dim=1)
    scaled = (linear.numpy() * size) @ np.linalg.inv(turn) / cells[:, None]  # (2, 2)
    moved = shift.numpy() / cells[:, None] - scaled @ corner[:, None]  # (2, 1)
    wide, high = np.abs(turn) @ (1 / size)  # of the box around a patch, which may be turned
    return Match(
        support=support,
        pairs=np.concatenate([here, there, cosine[:, None].numpy()], axis=1),
        transform=np.concatenate([scaled, moved], axis=1),
        query_patch=(float(wide), float(high)),
        patch=(1 / float(cells[0]), 1 / float(cells[1])),
    )


def to_evidence(match: Match, probability: float | None) -> Evidence:
    """A match as results tell it."""
    return Evidence(
        probability=probability,
        believed=probability is not None and probability >= BELIEVED,
        support=len(match.pairs),
        pairs=match.pairs,
        transform=match.transform,
        box=box_of(match.pairs[:, 2:4], match.patch),
        query_box=box_of(match.pairs[:, :2], match.query_patch),
    )


def heat_of(one: View, other: View) -> np.ndarray:
    """The best cosine of each patch of one picture in another, (rows, columns) float32."""
    return (one.tokens @ other.tokens.T).max(1).reshape(one.grid)


def query_heat_of(views: Sequence[View], other: View) -> np.ndarray:
    """`heat_of` a query's views together, at each spot of the whole picture the most that any says; 0 where none looks.

    views    the first of them level, its patches are as large as those of the answer
    returns  (rows, columns) float32
    """
    size = np.array(views[0].grid[::-1]) / views[0].frame[:, :2].diagonal()  # columns, rows of the whole picture
    cols, rows = np.clip(size.round().astype(int), 1, LARGEST_HEAT)
    heat = np.zeros(rows * cols, np.float32)
    at = patches_at((rows, cols)).numpy() / (cols, rows)  # (N, 2), fractions of the picture
    for view in views:
        inside = (at - view.frame[:, 2]) @ np.linalg.inv(view.frame[:, :2]).T  # (N, 2), fractions of the view
        seen = ((inside >= 0) & (inside < 1)).all(1)
        x, y = (inside[seen] * view.grid[::-1]).astype(int).T
        heat[seen] = np.maximum(heat[seen], heat_of(view, other)[y, x])
    return heat.reshape(rows, cols)


def box_of(points: np.ndarray, patch: tuple[float, float]) -> Box | None:
    """The box around patches whose middles are `points` (S, 2), as fractions; None where there are none.

    patch  width and height of a patch, as fractions of the picture
    """
    if not len(points):
        return None
    half = np.array(patch) / 2
    low, high = (points.min(0) - half).clip(0, 1), (points.max(0) + half).clip(0, 1)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])
