"""How long each step of curation takes on many vectors, how much memory, and what plain FAISS calls would take.

    python tests/benchmarks/curation_speed.py --rows 1000000 --work FOLDER

The vectors are drawn: kinds of very different frequency, variance that falls off with the dimension as a backbone's
does, and among ten images two copies with edits. Every step prints seconds by the clock and of the processor (all
threads, Ray's workers not counted), the largest memory so far, mapped files included, and the largest in this step of
the process's own, without mapped files, which the system may drop. Plain FAISS is timed on a sample of queries and
multiplied up: exact search, an IVF index of as many lists and probes, and k-means.
"""

import argparse
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import faiss
import numpy as np

from indexer.cluster.session import Cluster, open_cluster
from trainer.curation.balance import build_tree, default_levels, draw, effective
from trainer.curation.cells import Cells, build_cells, exact, sample_of
from trainer.curation.deduplicate import find_copies, near_any
from trainer.curation.embeddings import BLOCK_ROWS, Embeddings, unit_rows
from trainer.curation.kmeans import assign, kmeans
from trainer.curation.neighbours import NeighbourLists, Plan
from trainer.curation.retrieve import retrieve_nearest
from trainer.curation.whole_files import write_array

COPY_SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ray", metavar="ADDRESS", help="let a Ray cluster search and assign")
    parser.add_argument("--threads", type=int, default=None, help="of FAISS [all]")
    parser.add_argument("--curated", type=int, default=5000)
    parser.add_argument("--avoid", type=int, default=2000)
    parser.add_argument("--resamplings", type=int, default=10)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--no-floor", action="store_true", help="leave out plain FAISS")
    args = parser.parse_args()
    if args.threads:
        faiss.omp_set_num_threads(args.threads)
    shutil.rmtree(args.work, ignore_errors=True)

    with step(f"drawing {args.rows:,} vectors of {args.dim} numbers"):
        kinds, original = draw_vectors(args.work / "pool", args.rows, args.dim)
    pool = Embeddings.open(args.work / "pool")
    with ExitStack() as cleanup:
        spread = cleanup.enter_context(open_cluster(args.ray, args.workers)) if args.ray else None
        run_steps(args, pool, kinds, original, spread)


def run_steps(
    args: argparse.Namespace, pool: Embeddings, kinds: np.ndarray, original: np.ndarray, spread: Cluster | None
) -> None:
    with step("cells"):
        build_cells(pool, args.work / "cells", spread=spread)
    with step("copies: graph of 64 neighbours over .6, components"):
        copies = find_copies(pool, args.work, workers=args.workers, spread=spread)
    report_copies(copies.kept_for, original, copies.plan)
    cells = Cells.open(args.work / "cells")
    shards = sorted((args.work / "graph").glob("edges_*.npy"))
    report_recall(cells, NeighbourLists(tuple(shards), copies.plan))
    rng = np.random.default_rng(1)
    with step(f"leaks: all against {args.avoid:,}"):
        avoid = Embeddings((pool.rows(np.sort(rng.permutation(args.rows)[: args.avoid])),))
        similarity, _ = near_any(pool, avoid)
    left = np.flatnonzero((copies.kept_for == np.arange(args.rows)) & (similarity <= 0.45))
    print(f"  {len(left):,} left")
    with step(f"retrieval: 4 nearest of {args.curated:,}, cells anew"):
        curated = Embeddings((pool.rows(np.sort(rng.permutation(args.rows)[: args.curated])),))
        found = retrieve_nearest(build_cells(pool, args.work / "left", rows=left, spread=spread), curated)
    print(f"  {len(found.rows):,} retrieved")
    levels = default_levels(len(left))
    with step(f"hierarchical k-means {levels}, {args.resamplings} resamplings"):
        tree = build_tree(pool, levels, rows=left, resamplings=args.resamplings, spread=spread)
    with step("drawing a tenth"):
        chosen = left[draw(tree, len(left) // 10)]
    evenness = [effective(np.bincount(kinds[rows])) for rows in (np.arange(args.rows), left, chosen)]
    print("  kinds worth " + ", ".join(f"{value:,.0f}" for value in evenness) + " in the pool, left, drawn")
    if not args.no_floor:
        floor(pool, left, cells, copies.plan, levels[0])


def draw_vectors(
    folder: Path, rows: int, dim: int, *, falloff: float = 0.5, most_edited: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Write the vectors in shards; returns the kind of each row, and which row it is a copy of (its own number).

    falloff      the numbers' standard deviation falls as dimension ** -falloff
    most_edited  length of the largest change of a copy; without it a vector has a length of 1.1
    """
    rng = np.random.default_rng(0)
    num_kinds = max(10, rows // 100)
    frequency = 1 / np.arange(1, num_kinds + 1) ** 0.7
    scale = (np.arange(1, dim + 1) ** -falloff).astype(np.float32)
    kinds = rng.choice(num_kinds, rows, p=frequency / frequency.sum())
    original = np.arange(rows)
    scale /= np.linalg.norm(scale)
    centres = rng.standard_normal((num_kinds, dim), np.float32) * scale
    for number, start in enumerate(range(0, rows, BLOCK_ROWS)):
        mine = slice(start, min(start + BLOCK_ROWS, rows))
        count = mine.stop - start
        vectors = 0.5 * centres[kinds[mine]] + rng.standard_normal((count, dim), np.float32) * scale
        copied = np.flatnonzero(rng.random(count) < COPY_SHARE)
        copied = copied[copied > count // 2]  # of the block's first half, so that no copy is copied
        source = rng.integers(0, count // 2, len(copied))
        source = source[: len(copied)]
        edits = rng.uniform(0.2, most_edited, (len(copied), 1)).astype(np.float32)
        vectors[copied] = vectors[source] + edits * rng.standard_normal((len(copied), dim), np.float32) * scale
        kinds[start + copied], original[start + copied] = kinds[start + source], start + source
        write_array(folder / f"{number:05d}.npy", unit_rows(vectors)[0])
    return kinds, original


def report_copies(kept_for: np.ndarray, original: np.ndarray, plan: Plan) -> None:
    copies = np.flatnonzero(original != np.arange(len(original)))
    found = (kept_for[copies] == kept_for[original[copies]]).mean() if len(copies) else 1.0
    print(f"  {len(copies):,} copies drawn, {found:.3f} of them in one group with their original;", end=" ")
    print(f"{(kept_for != np.arange(len(kept_for))).sum():,} removed; {plan.probes} cells looked into")


def report_recall(cells: Cells, graph: NeighbourLists) -> None:
    """Edges of other rows than those that the number of probes was chosen by, against exact search."""
    positions = np.random.default_rng(99).permutation(len(cells))[: len(sample_of(len(cells)))]
    similarity, found = exact(cells, cells.vectors[positions].astype(np.float32), graph.plan.k + 1)
    edges = np.concatenate(list(graph))
    edges = edges[np.isin(edges["row"], cells.rows[positions])]
    known = {(int(edge["row"]), int(edge["neighbour"])) for edge in edges}
    true = [
        (int(cells.rows[position]), int(cells.rows[other]))
        for position, others, values in zip(positions, found, similarity, strict=True)
        for other, value in zip(others, values, strict=True)
        if other != position and value > graph.plan.above
    ]
    share = sum(pair in known for pair in true) / max(len(true), 1)
    print(f"  recall of {len(true):,} true edges of {len(positions)} rows: {share:.4f}")


def floor(pool: Embeddings, left: np.ndarray, cells: Cells, plan: Plan, num_clusters: int) -> None:
    """Plain calls on a sample, multiplied up to all rows; seconds of the processor."""
    rng = np.random.default_rng(2)
    count, total = 500, len(cells)
    queries = cells.vectors[np.sort(rng.permutation(total)[:count])].astype(np.float32)
    started = time.process_time()
    exact(cells, queries, plan.k + 1)
    print(f"plain exact search for the graph: {(time.process_time() - started) * total / count:,.0f} s")
    quantiser = faiss.IndexFlatIP(pool.dim)
    half = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(
        quantiser, pool.dim, len(cells.centroids), half, faiss.METRIC_INNER_PRODUCT, False
    )
    quantiser.add(cells.centroids)
    index.train(queries)
    for start in range(0, total, BLOCK_ROWS):
        index.add(cells.vectors[start : start + BLOCK_ROWS].astype(np.float32))
    index.nprobe = plan.probes
    started = time.process_time()
    index.search(queries, plan.k + 1)
    print(f"plain IVF search, as many probes: {(time.process_time() - started) * total / count:,.0f} s")
    few = min(num_clusters, 1000)
    started = time.process_time()
    centroids = kmeans(pool, few, rows=left, iterations=10)
    trained = time.process_time() - started
    flat = faiss.IndexFlatIP(pool.dim)
    flat.add(np.repeat(centroids, max(1, num_clusters // few), axis=0))
    block = pool.rows(left[:5000]).astype(np.float32)
    started = time.process_time()
    flat.search(block, 1)
    once = (time.process_time() - started) * len(left) / len(block)
    print(
        f"plain k-means: training {few:,} centroids {trained:,.0f} s; assigning all to {num_clusters:,} {once:,.0f} s"
    )
    similarity, _ = assign(pool, centroids, rows=left[:5000])
    print(f"  (mean similarity to the nearest centroid {similarity.mean():.3f})")


@contextmanager
def step(title: str) -> Iterator[None]:
    clock, processor = time.perf_counter(), processor_s()
    with own_memory() as own:
        yield
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e6
    clock, processor = time.perf_counter() - clock, processor_s() - processor
    print(
        f"{title}: {clock:,.1f} s, processor {processor:,.1f} s, peak {peak:.2f} GB, own {max(own):.2f} GB", flush=True
    )


@contextmanager
def own_memory() -> Iterator[list[float]]:
    """GB of this process that are no mapped files, asked ten times a second; not of its workers."""
    seen, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    seen.append(int(line.split()[1]) / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def processor_s() -> float:
    """Of this process and its finished children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
