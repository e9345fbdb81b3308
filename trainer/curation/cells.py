"""Vectors sorted into cells on disk, and a search that looks into the nearest of them.

Cells are those of k-means, and a query is compared with the vectors of the nearest ones (see `probing`). How many that
must be follows from a sample that is compared with everything. Few vectors are one cell; the search is then exact.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch

from .byte_products import most_similar
from .embeddings import BLOCK_ROWS, Embeddings
from .kmeans import assign, kmeans
from .probing import search_cells, search_cells_above, top
from .spread import Spread
from .whole_files import claim_work_folder, read_array, step_file, write_array

EXACT_ROWS = 50_000  # up to so many vectors all are compared with all
CELL_ROWS = 1000  # vectors in a cell, on average
SAMPLE = 500  # queries that are compared with everything
MARGIN = 0.01  # by which the sample's recall is to be above what is asked for


# N vectors, D numbers each, C cells, Q queries, P cells looked into, K neighbours
@dataclass(frozen=True, eq=False)
class Cells:
    """Vectors sorted into cells; cell c holds the positions [starts[c], starts[c + 1]).

    vectors    (N, D)    float16, in the order of the cells
    rows       (N,)      int64, which row of the embeddings each of them is
    starts     (C + 1,)  int64
    centroids  (C, D)    float32; neighbouring cells have neighbouring numbers where possible
    """

    vectors: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    centroids: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> "Cells":
        names = ("vectors", "rows", "starts", "centroids")
        vectors, rows, starts, centroids = (read_array(folder / f"{name}.npy") for name in names)
        return cls(vectors, rows, starts, np.array(centroids))

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self, cell: int) -> Iterator[slice]:
        """The positions of a cell, so many at a time as may be in memory."""
        for start in range(int(self.starts[cell]), int(self.starts[cell + 1]), BLOCK_ROWS):
            yield slice(start, min(start + BLOCK_ROWS, int(self.starts[cell + 1])))

    def members(self, cell: int, allowed: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows of a cell (M,) and their vectors (M, D) float32, a block at a time.

        allowed  (rows of the embeddings,)  bool, False for those that are left out
        """
        for where in self.blocks(cell):
            kept = slice(None) if allowed is None else allowed[self.rows[where]]
            vectors = torch.from_numpy(np.array(self.vectors[where][kept])).float()  # ten times as quick as astype
            yield np.asarray(self.rows[where])[kept], vectors.numpy()

    def probed(self, queries: np.ndarray, probes: int) -> np.ndarray:
        """The cells that queries (Q, D) look into, as far as bytes tell the nearest, these first.  (Q, P) int64"""
        return most_similar(queries, self.centroids, min(probes, len(self.centroids)))

    def cells_of(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, positions, side="right") - 1


def build_cells(
    embeddings: Embeddings,
    folder: Path,
    *,
    rows: np.ndarray | None = None,
    num_cells: int | None = None,
    seed: int = 0,
    spread: Spread | None = None,
) -> Cells:
    """Sort vectors into cells in a folder; cells that lie there already for the same vectors are taken as they are.

    rows       numbers of those that matter; None: all
    num_cells  None: 1 up to EXACT_ROWS vectors, else one for CELL_ROWS of them
    spread     see `kmeans.assign`
    """
    rows = np.arange(len(embeddings)) if rows is None else np.asarray(rows, np.int64)
    if num_cells is None:
        num_cells = 1 if len(rows) <= EXACT_ROWS else math.ceil(len(rows) / CELL_ROWS)
    claim_work_folder(folder, f"cells {num_cells} seed {seed} {embeddings.digest(rows)}")
    if not (folder / "centroids.npy").is_file():  # written last
        centroids = _neighbourly(kmeans(embeddings, num_cells, rows=rows, seed=seed, sample=64), seed)
        _, cell = assign(embeddings, centroids, rows=rows, spread=spread)
        order = np.argsort(cell, kind="stable")
        with step_file(folder / "vectors.npy") as file:  # not through a map: a full disk would kill the process
            header = {"descr": "<f2", "fortran_order": False, "shape": (len(rows), embeddings.dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(rows), BLOCK_ROWS):
                file.write(embeddings.rows(rows[order[start : start + BLOCK_ROWS]]).tobytes())
        write_array(folder / "rows.npy", rows[order])
        write_array(folder / "starts.npy", np.searchsorted(cell[order], np.arange(len(centroids) + 1)))
        write_array(folder / "centroids.npy", centroids)
    return Cells.open(folder)


def nearest_in_cells(
    cells: Cells, queries: np.ndarray, k: int, *, probes: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors most similar to each query among those of its `probes` nearest cells.

    queries  (Q, D)  float32, rows of length 1
    allowed  (rows of the embeddings,)  bool, False for rows that shall not be found
    returns  similarity (Q, K) float32, descending, and rows (Q, K) int64, -1 where there are no more
    """
    return search_cells(queries, cells.probed(queries, probes), lambda cell: cells.members(cell, allowed), k)


def similar_in_cells(
    cells: Cells, queries: np.ndarray, k: int, *, probes: int, above: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `nearest_in_cells` finds over a similarity, quicker, pair by pair: queries, rows, similarity, (E,) each."""
    return search_cells_above(queries, cells.probed(queries, probes), cells.members, k, above)


def probes_for(
    cells: Cells,
    sample: np.ndarray,
    *,
    k: int,
    above: float = -1.0,
    recall: float = 0.95,
    allowed: np.ndarray | None = None,
    either: bool = False,
) -> tuple[int, float, int]:
    """How many cells to look into, that the queries find such a share of their true neighbours.

    sample   positions in the cells of vectors that ask for their neighbours, or (Q, D) float32 other queries
    allowed  (rows of the embeddings,)  bool, False for rows that are no neighbours
    either   all vectors of the cells ask, and it is enough that a neighbour finds the query; which takes about half as
             many cells. Judged as if the query were among the neighbour's k, and on SAMPLE neighbours at most
    returns  the number of cells, the recall that it has on the sample, how many true neighbours that was judged on

    No search is tried: a true neighbour is found if and only if its cell is among the nearest ones of the query.
    """
    own = sample if sample.ndim == 1 else None
    queries = cells.vectors[sample].astype(np.float32) if own is not None else sample
    if len(cells.centroids) == 1:
        return 1, 1.0, 0
    similarity, found = exact(cells, queries, k + 1, allowed)  # (Q, K + 1) positions
    true = similarity > above
    if own is not None:
        true &= found != own[:, None]
    true &= np.cumsum(true, axis=1) <= k
    asking, at = np.nonzero(true)
    if not len(asking):
        return min(4, len(cells.centroids)), 1.0, 0
    needed = _cells_until(cells, queries, asking, cells.cells_of(found[asking, at]))
    if either:
        assert own is not None
        some = np.sort(np.random.default_rng(0).permutation(len(asking))[:SAMPLE])
        others = found[asking[some], at[some]]
        vectors = np.array(cells.vectors[np.sort(others)], np.float32)[np.argsort(np.argsort(others, kind="stable"))]
        back = _cells_until(cells, vectors, np.arange(len(others)), cells.cells_of(own[asking[some]]))
        needed = np.minimum(needed[some], back)
    shares = np.cumsum(np.bincount(needed, minlength=len(cells.centroids) + 1)) / len(needed)
    probes = int(np.argmax(shares >= min(recall + MARGIN, 1.0 - 1e-9)))
    return probes, float(shares[probes]), len(needed)


def _cells_until(cells: Cells, queries: np.ndarray, asking: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many cells a query looks into until it comes to a certain one.  (E,) int64

    queries  (Q, D)  float32
    asking   (E,)    which of the queries
    wanted   (E,)    cells
    """
    nearest = cells.probed(queries, len(cells.centroids))  # (Q, C)
    rank = np.empty_like(nearest)
    np.put_along_axis(rank, nearest, np.arange(nearest.shape[1])[None], axis=1)
    return rank[asking, wanted] + 1


def exact(
    cells: Cells, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar of all vectors: similarity (Q, K) and positions in the cells (Q, K), best first.

    allowed  (rows of the embeddings,)  bool, False for rows that are left out; K is their number where there are fewer
    """
    k = min(k, len(cells) if allowed is None else int(allowed[cells.rows].sum()))
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for start in range(0, len(cells), BLOCK_ROWS):
        where = slice(start, min(start + BLOCK_ROWS, len(cells)))
        positions, block = np.arange(where.start, where.stop), cells.vectors[where]
        if allowed is not None:
            kept = allowed[cells.rows[where]]
            positions, block = positions[kept], block[kept]
        if len(positions):
            block = block.astype(np.float32)
            similarity, found = top(queries, block, min(k, len(block)))
            heap.add_result(similarity, positions[found])
    heap.finalize()
    return heap.D, heap.I


def sample_of(count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(count).permutation(count)[:SAMPLE])


def _neighbourly(centroids: np.ndarray, seed: int) -> np.ndarray:
    """The centroids in an order in which near ones follow each other, roughly."""
    if len(centroids) < 8:
        return centroids
    groups = kmeans(Embeddings.of(centroids), round(math.sqrt(len(centroids))), seed=seed)
    _, group = top(centroids, groups, 1)
    return np.ascontiguousarray(centroids[np.argsort(group[:, 0], kind="stable")])
