"""Which images may be copies of each other: neighbours by vectors, found by FAISS.

Up to some 50,000 images every one is compared with every other: in float32, for FAISS's exact scan of half precision,
which is no matrix product, takes four times as long. Beyond that the vectors are sorted into cells and only the nearest
few cells are looked through, so that twice the images take about twice the time; there they are in half precision. They
also lie in it in a temporary file that is mapped into memory, so that a million of them need no gigabytes of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.errors import SeenitError
from indexer.store.protocol import Store

from .mapped import mapped

# N images, G numbers in a vector, K neighbours of each, P pairs

NEIGHBOURS = 32  # of each image that are looked at
FLAT_UP_TO = 50_000  # images that are all compared with each other
QUERIES_AT_ONCE = 4096
CELLS_PER_ROOT = 4  # cells for each square root of the number of images
TRAINED_ON = 40  # vectors for each cell
PROBES = 12  # cells that are looked through


@dataclass(frozen=True, eq=False)
class Vectors:
    """All global vectors of an index.

    ids      of the records, in the order of the rows
    rows     (N, G)  float16, L2-normalised, mapped from a file that is gone when this is
    unusual  ids of the records left out, for their vectors are not finite
    """

    ids: list[str]
    rows: np.ndarray
    unusual: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DuplicateCandidates:
    """Pairs of images that are worth a look, each once, ordered by `first`.

    first, second  (P,)  int64, rows of Vectors, first < second
    cosine         (P,)  float32
    """

    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray


def read_vectors(store: Store) -> Vectors:
    """Every record's vector, a page of records in memory at a time."""
    schema = store.schema()
    count = store.count()
    if schema is None or not count:
        return Vectors([], np.empty((0, 1), np.float16), ())
    rows = mapped(np.float16, count, schema.global_dim)
    ids: list[str] = []
    unusual: list[str] = []
    for record in store.scroll(vectors=True):
        vector = record.global_vector
        norm = float(np.linalg.norm(vector)) if vector is not None else 0.0
        if vector is None or not np.isfinite(norm) or norm == 0:
            unusual.append(record.id)
        elif len(ids) < count:
            rows[len(ids)] = vector / norm
            ids.append(record.id)
    return Vectors(ids, rows[: len(ids)], tuple(unusual))


def near_pairs(
    rows: np.ndarray,
    least_cosine: float,
    neighbours: int = NEIGHBOURS,
    *,
    versions: Sequence[Callable[[slice], np.ndarray]] = (),
    flat_up_to: int = FLAT_UP_TO,
    report: Callable[[int], None] = lambda done: None,
) -> DuplicateCandidates:
    """Every image with its `neighbours` nearest, as far as their cosine reaches `least_cosine`.

    rows      (N, G)  L2-normalised, float16 or float32
    versions  each gives what is looked for in the place of some of the rows, (Q, G); the best cosine counts. By default
              the rows themselves
    report    gets the number of images whose neighbours are known, now and then
    """
    num = len(rows)
    if num < 2:
        return DuplicateCandidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    index = _index_of(rows, num > flat_up_to)
    codes, cosines = [], []
    for start in range(0, num, QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        for version in versions or (rows.__getitem__,):
            queries = np.ascontiguousarray(version(block), np.float32)
            found, neighbour = index.search(queries, min(neighbours + 1, num))  # (Q, K + 1), itself mostly among them
            one = np.arange(start, start + len(queries))[:, None].repeat(neighbour.shape[1], 1)
            real = (neighbour >= 0) & (neighbour != one) & (found >= least_cosine)
            one, other = one[real], neighbour[real]
            codes.append(np.minimum(one, other) * num + np.maximum(one, other))
            cosines.append(found[real])
        report(min(start + QUERIES_AT_ONCE, num))
    code, cosine = np.concatenate(codes), np.concatenate(cosines).astype(np.float32)
    best_first = np.argsort(-cosine, kind="stable")
    code, at = np.unique(code[best_first], return_index=True)
    return DuplicateCandidates(code // num, code % num, cosine[best_first][at])


def with_pairs(found: DuplicateCandidates, more: DuplicateCandidates, rows: np.ndarray) -> DuplicateCandidates:
    """Two lists of pairs as one; those that only the second has get the cosine of their rows (N, G)."""
    num = len(rows)
    codes = np.setdiff1d(more.first * num + more.second, found.first * num + found.second)
    first, second = codes // num, codes % num
    cosine = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        one, other = (rows[at[part]].astype(np.float32) for at in (first, second))
        cosine[part] = (one * other).sum(1)
    joined = [np.concatenate(pair) for pair in ((found.first, first), (found.second, second), (found.cosine, cosine))]
    order = np.lexsort((joined[1], joined[0]))
    return DuplicateCandidates(*(values[order] for values in joined))


def without_pairs(found: DuplicateCandidates, among: np.ndarray) -> DuplicateCandidates:
    """Without the pairs both of whose rows are marked in `among` (N,) bool."""
    keep = ~(among[found.first] & among[found.second])
    return DuplicateCandidates(found.first[keep], found.second[keep], found.cosine[keep])


def are_among(found: DuplicateCandidates, others: DuplicateCandidates) -> np.ndarray:
    """Which pairs of the one list are in the other as well.  (P,) bool"""
    num = max(int(one.second.max(initial=0)) + 1 for one in (found, others))
    return np.isin(found.first * num + found.second, others.first * num + others.second)


def _index_of(rows: np.ndarray, approximate: bool) -> Any:
    """A FAISS index that holds the rows; an approximate one in half precision."""
    try:
        import faiss
    except ImportError:
        raise SeenitError("finding duplicates needs FAISS; install it with: pip install faiss-cpu") from None
    dim = rows.shape[1]
    index: Any = faiss.IndexFlatIP(dim)
    if approximate:
        cells = round(CELLS_PER_ROOT * len(rows) ** 0.5)
        half, inner = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(index, dim, cells, half, inner, False)
        index.cp.niter, index.cp.min_points_per_centroid = 6, 1
        index.nprobe = PROBES
        sample = np.random.default_rng(0).permutation(len(rows))[: TRAINED_ON * cells]
        index.train(np.ascontiguousarray(rows[np.sort(sample)], np.float32))
    for start in range(0, len(rows), QUERIES_AT_ONCE):
        index.add(np.ascontiguousarray(rows[start : start + QUERIES_AT_ONCE], np.float32))
    return index
