"""Nearest neighbours among vectors that lie in cells: each query looks into the few cells nearest to it.

As in FAISS's IVF index, but not query by query: all queries that look into a cell are compared with it in one matrix
product, which is several times quicker, and no more than the queries and one cell need be in memory. Where only
neighbours over a similarity count, as in the search for copies, hardly any pair does: products of bytes tell which may
(see `byte_products`), and these alone are computed in full. A query that has found its k neighbours looks for better
ones only. Nothing is left out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import faiss
import numpy as np
import torch

from .byte_products import Products, encode

Members = Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]]
MOST_PAIRS = 1_000_000  # that are held, 20 bytes each, before all but the best of each query are dropped
FIRST = 2  # nearest cells that are looked into before the others, as most of the k best lie there
_DENSE = 100  # a pair computed alone takes 2.4 us, out of the cache; one in a product of float32 a hundredth
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


def search_cells(queries: np.ndarray, probed: np.ndarray, members: Members, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors most similar to each query among those of the cells that it looks into.

    queries  (Q, D)  float32
    probed   (Q, P)  int64, cells
    members  of a cell, in pieces: their numbers (M,) int64 and vectors (M, D) float32
    returns  similarity (Q, K) float32, descending, and numbers (Q, K) int64, -1 where there are no more

    for q: the largest queries[q] . vectors[m] over m in the cells probed[q]
    """
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for mine, cell in _asked(probed):
        for numbers, vectors in members(cell):
            if len(numbers):
                similarity, found = top(queries[mine], vectors, min(k, len(numbers)))
                heap.add_result_subset(mine, similarity, numbers[found])
    heap.finalize()
    return heap.D, heap.I


def search_cells_above(
    queries: np.ndarray, probed: np.ndarray, members: Members, k: int, above: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the k vectors that `search_cells` finds for each query those more similar than `above`, pair by pair.

    Rows of queries and members have length 1.

    returns  queries (E,) int64, ascending; numbers (E,) int64; similarity (E,) float32, descending for each query
    """
    best = _Best(len(queries), k, above)
    products = Products(encode(queries))
    for some in (probed[:, :FIRST], probed[:, FIRST:]):
        for mine, cell in _asked(some):
            for numbers, vectors in members(cell):
                if len(numbers):
                    asking, found = products.pairs_over(mine, encode(vectors, one_step=True), best.least[mine])
                    similarity = _similarity(queries, mine, vectors, asking, found)
                    best.add(mine[asking], numbers[found], similarity)
        best.pairs()
    return best.pairs()


class _Best:
    """The best pairs of each query so far.

    least  (Q,) float32: a further pair counts only if it is at least so similar
    """

    def __init__(self, num_queries: int, k: int, above: float) -> None:
        self.least = np.full(num_queries, above, np.float32)
        self._k, self._above = k, above
        self._held = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        self._num_new = 0

    def add(self, queries: np.ndarray, numbers: np.ndarray, similarity: np.ndarray) -> None:
        over = (similarity >= self.least[queries]) & (similarity > self._above)
        self._held.append((queries[over], numbers[over], similarity[over]))
        self._num_new += len(self._held[-1][0])
        if self._num_new > MOST_PAIRS:
            self.pairs()

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k most similar pairs of each query, best first, of equals those of the smallest number."""
        queries, numbers, similarity = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
        order = _by_query(queries, numbers, similarity)
        queries, numbers, similarity = queries[order], numbers[order], similarity[order]
        place = np.arange(len(queries)) - np.searchsorted(queries, queries)
        self.least[queries[place == self._k - 1]] = similarity[place == self._k - 1]
        kept = place < self._k
        self._held, self._num_new = [(queries[kept], numbers[kept], similarity[kept])], 0
        return self._held[0]


def _by_query(queries: np.ndarray, numbers: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The order by query, by falling similarity, by number; as np.lexsort gives it, in a fifth of its time."""
    bits = np.maximum(similarity, 0).view(np.uint32).astype(np.uint64)  # of positive numbers, the larger the larger
    key = (queries.astype(np.uint64) << np.uint64(32)) | (np.uint64(2**32 - 1) - bits)
    order = np.argsort(key)
    again = np.diff(key[order]) == 0
    if again.any():  # equal ones are few
        equal = np.concatenate([[False], again]) | np.concatenate([again, [False]])
        some = order[equal]
        order[equal] = some[np.lexsort((numbers[some], -similarity[some], queries[some]))]
    return order


def _similarity(
    queries: np.ndarray, mine: np.ndarray, vectors: np.ndarray, asking: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """Products of the pairs mine[asking[e]], found[e] in float32, (E,); with all vectors for queries of many pairs."""
    similarity = np.empty(len(asking), np.float32)
    many = np.bincount(asking, minlength=len(mine)) * _DENSE > len(vectors)  # (q,)
    dense = many[asking]
    some = np.flatnonzero(many)
    if len(some):
        place = np.zeros(len(mine), np.int64)
        place[some] = np.arange(len(some))
        products = torch.from_numpy(queries[mine[some]]) @ torch.from_numpy(vectors).T  # (q, M)
        similarity[dense] = products.numpy()[place[asking[dense]], found[dense]]
    alone = ~dense
    similarity[alone] = np.einsum("nd,nd->n", queries[mine[asking[alone]]], vectors[found[alone]])
    return similarity


def _asked(probed: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Each cell that a query looks into, with the numbers of all queries that do."""
    order = np.argsort(probed.ravel(), kind="stable")
    cells, first = np.unique(probed.ravel()[order], return_index=True)
    if not len(cells):
        return
    asking = order // probed.shape[1]  # queries, by the cell that they look into
    for cell, mine in zip(cells.tolist(), np.split(asking, first[1:]), strict=True):
        yield mine, cell


def _gpu() -> Any:
    if not _gpus:
        _gpus.append(faiss.StandardGpuResources())
    return _gpus[0]
