"""Nearest neighbours among vectors that lie in cells: each query looks into the few cells nearest to it.

As in FAISS's IVF index, but not query by query: all queries that look into a cell are compared with it in one matrix
product, which is several times quicker, and no more than the queries and one cell need be in memory. Where only
neighbours over a similarity count, as in the search for copies, hardly any pair does: products in bfloat16 tell which
may, and these alone are computed in full. It takes a quarter of the time and leaves nothing out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import faiss
import numpy as np
import torch

Members = Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]]
# Of a product of unit vectors in bfloat16: 2^-8 from rounding both, 2^-9 from rounding the sum, and a little
ROUNDING = 2**-8 + 2**-9 + 2**-12
MOST_PAIRS = 4_000_000  # that are held, 16 bytes each, before all but the best of each query are dropped
_PIECE_ROWS = 4096  # queries in one product; 8 MB of results for a cell of a thousand
_PAD_ROWS = 256
_DENSE = 32  # a pair computed alone takes so many times as long as one in a product
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
    for mine, cell in _asked(queries, centroids, probes):
        for numbers, vectors in members(cell):
            if len(numbers):
                similarity, found = top(queries[mine], vectors, min(k, len(numbers)))
                heap.add_result_subset(mine, similarity, numbers[found])
    heap.finalize()
    return heap.D, heap.I


def search_cells_above(
    queries: np.ndarray, centroids: np.ndarray, members: Members, k: int, probes: int, above: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the k vectors that `search_cells` finds for each query those more similar than `above`, pair by pair.

    above    over 0, and rows of queries and members of length 1
    returns  queries (E,) int64, ascending; numbers (E,) int64; similarity (E,) float32, descending for each query
    """
    held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    num_held = 0
    rough = torch.from_numpy(queries).bfloat16()
    for mine, cell in _asked(queries, centroids, probes):
        for numbers, vectors in members(cell):
            for pair in _pairs_above(queries, rough, mine, vectors, above):
                held.append((pair[0], numbers[pair[1]], pair[2]))
                num_held += len(pair[0])
            if num_held > MOST_PAIRS:
                held = [_best(held, k)]
                num_held = len(held[0][0])
    return _best(held, k)


def _pairs_above(
    queries: np.ndarray, rough: torch.Tensor, mine: np.ndarray, vectors: np.ndarray, above: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Queries, positions among the vectors, and similarities of the pairs over `above`.

    mine  (Q,) which of the queries
    """
    theirs = _padded(torch.from_numpy(vectors).bfloat16()).T  # (D, M and some)
    for start in range(0, len(mine), _PIECE_ROWS):
        piece = mine[start : start + _PIECE_ROWS]
        product = (_padded(rough[torch.from_numpy(piece)]) @ theirs)[: len(piece), : len(vectors)]  # (q, M)
        near = (product.amax(1) > above - ROUNDING).nonzero()[:, 0]  # most queries have nothing near in most cells
        if not len(near):
            continue
        at, found = (one.numpy() for one in (product[near] > above - ROUNDING).nonzero(as_tuple=True))
        asking = piece[near.numpy()]
        if len(at) * _DENSE > len(asking) * len(vectors):  # a product of all is quicker then
            similarity = (queries[asking] @ vectors.T)[at, found]
        else:
            similarity = np.einsum("nd,nd->n", queries[asking[at]], vectors[found])
        over = similarity > above
        yield asking[at[over]], found[over], similarity[over]


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Rows and zeros to a multiple of _PAD_ROWS: oneDNN makes and keeps a kernel of some 100 kB for each shape."""
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _PAD_ROWS))


def _best(held: list[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k most similar pairs of each query, of equals those of the smallest number."""
    nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    queries, numbers, similarity = (np.concatenate(parts) for parts in zip(nothing, *held, strict=True))
    order = np.lexsort((numbers, -similarity, queries))
    queries, numbers, similarity = queries[order], numbers[order], similarity[order]
    kept = np.arange(len(queries)) - np.searchsorted(queries, queries) < k
    return queries[kept], numbers[kept], similarity[kept]


def _asked(queries: np.ndarray, centroids: np.ndarray, probes: int) -> Iterator[tuple[np.ndarray, int]]:
    """Each cell that a query looks into, with the numbers of all queries that do."""
    _, probed = top(queries, centroids, min(probes, len(centroids)))  # (Q, P)
    order = np.argsort(probed.ravel(), kind="stable")
    borders = np.searchsorted(probed.ravel()[order], np.arange(len(centroids) + 1))
    asking = order // probed.shape[1]  # queries, by the cell that they look into
    for cell in np.flatnonzero(np.diff(borders)).tolist():
        yield asking[borders[cell] : borders[cell + 1]], cell


def _gpu() -> Any:
    if not _gpus:
        _gpus.append(faiss.StandardGpuResources())
    return _gpus[0]
