"""How quick, how right and how large the embedded store is, on synthetic vectors.

    python tests/benchmarks/store_speed.py --records 100000

The vectors are clustered, 2,000 centres with noise around them, because images are: on plain Gaussian noise every
record is equally far from every query and the search graph looks worse than it is. Every step runs in a process of its
own, so that the memory printed is that of the step and not of the yardstick. With PYTHONPATH the same script measures
the program that lies there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from indexer.images.metadata import Metadata, content_id
from indexer.store.open import open_store
from indexer.store.protocol import Filter, Record, Schema, StoredFile

CENTRES = 2000
NOISE = 1.0  # length of the noise relative to the centre's
CHUNK = 1000  # records made and written at a time
QUERIES = 500
RENAMES = 10_000  # of records that are there


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clustered(seed: int, num: int, dim: int) -> np.ndarray:
    """(num, dim) float32, L2-normalised; the centres are the same for every seed."""
    centres = unit(np.random.default_rng(0).standard_normal((CENTRES, dim), dtype=np.float32))
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num, dim), dtype=np.float32) * (NOISE / np.sqrt(dim))
    return unit(centres[rng.integers(CENTRES, size=num)] + noise)


def record_chunks(args: argparse.Namespace) -> Iterator[list[Record]]:
    for start in range(0, args.records, CHUNK):
        num = min(CHUNK, args.records - start)
        vectors = clustered(1 + start, num, args.dim)
        rng = np.random.default_rng(start)
        yield [
            Record(
                content_id(str(start + i).encode()),
                (StoredFile(f"0/{(start + i) // 1000:04d}/IMG_{start + i:07d}.jpg", 3_000_000, 1_700_000_000 * 10**9),),
                Metadata(4032, 3024, "JPEG", None, "Apple iPhone 15", (48.1, 11.5)),
                whitening_id="synthetic",
                global_vector=vectors[i],
                patches=rng.bytes(args.patch_bytes),
            )
            for i in range(num)
        ]


class PeakMemory:
    """The process's peak of anonymous and of file-backed memory in MB, sampled; zeros where the system tells neither.

    File-backed pages belong to the page cache: the system takes them back when it needs room.
    """

    def __enter__(self) -> "PeakMemory":
        self.anonymous = self.file_backed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1) and os.path.exists("/proc/self/status"):
            with open("/proc/self/status") as status:
                kilobytes = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Rss")}
            self.anonymous = max(self.anonymous, int(kilobytes["RssAnon"]) // 1000)
            self.file_backed = max(self.file_backed, int(kilobytes["RssFile"]) // 1000)


def write(args: argparse.Namespace) -> dict[str, float]:
    with PeakMemory() as memory:
        store = open_store(args.index, write=True)
        store.ensure(Schema(args.dim))
        chunk_s = []
        for records in record_chunks(args):
            start = time.perf_counter()
            store.upsert(records)
            chunk_s.append(time.perf_counter() - start)
        store.close()
    return {
        "write, records/s median": CHUNK / float(np.median(chunk_s)),
        "write, records/s over all": args.records / sum(chunk_s),
        "peak memory writing, MB anonymous": memory.anonymous,
        "peak memory writing, MB mapped": memory.file_backed,
    }


def build(args: argparse.Namespace) -> dict[str, float]:
    store = open_store(args.index, write=True)
    with PeakMemory() as memory:
        start = time.perf_counter()
        store.optimize()
        build_s = time.perf_counter() - start
    start = time.perf_counter()
    store.optimize()
    idle_s = time.perf_counter() - start
    sizes = store.size().parts
    store.close()
    return {
        "build the neighbours, s": build_s,
        "build with nothing to do, s": idle_s,
        "peak memory building, MB anonymous": memory.anonymous,
        "peak memory building, MB mapped": memory.file_backed,
        **{f"bytes per record, {part}": size / args.records for part, size in sorted(sizes.items())},
        "bytes per record, all": sum(sizes.values()) / args.records,
    }


def first(args: argparse.Namespace) -> dict[str, float]:
    """A new process, its modules loaded; the files lie in the system's cache."""
    query = clustered(999_999_999, 1, args.dim)
    start = time.perf_counter()
    store = open_store(args.index)
    store.search(query, 10)
    first_s = time.perf_counter() - start
    store.close()
    return {"open to first result, ms": 1000 * first_s}


def two(args: argparse.Namespace) -> dict[str, float]:
    """An index of two records."""
    few = argparse.Namespace(**{**vars(args), "records": 2})
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "two", write=True)
        store.ensure(Schema(args.dim))
        for records in record_chunks(few):
            store.upsert(records)
        store.optimize()
        store.close()
        size = sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"apparent size of two records, MB": size / 1e6}


def without(args: argparse.Namespace) -> dict[str, float]:
    """Searches while no graph is there, as before the first build or where the cache was emptied."""
    queries = clustered(999_999_999, 21, args.dim)
    with PeakMemory() as memory:
        store = open_store(args.index)
        start = time.perf_counter()
        store.search(queries[:1], 10)
        first_s = time.perf_counter() - start
        query_ms = median_ms(lambda query: store.search(query[None], 10), queries[1:])
        store.close()
    return {
        "without the graph: first result, ms": 1000 * first_s,
        "without the graph: query, ms median": query_ms,
        "without the graph: peak memory, MB anonymous": memory.anonymous,
    }


def read(args: argparse.Namespace) -> dict[str, float]:
    queries = clustered(999_999_999, QUERIES, args.dim)
    rng = np.random.default_rng(1)
    with PeakMemory() as memory:
        store = open_store(args.index)
        store.search(queries, 10)  # warm
        times, answers = [], []
        for query in queries:
            start = time.perf_counter()
            answers += store.search(query[None], 10)
            times.append(1000 * (time.perf_counter() - start))
        report = dict(
            zip(("query, ms median", "query, ms p95"), map(float, np.percentile(times, [50, 95])), strict=True)
        )
        report["query in a batch of 500, ms"] = median_ms(lambda all: store.search(all, 10), [queries] * 3) / QUERIES
        candidates = [[hit.id for hit in hits] for hits in store.search(queries[:100], 100)]
        report["query for 100 candidates, ms median"] = median_ms(lambda q: store.search(q[None], 100), queries[:100])
        report["patches of 100 candidates, ms median"] = median_ms(store.patches, candidates)
        anywhere = [
            [content_id(str(n).encode()) for n in rng.choice(args.records, min(100, args.records), False)]
            for _ in range(20)
        ]
        report["patches of 100 anywhere, first read, ms median"] = median_ms(store.patches, anywhere)
        wide = tuple(f"0/{n:04d}" for n in range(args.records // 2000))
        for name, where in (("one folder of 1,000", Filter(under=("0/0001",))), ("half of all", Filter(under=wide))):
            under = [(query[None], 10, where) for query in queries[:30]]
            report[f"query under {name}, ms median"] = median_ms(lambda given: store.search(*given), under)
        report["exact query in a batch of 50, ms"] = (
            median_ms(lambda some: store.search(some, 10, exact=True), [queries[:50]]) / 50
        )
        for name, records in (("scroll", store.scroll()), ("list_files", store.list_files())):
            start = time.perf_counter()
            count = sum(1 for _ in records)
            report[f"{name}, records/s"] = count / (time.perf_counter() - start)
        store.close()
    report |= {
        "peak memory reading, MB anonymous": memory.anonymous,
        "peak memory reading, MB mapped": memory.file_backed,
    }
    if args.recall:
        report["recall@10"] = recall(args, queries, [[hit.id for hit in answer] for answer in answers])
    return report


def rename(args: argparse.Namespace) -> dict[str, float]:
    store = open_store(args.index, write=True)
    moved: dict[str, tuple[StoredFile, ...]] = {
        record.id: (StoredFile(f"0/moved/{n}.jpg", 3_000_000, 0),)
        for n, record in zip(range(RENAMES), store.list_files(), strict=False)
    }
    start = time.perf_counter()
    store.set_files(moved)
    rename_s = time.perf_counter() - start
    store.close()
    return {f"rename {len(moved):,}, s": rename_s}


def median_ms(call: Callable[[Any], object], each: Iterable[Any]) -> float:
    """Median time of one call."""
    times = []
    for one in each:
        start = time.perf_counter()
        call(one)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


STEPS = {step.__name__: step for step in (write, build, first, read, without, two, rename)}


def recall(args: argparse.Namespace, queries: np.ndarray, answers: list[list[str]]) -> float:
    """The share of FAISS's exact first 10 that are among ours, 10 * QUERIES in all."""
    import faiss

    exact = faiss.IndexFlatIP(args.dim)
    for start in range(0, args.records, CHUNK):
        exact.add(clustered(1 + start, min(CHUNK, args.records - start), args.dim))
    _, nearest = exact.search(queries, 10)  # (Q, 10)
    wanted = [{content_id(str(number).encode()) for number in row} for row in nearest]
    return float(np.mean([len(want & set(got)) / len(want) for want, got in zip(wanted, answers, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512, help="of the global vector")
    parser.add_argument("--patch-bytes", type=int, default=3100, help="packed patch tokens per record")
    parser.add_argument("--recall", action=argparse.BooleanOptionalAction, default=True, help="compare with FAISS")
    parser.add_argument(
        "--index", type=Path, help="where to write, and what is read if it is there; else a temporary one"
    )
    parser.add_argument("--cache", type=Path, help="where the graph lies; a temporary folder by default")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="what to measure")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args)))
        return
    scratch = Path(tempfile.mkdtemp(prefix="store_speed."))
    index, cache = args.index or scratch / "index", args.cache or scratch / "cache"
    print(f"{args.records:,} records, global {args.dim}, {args.patch_bytes:,} bytes of patches")
    given = ["--records", args.records, "--dim", args.dim, "--patch-bytes", args.patch_bytes, "--index", index]
    given += ["--recall" if args.recall else "--no-recall"]
    try:
        for step in args.steps:
            environment = {
                **os.environ,
                "PYTHONPATH": os.environ.get("PYTHONPATH") or str(Path(__file__).parents[2]),
                "SEENIT_CACHE": str(scratch / "empty" if step == "without" else cache),
            }
            command = [sys.executable, __file__, *map(str, given), "--step", step]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            for name, value in json.loads(done.stdout).items():
                print(f"  {name:48s} {value:12,.3f}" if value < 100 else f"  {name:48s} {value:12,.0f}", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
