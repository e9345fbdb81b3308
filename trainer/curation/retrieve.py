"""What in a pool resembles images chosen by hand; the two ways of the paper (Oquab et al., 2023, appendix A).

For a large curated set each of its images brings its N nearest of the pool. A small one would bring few, and mostly
copies of itself; so the pool is clustered, and of every cluster that holds more than 3 curated images M are drawn.
"""

from dataclasses import dataclass

import numpy as np

from .cells import Cells
from .choices import LEAST_CURATED, MOST, NEAREST, PER_CLUSTER
from .embeddings import Embeddings
from .kmeans import assign, kmeans
from .neighbours import nearest

CLUSTER_ROWS = 100  # images of the pool in a cluster, on average, in a small pool
MOST_CLUSTERS = 100_000  # in a large one, as in the paper


# N rows of the pool, M curated images
@dataclass(frozen=True, eq=False)
class Retrieved:
    """Rows of the pool, ascending; and for each the curated image that brought it, -1 where a cluster did."""

    rows: np.ndarray
    because_of: np.ndarray
    num_clusters: int = 0  # that were drawn from


def retrieve_nearest(
    cells: Cells, curated: Embeddings, *, count: int = NEAREST, allowed: np.ndarray | None = None, recall: float = 0.95
) -> Retrieved:
    """The `count` rows nearest to each curated image.

    cells    the pool, see `cells.build_cells`
    allowed  (N,) bool, False for rows that shall not be taken
    """
    _, found = nearest(cells, curated, count, allowed=allowed, recall=recall)  # (M, K)
    asker = np.repeat(np.arange(len(found)), found.shape[1])
    there = found.ravel() >= 0
    rows, first = np.unique(found.ravel()[there], return_index=True)
    return Retrieved(rows, asker[there][first])


def retrieve_left(
    cells: Cells,
    alike: np.ndarray,
    left: np.ndarray,
    curated: Embeddings,
    *,
    count: int = NEAREST,
    recall: float = 0.95,
) -> Retrieved:
    """`retrieve_nearest` among the rows `left`, in the cells in which copies were looked for.

    alike  (N,) int64, the row by which the cells hold each row; no two of those left have the same
    left   numbers of rows
    """
    standing = np.full(len(alike), -1)
    standing[alike[left]] = left
    found = retrieve_nearest(cells, curated, count=count, allowed=standing >= 0, recall=recall)
    rows = standing[found.rows]
    order = np.argsort(rows)
    return Retrieved(rows[order], found.because_of[order])


def retrieve_clusters(
    pool: Embeddings,
    curated: Embeddings,
    rows: np.ndarray,
    *,
    num_clusters: int | None = None,
    per_cluster: int = PER_CLUSTER,
    least_curated: int = LEAST_CURATED,
    most: int = MOST,
    seed: int = 0,
) -> Retrieved:
    """Draw from the clusters of the pool in which curated images lie.

    rows          numbers of the rows of the pool that may be taken
    num_clusters  of the pool; None: one for CLUSTER_ROWS of them, MOST_CLUSTERS at most, and no more than could hold
                  `least_curated` curated images each
    """
    if num_clusters is None:
        num_clusters = max(1, min(len(rows) // CLUSTER_ROWS, len(curated) // least_curated, MOST_CLUSTERS))
    centroids = kmeans(pool, num_clusters, rows=rows, seed=seed)
    cluster = assign(pool, centroids, rows=rows)[1]
    votes = np.bincount(assign(curated, centroids)[1], minlength=len(centroids))
    rng = np.random.default_rng(seed)
    chosen = []
    for number in np.flatnonzero(votes >= least_curated):
        members = rows[cluster == number]
        chosen.append(rng.permutation(members)[:per_cluster])
    drawn = np.concatenate([np.empty(0, np.int64), *chosen])
    if len(drawn) > most:
        drawn = rng.permutation(drawn)[:most]
    return Retrieved(np.sort(drawn), np.full(len(drawn), -1), len(chosen))
