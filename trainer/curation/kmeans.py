"""Spherical k-means through FAISS, on embeddings that are read a block at a time.

Surprising: with thousands of centroids nearly all time would go into comparing vectors with centroids that are far
off. So they are found in two steps, first coarse groups and then some in each by its size; and a vector is compared
with the centroids of the nearest groups only.
"""

import math

import faiss
import numpy as np

from .embeddings import Embeddings
from .probing import flat_index, search_cells, top

FLAT = 2000  # centroids up to which every vector is compared with all of them
PROBES = 6  # groups of centroids that a vector looks into, where there are more
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
    points = embeddings.rows(rows).astype(np.float32)  # (N, D)
    if num_clusters == len(rows):
        return points
    if num_clusters <= FLAT:
        return _train(points, num_clusters, iterations, seed)
    groups = _train(points, round(math.sqrt(num_clusters)), iterations, seed)
    group = top(points, groups, 1)[1][:, 0]
    counts = _apportion(np.bincount(group, minlength=len(groups)), num_clusters)
    found = [
        _train(points[group == number], count, iterations, seed)
        for number, count in enumerate(counts.tolist())
        if count
    ]
    return np.concatenate(found)


def assign(
    embeddings: Embeddings, centroids: np.ndarray, *, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How near each row is to its nearest centroid, (N,) float32, and which one that is, (N,) int64.

    Where centroids are many the nearest is missed for a few rows in a hundred, and one nearly as near taken.
    """
    count = len(embeddings) if rows is None else len(rows)
    similarity, nearest = np.empty(count, np.float32), np.empty(count, np.int64)
    groups = centroids if len(centroids) <= FLAT else _train(centroids, round(math.sqrt(len(centroids))), 10, 0)
    group = top(centroids, groups, 1)[1][:, 0]
    numbers = [np.flatnonzero(group == number) for number in range(len(groups))]
    lists = [centroids[members] for members in numbers]
    for where, block in embeddings.blocks(rows):
        if len(centroids) <= FLAT:
            found = top(block, centroids, 1)
        else:
            found = search_cells(block, groups, lambda cell: [(numbers[cell], lists[cell])], 1, PROBES)
        similarity[where], nearest[where] = found[0][:, 0], found[1][:, 0]
    return similarity, nearest


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
