"""As much of the rare as of the frequent, without labels: hierarchical k-means with resampling, then drawing top-down.

After Vo et al., 2024, "Automatic Data Curation for Self-Supervised Learning". k-means puts most of its centroids where
most images are. Run again on the centroids, among which the frequent has less weight, it gives clusters that follow
concepts more than frequency. Resampling drives that further: k-means is repeated on the few members nearest to each
centroid, so that a dense cluster counts no more than a thin one. From the tree the wanted number is drawn level by
level in equal shares; what a small branch cannot give, its neighbours give in its place.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .choices import RESAMPLINGS
from .embeddings import Embeddings
from .kmeans import assign, kmeans
from .spread import Spread

RATIOS = (75, 20, 10, 5)  # members of a cluster on average at each level: 743 M images, 10 M, 500 k, 50 k, 10 k
FEWEST = 10  # clusters at each level above the finest
LEAST_MEMBERS = 4  # on average, that make a level above worth its while
ITERATIONS = 10  # of each k-means


# N rows, C_t clusters at level t
@dataclass(frozen=True)
class Tree:
    """Clusters of rows, clusters of clusters, and so on.

    parents  (N,), then (C_1,), (C_2,), ... int64: the cluster above each row and each cluster; the last level's
             clusters are the top
    """

    parents: tuple[np.ndarray, ...]
    num_top: int

    def level(self, number: int) -> np.ndarray:
        """The cluster of each row at a level; 1 is the finest.  (N,)"""
        cluster = self.parents[0]
        for parent in self.parents[1:number]:
            cluster = parent[cluster]
        return cluster

    @property
    def top(self) -> np.ndarray:
        return self.level(len(self.parents))


def default_levels(count: int) -> tuple[int, ...]:
    """How many clusters each level has: the paper's ratios, as far up as there remain enough to cluster.

    Among few images clusters of 75 would be larger than their kinds; at the finest level there are sqrt(10 N) at
    least, and FEWEST above them. Ten classes at 100 : 1, a quarter of 247 and of 740 images drawn: as even as 6.95 and
    6.55 equal classes, 6.2 and 6.3 with one level of sqrt(N), 5.2 at random (means over ten orders of the classes).
    """
    levels = [max(1, round(count / RATIOS[0]), min(math.isqrt(10 * count), count // 2))]
    for ratio in RATIOS[1:]:
        above = max(FEWEST, round(levels[-1] / ratio))
        if levels[-1] < LEAST_MEMBERS * above:
            break
        levels.append(above)
    return tuple(levels)


def build_tree(
    embeddings: Embeddings,
    levels: Sequence[int] | None = None,
    *,
    rows: np.ndarray | None = None,
    resamplings: int = RESAMPLINGS,
    seed: int = 0,
    spread: Spread | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Tree:
    """Cluster rows, then the centroids, then theirs.

    levels       how many clusters at each, finest first; None: see `default_levels`
    rows         numbers of the rows that matter, N of them; None: all
    resamplings  how often k-means is repeated on the members nearest to its centroids
    spread       see `kmeans.assign`
    progress     gets how many levels are done, of how many
    """
    rows = np.arange(len(embeddings)) if rows is None else rows
    levels = default_levels(len(rows)) if levels is None else levels
    points, parents = embeddings, []
    for number, count in enumerate(levels):
        progress(number, len(levels))
        centroids, cluster = _resampled_kmeans(points, count, rows, resamplings, seed + number, spread)
        parents.append(cluster)
        points, rows = Embeddings.of(centroids), np.arange(len(centroids))
    progress(len(levels), len(levels))
    return Tree(tuple(parents), len(points))


def draw(tree: Tree, count: int, *, allowed: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Draw rows in equal shares from the clusters at the top, and so on down; members of a finest one at random.

    allowed  (N,) bool, False for rows that are not drawn and do not count
    returns  positions among the tree's rows, ascending; all that may be drawn if they are no more than `count`
    """
    rng = np.random.default_rng(seed)
    members = np.arange(len(tree.parents[0])) if allowed is None else np.flatnonzero(allowed)
    if len(members) <= count:
        return members
    sizes = [np.ones(len(tree.parents[0]), np.int64) if allowed is None else allowed.astype(np.int64)]
    for parent, above in zip(tree.parents, [*(len(p) for p in tree.parents[1:]), tree.num_top], strict=True):
        sizes.append(np.bincount(parent, sizes[-1], above).astype(np.int64))  # rows below each cluster
    quota = shares(sizes[-1], count, rng)  # (C_top,)
    for parent, size in zip(tree.parents[::-1], sizes[-2::-1], strict=True):
        order = np.argsort(parent, kind="stable")
        borders = np.searchsorted(parent[order], np.arange(len(quota) + 1))
        below = np.zeros(len(parent), np.int64)
        for cluster in np.flatnonzero(quota):
            children = order[borders[cluster] : borders[cluster + 1]]
            below[children] = shares(size[children], int(quota[cluster]), rng)
        quota = below
    return np.flatnonzero(quota)


def shares(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Divide `count` among clusters as equally as their sizes allow.

    sizes    (C,) int64
    returns  (C,) int64, min(n, size) each with the largest n that does not give more than `count`; the rest one each
             to clusters drawn from those that have more
    """
    if sizes.sum() <= count:
        return sizes.copy()
    ordered = np.sort(sizes)
    given = np.cumsum(ordered) - ordered  # by all smaller clusters, if they give all they have
    room = count - given  # for this cluster and the larger ones
    per_cluster = room // np.arange(len(sizes), 0, -1)
    level = int(per_cluster[np.argmax(per_cluster < ordered)])  # the first that need not give all it has
    quota = np.minimum(sizes, level)
    more = np.flatnonzero(sizes > level)
    quota[rng.permutation(more)[: count - int(quota.sum())]] += 1
    return quota


def effective(counts: np.ndarray) -> float:
    """How many equal clusters would have the same entropy: exp of it, from 1 to the number of clusters."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _resampled_kmeans(
    points: Embeddings, count: int, rows: np.ndarray, resamplings: int, seed: int, spread: Spread | None
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (C, D) and the cluster of each row (N,).

    Each time, the r members nearest to each centroid are clustered instead of all; r is half of the average cluster.
    """
    centroids = kmeans(points, count, rows=rows, seed=seed, iterations=ITERATIONS)
    similarity, cluster = assign(points, centroids, rows=rows, spread=spread)
    nearest_few = max(1, len(rows) // len(centroids) // 2)
    for again in range(resamplings if len(centroids) < len(rows) else 0):
        few = rows[_nearest_members(similarity, cluster, nearest_few)]
        if len(few) < len(centroids):
            break
        centroids = kmeans(points, len(centroids), rows=few, iterations=ITERATIONS, seed=seed + again + 1)
        similarity, cluster = assign(points, centroids, rows=rows, spread=spread)
    return centroids, cluster


def _nearest_members(similarity: np.ndarray, cluster: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` members of each cluster that are nearest to its centroid, ascending."""
    order = np.lexsort((-similarity, cluster))
    starts = np.searchsorted(cluster[order], cluster[order])  # where each one's cluster begins
    return np.sort(order[np.arange(len(order)) - starts < count])
