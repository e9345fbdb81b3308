"""The graph of nearest neighbours, a shard of queries at a time: resumable, and spread over processes or machines.

Queries go in the order of the cells (see `cells`), so that those of a shard look into the same ones. A shard's result
depends on no other's.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import faiss
import numpy as np

from .cells import Cells, nearest_in_cells, probes_for, sample_of, similar_in_cells
from .embeddings import Embeddings
from .spread import Spread
from .whole_files import claim_work_folder, read_array, write_array, write_text

# Queries in a shard of the graph: SHARDS shards, so that many workers have something to do, but within these borders.
# The more there are, the larger are the products beside the reading of cells, and the more memory they take
LEAST_ROWS, MOST_ROWS = 32_768, 262_144
SHARDS = 40

EDGE = np.dtype([("row", "<u4"), ("neighbour", "<u4"), ("similarity", "<f4")])


@dataclass(frozen=True)
class Plan:
    """What the edges of a graph depend on besides the vectors."""

    k: int  # neighbours of each row, at most
    above: float  # only neighbours that are more similar than that
    probes: int  # cells that each query looks into
    recall: float  # share of the true neighbours that the sample finds so; 1 if exact
    sample: int  # how many neighbours that is judged by


@dataclass(frozen=True)
class NeighbourLists:
    """Who is near whom, in files of EDGE; numbers are rows of the embeddings, and no row is its own neighbour."""

    shards: tuple[Path, ...]
    plan: Plan

    def __iter__(self) -> Iterator[np.ndarray]:
        return (read_array(path) for path in self.shards)


def neighbour_graph(
    cells: Cells,
    folder: Path,
    cells_folder: Path,
    *,
    k: int = 64,
    above: float = -1.0,
    recall: float = 0.95,
    either: bool = False,
    workers: int = 1,
    spread: Spread | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> NeighbourLists:
    """The k nearest neighbours of every vector in the cells, shard by shard; shards that are there are not made again.

    above     leave out neighbours that are no more similar than that
    recall    share of the true neighbours to be found, judged on a sample
    either    of two neighbours one has to find the other, not both; see `cells.probes_for`
    workers   processes of this machine; the result is the same for any number
    spread    other machines in their place
    progress  gets how many shards are done, of how many
    """
    how = f"k {k} above {above} recall {recall}{' either' * either} shards {shard_rows(len(cells))}"
    made_from = f"graph {how} of {(cells_folder / 'made_from').read_text('utf-8')}"
    claim_work_folder(folder, made_from)
    if not (folder / "plan.json").is_file():
        probes, found, judged = probes_for(cells, sample_of(len(cells)), k=k, above=above, recall=recall, either=either)
        write_text(folder / "plan.json", json.dumps(asdict(Plan(k, above, probes, found, judged))))
    plan = Plan(**json.loads((folder / "plan.json").read_text("utf-8")))
    count = math.ceil(len(cells) / shard_rows(len(cells)))
    missing = [number for number in range(count) if not _shard_path(folder, number).is_file()]
    progress(count - len(missing), count)
    if spread is not None:
        parts = ((folder, cells_folder, number) for number in missing)
        for done, _ in enumerate(spread.map(search_shard, parts), start=count - len(missing) + 1):
            progress(done, count)
    elif workers == 1:
        for done, number in enumerate(missing, start=count - len(missing) + 1):
            search_shard(folder, cells_folder, number)
            progress(done, count)
    elif missing:
        _spread(folder, cells_folder, missing, workers, lambda done: progress(count - len(missing) + done, count))
    return NeighbourLists(tuple(_shard_path(folder, number) for number in range(count)), plan)


def shard_rows(count: int) -> int:
    """Queries in a shard of a graph of so many vectors."""
    return min(max(math.ceil(count / SHARDS), LEAST_ROWS), MOST_ROWS)


def search_shard(folder: Path, cells_folder: Path, number: int) -> None:
    """Find the neighbours of one shard's queries and write them: all that a worker on any machine has to do."""
    cells, plan = Cells.open(cells_folder), Plan(**json.loads((folder / "plan.json").read_text("utf-8")))
    size = shard_rows(len(cells))
    where = slice(number * size, min((number + 1) * size, len(cells)))
    queries, own = np.array(cells.vectors[where], np.float32), np.array(cells.rows[where])
    asking, rows, similarity = _nearest_pairs(cells, queries, plan)
    kept = rows != own[asking]  # the query itself was found
    asking, rows, similarity = asking[kept], rows[kept], similarity[kept]
    kept = np.arange(len(asking)) - np.searchsorted(asking, asking) < plan.k
    edges = np.empty(int(kept.sum()), EDGE)
    edges["row"], edges["neighbour"], edges["similarity"] = own[asking[kept]], rows[kept], similarity[kept]
    write_array(_shard_path(folder, number), edges)


def _nearest_pairs(cells: Cells, queries: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries (E,) ascending, rows (E,), similarity (E,) over the plan's, descending for each query; k + 1 at most."""
    if plan.above > 0:
        return similar_in_cells(cells, queries, plan.k + 1, probes=plan.probes, above=plan.above)
    similarity, rows = nearest_in_cells(cells, queries, plan.k + 1, probes=plan.probes)  # (Q, K + 1)
    asking, at = np.nonzero((rows >= 0) & (similarity > plan.above))
    return asking, rows[asking, at], similarity[asking, at]


def nearest(
    cells: Cells,
    queries: Embeddings,
    k: int,
    *,
    allowed: np.ndarray | None = None,
    recall: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest in the cells of each other vector: (Q, K) similarity and (Q, K) rows, -1 for none."""
    probes = 1
    if len(cells.centroids) > 1:
        sample = queries.rows(sample_of(len(queries))).astype(np.float32)
        probes, _, _ = probes_for(cells, sample, k=k, recall=recall, allowed=allowed)
    answers = [
        nearest_in_cells(cells, block, k, probes=probes, allowed=allowed)
        for _, block in queries.blocks(size=LEAST_ROWS)
    ]
    similarity, rows = zip(*answers, strict=True)
    return np.concatenate(similarity), np.concatenate(rows)


def _spread(folder: Path, cells_folder: Path, numbers: list[int], workers: int, done: Callable[[int], object]) -> None:
    """Have processes of our own do the shards; the first failure, or Ctrl-C, ends all."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(threads,))
    try:
        waiting = [pool.submit(search_shard, folder, cells_folder, number) for number in numbers]
        for count, finished in enumerate(as_completed(waiting), start=1):
            finished.result()
            done(count)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _start_worker(threads: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and cancels what waits
    faiss.omp_set_num_threads(threads)


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"edges_{number:05d}.npy"
