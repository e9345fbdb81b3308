"""How long a search takes beside the forward of its query, part by part, one at a time and in batches; its memory.

    python tests/benchmarks/search_speed.py --records 100000

Vectors and patches are made up: clustered vectors as in store_speed.py, and patches of which every second one is the
query's, so that there is something to agree on. A query has two looks, the whole and its middle, as most have.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from rerank_speed import GRID, PATCHES, candidate, unit
from store_speed import PeakMemory, clustered, record_chunks

from indexer.descriptor.config import DESCRIPTOR_CONFIGS
from indexer.descriptor.features import CropFeatures
from indexer.index.manifest import Manifest, write_manifest
from indexer.store.open import open_store
from indexer.store.protocol import Record, Schema
from retrieval.options import SearchOptions
from retrieval.query.query import EncodedQuery
from retrieval.rerank.rerank import Comparison
from retrieval.search import Searcher

QUERIES = 96
BATCH = 32
KINDS = 256  # of images whose patches are repeated all over the index


def make(args: argparse.Namespace) -> None:
    """An index of made-up records."""
    rng = np.random.default_rng(0)
    descriptor_config = DESCRIPTOR_CONFIGS[args.tokens]
    packed = [candidate(rng, view(rng, args.dim), descriptor_config) for _ in range(KINDS)]
    store = open_store(args.index, write=True)
    write_manifest(
        store, Manifest("none", "0" * 32, 224, descriptor_config.settings, "synthetic", args.records, {"0": "/photos"})
    )
    store.ensure(Schema(args.dim))
    for number, records in enumerate(record_chunks(args)):
        store.upsert([with_patches(record, packed[(number + n) % KINDS]) for n, record in enumerate(records)])
    store.optimize()
    store.close()


def with_patches(record: Record, packed: bytes) -> Record:
    return replace(record, patches=packed)


def view(rng: np.random.Generator, dim: int) -> CropFeatures:
    return CropFeatures(unit(rng, dim), unit(rng, PATCHES, 192), GRID)


def measure(args: argparse.Namespace) -> dict[str, float]:
    rng = np.random.default_rng(1)
    vectors = clustered(999_999_999, 2 * QUERIES, args.dim)
    views = [replace(view(rng, args.dim), vector=vector) for vector in vectors]
    asked = [EncodedQuery((whole, centre)) for whole, centre in zip(views[::2], views[1::2], strict=True)]
    with PeakMemory() as memory, Searcher.open(args.index) as searcher:
        store = searcher.store
        searcher.search_batch(asked)  # warm: pages of the payload are read from the disk once
        ids = [[hit.id for hit in hits] for hits in store.search(np.stack([one.views[0].vector for one in asked]), 100)]
        report = {
            "candidates of both looks": median(
                lambda one: store.search(np.stack([look.vector for look in one.views]), 100), asked
            ),
            "their patches": median(store.patches, ids),
            "compared": median(
                lambda pair: Comparison(pair[0].views, list(store.patches(pair[1]).values())),
                list(zip(asked, ids, strict=True)),
            ),
            "ten records": median(lambda some: store.retrieve(some[:10]), ids),
            "one search, reranked": median(searcher.search, asked),
            "one search, global only": median(partial(searcher.search, options=SearchOptions(rerank=False)), asked),
            f"a search in a batch of {BATCH}, reranked": batches(searcher.search_batch, asked),
        }
        report["compared"] -= report["their patches"]
    return report | {"peak memory, MB anonymous": memory.anonymous, "peak memory, MB file-backed": memory.file_backed}


def median(call: Callable[[Any], object], each: list[Any]) -> float:
    """Median of one call, ms."""
    times = []
    for one in each:
        started = time.perf_counter()
        call(one)
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def batches(call: Callable[[Any], object], each: list[Any]) -> float:
    """Median over batches of the time of one in it, ms."""
    return median(call, list(_batches(each))) / BATCH


def _batches(each: list[Any]) -> Iterator[list[Any]]:
    yield from (each[start : start + BATCH] for start in range(0, len(each), BATCH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--tokens", choices=list(DESCRIPTOR_CONFIGS), default="balanced")
    parser.add_argument("--dim", type=int, default=512, help="of the global vector")
    parser.add_argument("--index", type=Path, help="where to write, and what is used again if it is there")
    parser.add_argument("--step", choices=["make", "measure"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.patch_bytes = 1
    if args.step:
        print(json.dumps({"make": make, "measure": measure}[args.step](args)))
        return
    index = args.index or Path(tempfile.mkdtemp(prefix="search_speed."))
    print(f"{args.records:,} records, {args.tokens}; ms, median of {QUERIES} queries")
    steps = ["measure"] if args.index and args.index.exists() else ["make", "measure"]
    try:
        for step in steps:
            command = [sys.executable, __file__, *sys.argv[1:], "--step", step, "--index", str(index)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
            for name, value in (json.loads(done.stdout) or {}).items():
                print(f"  {name:40s} {value:10.1f}", flush=True)
    finally:
        if args.index is None:
            shutil.rmtree(index, ignore_errors=True)


if __name__ == "__main__":
    main()
