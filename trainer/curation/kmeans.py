"""Spherical k-means through FAISS, on embeddings that are read a block at a time.

Surprising: with thousands of centroids nearly all time would go into comparing vectors with centroids that are far
off. So they are found in two steps, first coarse groups and then some in each by its size; and a vector is compared
with the centroids of the nearest groups only.
"""

import math
from dataclasses import dataclass

import faiss
import numpy as np

from .embeddings import BLOCK_ROWS, Embeddings
from .probing import flat_index, search_cells, top
from .spread import Spread

FLAT = 2000  # centroids up to which every vector is compared with all of them
PROBES = 6  # groups of centroids that a vector looks into, where there are more
GROUP_SAMPLE = 256  # vectors for each group of centroids, as many as FAISS itself takes at most
SAMPLE = 64  # vectors for each centroid that training uses, at most


# N vectors, D numbers each, C centroids
def kmeans(
    embeddings: Embeddings,
    num_clusters: int,
    *,
    rows: np.ndarray | None = None,
    iterations: int = 10,
    sample: int = SAMPLE,
    seed: int = 0,
) -> np.ndarray:
    """Centroids of length 1, (C, D) float32; as many as asked for, or as there are vectors.

    rows    numbers of the rows that matter; None: all
    sample  vectors for each centroid that are used, at most; half of that where centroids are many
    """
    rows = np.arange(len(embeddings)) if rows is None else rows
    num_clusters = min(num_clusters, len(rows))
    if num_clusters > FLAT:
        sample = math.ceil(sample / 2)
    if len(rows) > sample * num_clusters:
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample * num_clusters, replace=False))
    if num_clusters == len(rows) or num_clusters <= FLAT:
        points = embeddings.rows(rows).astype(np.float32)  # (N, D)
        return points if num_clusters == len(rows) else _train(points, num_clusters, iterations, seed)
    num_groups = round(math.sqrt(num_clusters))
    few = rows
    if len(rows) > GROUP_SAMPLE * num_groups:
        few = np.sort(np.random.default_rng(seed).choice(rows, GROUP_SAMPLE * num_groups, replace=False))
    groups = _train(embeddings.rows(few).astype(np.float32), num_groups, iterations, seed)
    group = np.empty(len(rows), np.int64)
    for where, block in embeddings.blocks(rows):
        group[where] = top(block, groups, 1)[1][:, 0]
    counts = _apportion(np.bincount(group, minlength=len(groups)), num_clusters)
    found = [  # a group's vectors at a time in memory: all that are trained on may be several GB
        _train(embeddings.rows(rows[group == number]).astype(np.float32), count, iterations, seed)
        for number, count in enumerate(counts.tolist())
        if count
    ]
    return np.concatenate(found)


def assign(
    embeddings: Embeddings,
    centroids: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    spread: Spread | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """How near each row is to its nearest centroid, (N,) float32, and which one that is, (N,) int64.

    spread  what has other machines do blocks of rows that lie in files; None: this process does all
    Where centroids are many the nearest is missed for a few rows in a hundred, and one nearly as near taken.
    """
    count = len(embeddings) if rows is None else len(rows)
    similarity, nearest = np.empty(count, np.float32), np.empty(count, np.int64)
    grouped = _group_centroids(centroids)
    if spread is None or embeddings.paths is None or count <= BLOCK_ROWS:
        for where, block in embeddings.blocks(rows):
            similarity[where], nearest[where] = _nearest_centroids(block, grouped)
        return similarity, nearest
    paths, shared = spread.share(embeddings.paths), spread.share(grouped)
    starts = range(0, count, BLOCK_ROWS)
    numbers = ((s, slice(s, s + BLOCK_ROWS) if rows is None else rows[s : s + BLOCK_ROWS]) for s in starts)
    for start, found in spread.map(_assign_block, ((paths, shared, *block) for block in numbers)):
        where = slice(start, start + len(found[0]))
        similarity[where], nearest[where] = found
    return similarity, nearest


@dataclass(frozen=True, eq=False)
class _Grouped:
    """Centroids (C, D), coarse groups of them (G, D), and which centroids each group has."""

    centroids: np.ndarray
    groups: np.ndarray
    numbers: tuple[np.ndarray, ...]


def _group_centroids(centroids: np.ndarray) -> _Grouped:
    groups = centroids if len(centroids) <= FLAT else _train(centroids, round(math.sqrt(len(centroids))), 10, 0)
    group = top(centroids, groups, 1)[1][:, 0]
    return _Grouped(centroids, groups, tuple(np.flatnonzero(group == number) for number in range(len(groups))))


def _nearest_centroids(block: np.ndarray, grouped: _Grouped) -> tuple[np.ndarray, np.ndarray]:
    """`assign` for vectors in memory, (n, D) float32."""
    centroids, numbers = grouped.centroids, grouped.numbers
    if len(centroids) <= FLAT:
        found = top(block, centroids, 1)
    else:
        probed = top(block, grouped.groups, min(PROBES, len(grouped.groups)))[1]
        found = search_cells(block, probed, lambda cell: [(numbers[cell], centroids[numbers[cell]])], 1)
    return found[0][:, 0], found[1][:, 0]


def _assign_block(
    paths: tuple[str, ...], grouped: _Grouped, start: int, rows: np.ndarray | slice
) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """One block of rows in a worker; with where it begins."""
    embeddings = Embeddings.of_files(paths)
    if isinstance(rows, slice):
        rows = np.arange(rows.start, min(rows.stop, len(embeddings)))
    return start, _nearest_centroids(embeddings.rows(rows).astype(np.float32), grouped)


def _train(points: np.ndarray, num_clusters: int, iterations: int, seed: int) -> np.ndarray:
    """(N, D) -> (C, D), by FAISS; it begins with vectors that are far from each other."""
    if num_clusters >= len(points):
        return points
    clustering = faiss.Clustering(points.shape[1], num_clusters)
    clustering.spherical, clustering.seed, clustering.niter = True, seed, iterations
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, len(points)
    clustering.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    clustering.train(points, flat_index(points.shape[1]))
    return faiss.vector_to_array(clustering.centroids).reshape(num_clusters, -1).copy()


def _apportion(sizes: np.ndarray, count: int) -> np.ndarray:
    """`count` centroids to groups in proportion to their sizes, no group more than it has vectors."""
    exact = sizes * (count / sizes.sum())
    counts = np.floor(exact).astype(np.int64)
    for number in np.argsort(counts - exact, kind="stable")[: count - counts.sum()]:
        counts[number] += 1
    return np.minimum(counts, sizes)
