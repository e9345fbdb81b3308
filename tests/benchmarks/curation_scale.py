"""What all steps of curation take on 100,000, 1 million and 10 million drawn vectors of 384 numbers.

    python tests/benchmarks/curation_scale.py --work FOLDER --rows 100000 1000000 10000000

Each size runs in a process of its own and prints a table: seconds by the clock and of the processor, the largest memory
of its own (RssAnon, asked ten times a second; files that are mapped are not in it, as the system may drop them), and
bytes on the disk after the step, the vectors themselves included. Where its own memory is over `--most-gb`, it ends.

The vectors are drawn: kinds of very different frequency, a tenth of them edited copies, and a twentieth equal bit for
bit. Their variance falls off with the dimension as it does among the whitened vectors of an index, in which the cosines
of unrelated photos spread by .06 (3,072 photos, shipped backbone); `--falloff .5` gives that of raw features, among
which they spread by .18 and one vector in three has unrelated ones over .6.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch
from curation_speed import draw_vectors, own_memory, processor_s

from trainer.curation.balance import build_tree, default_levels, draw, effective
from trainer.curation.cells import Cells
from trainer.curation.deduplicate import find_copies, near_any
from trainer.curation.embeddings import BLOCK_ROWS, Embeddings
from trainer.curation.kmeans import assign, kmeans
from trainer.curation.retrieve import retrieve_left
from trainer.curation.whole_files import write_array

EQUAL_SHARE = 0.05
FALLOFF = 0.22
CURATED, AVOID = 5000, 2000
MOST_FOR_GROUPS = 100_000  # rows that plain k-means takes minutes for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--falloff", type=float, default=FALLOFF, help="see draw_vectors")
    parser.add_argument("--most-edited", type=float, default=0.7, help="see draw_vectors")
    parser.add_argument("--resamplings", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most-gb", type=float, default=4.0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="keep the files, for --resume")
    parser.add_argument("--resume", action="store_true", help="go on with the files of a run that was cut short")
    parser.add_argument("--no-groups", action="store_true", help="leave out k-means in groups beside plain k-means")
    args = parser.parse_args()
    if len(args.rows) > 1:
        given = sys.argv[1:]
        at = given.index("--rows")
        others = given[:at] + given[at + 1 + len(args.rows) :]
        for rows in args.rows:
            own = ["--rows", str(rows), "--work", str(args.work / str(rows))]
            subprocess.run([sys.executable, sys.argv[0], *others, *own], check=True)
        return
    faiss.omp_set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    if not args.resume:
        shutil.rmtree(args.work, ignore_errors=True)
    print(f"\n{args.rows[0]:,} vectors of {args.dim} numbers, {args.threads} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| step | s | of the processor | own memory, GB | on disk, GB |\n|---|---|---|---|---|", flush=True)
    run_steps(args, Steps(args.work, args.most_gb))
    if not args.keep:
        shutil.rmtree(args.work)


class Steps:
    """The table's rows, one for each step."""

    def __init__(self, work: Path, most_gb: float) -> None:
        self._work, self._most_gb = work, most_gb
        self._total = [0.0, 0.0, 0.0]

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        clock, processor = time.perf_counter(), processor_s()
        with own_memory() as own:
            yield
        clock, processor = time.perf_counter() - clock, processor_s() - processor
        self._total = [self._total[0] + clock, self._total[1] + processor, max(self._total[2], *own)]
        self._print(title, clock, processor, max(own))
        if max(own) > self._most_gb:
            sys.exit(f"{title} took {max(own):.2f} GB, more than {self._most_gb:g}")

    def print_total(self) -> None:
        self._print("**together**", *self._total)

    def _print(self, title: str, clock: float, processor: float, own_gb: float) -> None:
        on_disk = sum(path.stat().st_size for path in self._work.rglob("*") if path.is_file()) / 1e9
        print(f"| {title} | {clock:,.0f} | {processor:,.0f} | {own_gb:.2f} | {on_disk:.2f} |", flush=True)


def run_steps(args: argparse.Namespace, steps: Steps) -> None:
    (rows,) = args.rows
    with steps.step("draw"):
        kinds, original = drawn(args)
    pool = Embeddings.open(args.work / "pool")
    with steps.step("copies: cells, graph of 64 neighbours over .6, components"):
        copies = find_copies(pool, args.work)
    rng = np.random.default_rng(1)
    avoid, curated = (
        Embeddings((pool.rows(np.sort(rng.choice(rows, count, replace=False))),)) for count in (AVOID, CURATED)
    )
    with steps.step(f"all against an evaluation set of {AVOID:,}"):
        similarity, _ = near_any(pool, avoid)
    left = np.flatnonzero((copies.kept_for == np.arange(rows)) & (similarity <= 0.45))
    with steps.step(f"4 nearest of {CURATED:,} curated"):
        found = retrieve_left(Cells.open(args.work / "cells"), copies.alike, left, curated)
    levels = default_levels(len(left))
    with steps.step(f"hierarchical k-means {levels}, {args.resamplings} resamplings"):
        tree = build_tree(pool, levels, rows=left, resamplings=args.resamplings)
    with steps.step("drawing a tenth"):
        chosen = left[draw(tree, len(left) // 10)]
    steps.print_total()
    report(pool, copies.kept_for, original, left, found.rows, kinds, chosen, copies.plan.probes, copies.plan.recall)
    if len(left) <= MOST_FOR_GROUPS and not args.no_groups:
        report_groups(pool, left)


def drawn(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Kinds and originals, see `draw_vectors`; those of a run that is resumed."""
    paths = [args.work / f"{name}.npy" for name in ("kinds", "original")]
    if not all(path.is_file() for path in paths):
        (rows,) = args.rows
        found = draw_vectors(args.work / "pool", rows, args.dim, falloff=args.falloff, most_edited=args.most_edited)
        make_equal(args.work / "pool", *found)
        for path, array in zip(paths, found, strict=True):
            write_array(path, array)
    kinds, original = (np.load(path) for path in paths)
    return kinds, original


def make_equal(folder: Path, kinds: np.ndarray, original: np.ndarray) -> None:
    """Overwrite a twentieth of the rows of each shard by rows of the same shard, bit for bit."""
    rng = np.random.default_rng(5)
    for number, path in enumerate(sorted(folder.glob("*.npy"))):
        vectors = np.load(path)
        count, start = int(len(vectors) * EQUAL_SHARE), number * BLOCK_ROWS
        uncopied = np.flatnonzero(original[start : start + len(vectors)] == start + np.arange(len(vectors)))
        targets = uncopied[uncopied > len(vectors) // 2][:count]  # nothing is a copy of the second half
        sources = rng.integers(0, len(vectors) // 2, len(targets))
        vectors[targets], original[start + targets] = vectors[sources], original[start + sources]
        kinds[start + targets] = kinds[start + sources]
        write_array(path, vectors)


def report(
    pool: Embeddings,
    kept_for: np.ndarray,
    original: np.ndarray,
    left: np.ndarray,
    retrieved: np.ndarray,
    kinds: np.ndarray,
    chosen: np.ndarray,
    probes: int,
    recall: float,
) -> None:
    copies = np.flatnonzero(original != np.arange(len(original)))
    found = (kept_for[copies] == kept_for[original[copies]]).mean()
    print(f"\n{len(copies):,} copies were drawn; {found:.3f} of them are in one group with their original.", end=" ")
    print(f"{probes} cells are looked into, which finds {recall:.4f} of the true neighbours of the sample.")
    even = [effective(np.bincount(kinds[some])) for some in (np.arange(len(kinds)), left, chosen)]
    print(f"{len(left):,} are left, {len(retrieved):,} retrieved; kinds are worth", end=" ")
    print(", ".join(f"{value:,.0f}" for value in even) + " equal ones in the pool, left and drawn.")


def report_groups(pool: Embeddings, left: np.ndarray) -> None:
    """k-means in groups, as it is with many centroids, beside plain k-means of as many."""
    from trainer.curation import kmeans as module

    print("\n| centroids | trained | s of the processor | mean cosine to the nearest | evenness of sizes |")
    print("|---|---|---|---|---|")
    for count in (500, 1000, 2000):
        for name, flat in (("plainly", count), ("in groups", 1)):
            before, module.FLAT = module.FLAT, flat
            started = processor_s()
            centroids = kmeans(pool, count, rows=left)
            took = processor_s() - started
            module.FLAT = before
            similarity, cluster = assign(pool, centroids, rows=left)
            even = effective(np.bincount(cluster, minlength=count)) / count
            print(f"| {count:,} | {name} | {took:.1f} | {similarity.mean():.4f} | {even:.3f} |", flush=True)


if __name__ == "__main__":
    main()
