"""Nearest neighbours among vectors that lie in cells: each query looks into the few cells nearest to it.

As in FAISS's IVF index, but not query by query: all queries that look into a cell are compared with it in one matrix
product, which is several times quicker, and no more than the queries and one cell need be in memory.
"""

from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np

Members = Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]]
_gpus: list[Any] = []  # one, made when it is first needed


# Q queries, M vectors, D numbers each, C cells, P of them looked into, K neighbours
def top(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors of largest inner product with each query: values (Q, K), descending, and numbers (Q, K).

    On a GPU where FAISS finds one, which has not been run.
    """
    if faiss.get_num_gpus() and k <= 2048:
        return faiss.knn_gpu(_gpu(), queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


def flat_index(dim: int) -> faiss.Index:
    """An empty index that compares with everything, by inner product; on a GPU likewise."""
    return faiss.GpuIndexFlatIP(_gpu(), dim) if faiss.get_num_gpus() else faiss.IndexFlatIP(dim)


def search_cells(
    queries: np.ndarray, centroids: np.ndarray, members: Members, k: int, probes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors most similar to each query among those of its `probes` nearest cells.

    queries    (Q, D)  float32
    centroids  (C, D)  float32, of the cells
    members    of a cell, in pieces: their numbers (M,) int64 and vectors (M, D) float32
    returns    similarity (Q, K) float32, descending, and numbers (Q, K) int64, -1 where there are no more

    for q: the largest queries[q] . vectors[m] over m in the cells among the `probes` nearest to queries[q]
    """
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    _, probed = top(queries, centroids, min(probes, len(centroids)))  # (Q, P)
    order = np.argsort(probed.ravel(), kind="stable")
    borders = np.searchsorted(probed.ravel()[order], np.arange(len(centroids) + 1))
    asking = order // probed.shape[1]  # queries, by the cell that they look into
    for cell in np.flatnonzero(np.diff(borders)).tolist():
        mine = asking[borders[cell] : borders[cell + 1]]
        for numbers, vectors in members(cell):
            if len(numbers):
                similarity, found = top(queries[mine], vectors, min(k, len(numbers)))
                heap.add_result_subset(mine, similarity, numbers[found])
    heap.finalize()
    return heap.D, heap.I


def _gpu() -> Any:
    if not _gpus:
        _gpus.append(faiss.StandardGpuResources())
    return _gpus[0]
