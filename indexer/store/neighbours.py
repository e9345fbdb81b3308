"""The nearest vectors of an embedded index: an exact scan where that is quick, a graph in front of it where it is not.

Numbers of records only grow and a number's vector never changes; that makes everything here simple. A graph covers the
numbers up to one, kept in the user's cache (`neighbour_cache`); what was written since is scanned; and each candidate
is looked up in the database, which scores it with the stored float16 vector and leaves out what was deleted. So nothing
here can give a wrong score, an old record or a missing new one; without a graph a search is only slower.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .faiss_library import faiss
from .graph_links import link_faint_points
from .neighbour_cache import Epoch, Graph, given_by, load_graph, save_graph
from .protocol import BuildProgress, never, no_progress

# Q queries, G numbers in a vector, N records

SCANNED = 30_000  # records that are scanned without a graph, 1.5 ms; store_speed.py, a graph takes .5 ms
HELD = 300_000  # records of which the vectors are held in memory for that; beyond, a search reads them from the disk
# Chosen on store_speed.py, recall@10 among 1,000,000 records of 512 numbers: 24 links, a construction of 80 and a
# search of 256 give .9935 (512: .994, 192: .9885, 128: .98). Among 100,000 every choice gives .999.
LINKS = 24
EF_CONSTRUCTION = 80
EF_SEARCH = 128
EF_SEARCH_LARGE = 256
LARGE = 300_000  # records from which on a search is that thorough
# Candidates of the graph for each that is wanted, as its 8-bit codes are not exact, and points that are looked at for
# each of those. Among 11,392 photos recall@100 and @200 are .974 with 1.02, 1.1 and 1.5 candidates where 1.5 points are
# looked at for each that is wanted, .967 and .966 where 1.25 are: a stored vector to read costs more than a point
RESCORED, EXPLORED = 1.1, 1.4
# From here on values were set by reasoning and not tuned, but for what says otherwise.
FEWEST_RESCORED = 50
FEW = 1000  # records left by a filter that are read and compared one by one
NARROW = 0.2  # of the records: with a narrower filter the codes are scanned, for a graph loses its paths
CHUNK = 4096  # records read or added at a time
QUERIES_A_THREAD = 4  # at least, for a search in several threads: idle threads of FAISS cost 30 ms on a busy machine
BLOCKS = 8  # in memory; more are read again as one
TRAINED_ON = 20_000  # vectors that the 8-bit codes' ranges are taken from
REBUILD = 0.3  # share of deleted records from which on a graph is rebuilt and not added to


@dataclass(frozen=True, eq=False)
class Found:
    """What `Source.vectors` reads: numbers (N,) int64, content ids, vectors (N, G) float16."""

    numbers: np.ndarray
    ids: list[bytes]
    vectors: np.ndarray


class Source(Protocol):
    """The database at one moment, as a search needs it."""

    dim: int
    index_id: str

    def last_number(self) -> int: ...

    def num_records(self) -> int: ...

    def num_records_after(self, number: int) -> int: ...

    def epochs(self) -> list[Epoch]: ...

    def last_epoch(self) -> str:
        """The token of the last of them, empty where nothing was written."""

    def vectors(self, numbers: np.ndarray) -> Found:
        """Those of the numbers that are there."""

    def vectors_after(self, number: int, limit: int) -> Found:
        """The first `limit` records with a number above this one, ascending."""


@dataclass(frozen=True, eq=False)
class _Block:
    """Vectors in memory, scanned exactly."""

    index: Any  # faiss.IndexScalarQuantizer
    numbers: np.ndarray  # ascending


@dataclass(frozen=True, eq=False)
class _State:
    graph: Graph | None
    blocks: tuple[_Block, ...]
    last_number: int  # up to which graph and blocks know the records
    epoch: str  # token of the session that gave this number
    records: int  # that were there when this was made
    held: bool = True  # False: too many to hold, the disk is read

    @property
    def num_known(self) -> int:
        """Points of graph and blocks; of those some may be deleted records', or newer than a reader's moment."""
        return (len(self.graph.numbers) if self.graph else 0) + sum(len(block.numbers) for block in self.blocks)


_EMPTY = _State(None, (), 0, "", -1)
Hits = list[list[tuple[bytes, float]]]  # content id and cosine, best first, of each query


class Neighbours:
    """May be asked from several threads."""

    def __init__(self) -> None:
        self._state = _EMPTY
        self._lock = threading.Lock()

    def search(
        self, source: Source, queries: np.ndarray, top: int, allowed: np.ndarray | None = None, *, exact: bool = False
    ) -> Hits:
        """The `top` nearest records of each query by cosine.

        queries  (Q, G)  float32, L2-normalised
        allowed  (A,)    int64, ascending: the only records that count; None: all
        """
        if allowed is not None and len(allowed) <= FEW:
            return _nearest(queries, source.vectors(allowed), top)
        state = self._refreshed(source)
        if not state.held or (exact and state.graph is not None):
            return _scan_stored(source, queries, top, allowed)
        wanted = max(FEWEST_RESCORED, int(RESCORED * top)) if state.graph is not None else top
        there = source.num_records() if allowed is None else len(allowed)
        most = state.num_known if allowed is None else len(allowed)
        while True:
            with _threads_for(queries):
                candidates = _candidates(state, queries, max(min(wanted, most), 1), allowed)  # (Q, C), -1: no more
            hits = _rescored(source, queries, candidates, top)
            if all(len(found) >= min(top, there) for found in hits):
                return hits
            if wanted >= most:  # a graph need not reach every point
                return _scan_stored(source, queries, top, allowed)
            wanted *= 4  # deleted records were among them

    def build(
        self,
        source: Source,
        location: str,
        *,
        progress: BuildProgress = no_progress,
        stop: Callable[[], bool] = never,
    ) -> bool:
        """Build or extend the graph where it is worth it; whether one was made. Nothing is kept of what is stopped.

        OSError where the cache cannot be written.
        """
        records = source.num_records()
        epochs = source.epochs()
        if records < SCANNED or not epochs:
            return False
        graph = load_graph(source.index_id, source.dim, epochs)
        covered = 0 if graph is None else len(graph.numbers)
        after = records if graph is None else source.num_records_after(graph.last_number)
        dead = covered - (records - after)
        if graph is not None and dead > REBUILD * covered:
            graph, after = None, records
        if after < SCANNED and graph is not None:
            return False
        if graph is not None:
            graph = load_graph(source.index_id, source.dim, epochs, writable=True)
        index, parts = _new_graph(source) if graph is None else (graph.index, [np.asarray(graph.numbers)])
        index.hnsw.efConstruction = EF_CONSTRUCTION
        last = 0 if graph is None else graph.last_number
        done = 0
        while len((found := source.vectors_after(last, CHUNK)).numbers):
            if stop():
                return False
            index.add(found.vectors.astype(np.float32))
            parts.append(found.numbers)
            last = int(found.numbers[-1])
            done += len(found.numbers)
            progress(done, after)
        link_faint_points(index, stop)
        if stop():
            return False
        save_graph(source.index_id, location, Graph(index, np.concatenate(parts), epochs[-1].token, last))
        with self._lock:
            self._state = _EMPTY
        return True

    def _refreshed(self, source: Source) -> _State:
        """What is known, with what was written since."""
        last, records, epoch = source.last_number(), source.num_records(), source.last_epoch()
        state = self._state
        if (state.last_number, state.records, state.epoch) == (last, records, epoch):
            return state
        with self._lock:
            state = self._state
            if state.records < 0 or not given_by(source.epochs(), state.epoch, state.last_number):
                state = _opened(source)
            if state.held and last > state.last_number:
                state = _extended(state, source)
            in_memory = sum(len(block.numbers) for block in state.blocks)
            if in_memory > 2 * max(records, CHUNK):  # mostly of deleted records
                state = _extended(_opened(source), source)
            self._state = _State(
                state.graph,
                state.blocks,
                max(last, state.last_number),
                state.epoch if state.last_number > last else epoch,
                records,
                held=state.held and in_memory <= HELD,
            )
            return self._state


def _opened(source: Source) -> _State:
    """The graph, where there is one that covers most of the records."""
    graph = None
    if source.num_records() >= SCANNED:
        graph = load_graph(source.index_id, source.dim, source.epochs())
    last = 0 if graph is None else graph.last_number
    after = source.num_records_after(last)
    if graph is not None and source.num_records() - after < len(graph.numbers) / 2:
        graph, last, after = None, 0, source.num_records()
    return _State(graph, (), last, "" if graph is None else graph.epoch, 0, held=after <= HELD)


def _extended(state: _State, source: Source) -> _State:
    """With a block of what was written since; many small blocks become one."""
    blocks = list(state.blocks)
    last = state.last_number
    if len(blocks) >= BLOCKS:
        last = state.graph.last_number if state.graph else 0
        blocks = []
    index = faiss().IndexScalarQuantizer(source.dim, faiss().ScalarQuantizer.QT_fp16, faiss().METRIC_INNER_PRODUCT)
    index.is_trained = True  # half precision has nothing to learn
    numbers = []
    while len((found := source.vectors_after(last, CHUNK)).numbers):
        index.add(found.vectors.astype(np.float32))
        numbers.append(found.numbers)
        last = int(found.numbers[-1])
    if numbers:
        blocks.append(_Block(index, np.concatenate(numbers)))
    return replace(state, blocks=tuple(blocks), last_number=last)


def _candidates(state: _State, queries: np.ndarray, wanted: int, allowed: np.ndarray | None) -> np.ndarray:
    """Numbers of the nearest by codes, (Q, C) int64, -1 where there are fewer."""
    columns = [np.full((len(queries), 1), -1, np.int64)]
    scores = [np.full((len(queries), 1), -np.inf, np.float32)]
    if state.graph is not None:
        found, near = _in_graph(state.graph, queries, wanted, allowed)
        scores.append(found)
        columns.append(near)
    for block in state.blocks:
        mask = None if allowed is None else np.isin(block.numbers, allowed, assume_unique=True)
        if mask is not None and not mask.any():
            continue
        selector = None if mask is None else _selector(mask)
        parameters = None if selector is None else faiss().SearchParameters(sel=selector)
        found, places = block.index.search(queries, min(wanted, len(block.numbers)), params=parameters)
        scores.append(np.where(places < 0, -np.inf, found))
        columns.append(np.where(places < 0, -1, block.numbers[places]))
    numbers, cosine = np.concatenate(columns, 1), np.concatenate(scores, 1)
    if numbers.shape[1] > wanted:
        best = np.argpartition(-cosine, wanted - 1, axis=1)[:, :wanted]
        numbers = np.take_along_axis(numbers, best, 1)
    return numbers


def _in_graph(
    graph: Graph, queries: np.ndarray, wanted: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines by codes and numbers, both (Q, wanted)."""
    wanted = min(wanted, len(graph.numbers))
    ef = EF_SEARCH if len(graph.numbers) < LARGE else EF_SEARCH_LARGE
    if allowed is None:
        parameters = faiss().SearchParametersHNSW(efSearch=max(ef, int(EXPLORED * wanted)))
        cosine, places = graph.index.search(queries, wanted, params=parameters)
    else:
        mask = np.isin(graph.numbers, allowed, assume_unique=True)
        selector = _selector(mask)
        if mask.mean() < NARROW:
            codes = faiss().downcast_index(graph.index.storage)
            cosine, places = codes.search(queries, wanted, params=faiss().SearchParameters(sel=selector))
        else:
            parameters = faiss().SearchParametersHNSW(efSearch=max(ef, int(2 * EXPLORED * wanted)), sel=selector)
            cosine, places = graph.index.search(queries, wanted, params=parameters)
    return np.where(places < 0, -np.inf, cosine), np.where(places < 0, -1, np.asarray(graph.numbers)[places])


@contextmanager
def _threads_for(queries: np.ndarray) -> Iterator[None]:
    """FAISS divides queries among threads. With few queries that gains little, and on a busy machine a search waits for
    the system to run the others, 30 ms for a scan of 1. The number is this thread's own and is put back."""
    threads = faiss().omp_get_max_threads()
    if threads == 1 or len(queries) >= QUERIES_A_THREAD * threads:
        yield
        return
    faiss().omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss().omp_set_num_threads(threads)


def _selector(mask: np.ndarray) -> Any:
    """FAISS's own form of (N,) bool."""
    return faiss().IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _rescored(source: Source, queries: np.ndarray, candidates: np.ndarray, top: int) -> Hits:
    """The candidates that are still there, by the cosines of their stored vectors."""
    found = source.vectors(np.unique(candidates[candidates >= 0]))
    if not len(found.numbers):
        return [[] for _ in queries]
    places = np.searchsorted(found.numbers, candidates).clip(0, len(found.numbers) - 1)  # (Q, C)
    there = found.numbers[places] == candidates
    hits: Hits = []
    for query, of_query in zip(queries, (row[mask] for row, mask in zip(places, there, strict=True)), strict=True):
        some = Found(found.numbers[of_query], [found.ids[n] for n in of_query], found.vectors[of_query])
        hits += _nearest(query[None], some, top)
    return hits


def _nearest(queries: np.ndarray, found: Found, top: int) -> Hits:
    """All of `found` compared one by one."""
    cosine = queries @ found.vectors.astype(np.float32).T  # (Q, N)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :top]
    return [
        [(found.ids[n], float(row[n])) for n in of_query] for row, of_query in zip(cosine, order.tolist(), strict=True)
    ]


def _scan_stored(source: Source, queries: np.ndarray, top: int, allowed: np.ndarray | None) -> Hits:
    """Every record read from the database and compared; no memory but for a chunk."""
    best: Hits = [[] for _ in queries]
    for found in _chunks(source, allowed):
        for n, hits in enumerate(_nearest(queries, found, top)):
            best[n] = sorted(best[n] + hits, key=lambda hit: -hit[1])[:top]
    return best


def _chunks(source: Source, allowed: np.ndarray | None) -> Iterator[Found]:
    """All records, or the allowed ones, a chunk at a time."""
    if allowed is not None:
        yield from (source.vectors(allowed[start : start + CHUNK]) for start in range(0, len(allowed), CHUNK))
        return
    last = 0
    while len((found := source.vectors_after(last, CHUNK)).numbers):
        yield found
        last = int(found.numbers[-1])


def _new_graph(source: Source) -> tuple[Any, list[np.ndarray]]:
    """An empty graph whose codes are fitted to the first vectors, which are in no order of content."""
    index = faiss().IndexHNSWSQ(source.dim, faiss().ScalarQuantizer.QT_8bit, LINKS, faiss().METRIC_INNER_PRODUCT)
    index.train(source.vectors_after(0, TRAINED_ON).vectors.astype(np.float32))
    return index, []
