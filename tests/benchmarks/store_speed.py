"""How quick, how right and how large the embedded store is, on synthetic vectors.

    python tests/benchmarks/store_speed.py --records 100000

The vectors are clustered, 2,000 centres with noise around them, because pictures are: on plain Gaussian noise every
record is equally far from every query and the search graph looks worse than it is. Writing and reading run each in a
process of their own, so that the memory printed is that of the step and not of the yardstick (FAISS).
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from indexer.store import Metadata, Record, Schema, StoredFile, Where, content_id, open_store

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
                fit="synthetic",
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
    with PeakMemory() as memory_of_optimizing:
        start = time.perf_counter()
        if args.optimize:
            store.optimize()
        optimize_s = time.perf_counter() - start
        start = time.perf_counter()
        if args.optimize:
            store.optimize()
        idle_s = time.perf_counter() - start
    sizes = store.size().parts
    moved: dict[str, tuple[StoredFile, ...]] = {
        record.id: (StoredFile(f"0/moved/{n}.jpg", 3_000_000, 0),)
        for n, record in zip(range(RENAMES), store.list_files(), strict=False)
    }
    start = time.perf_counter()
    store.set_files(moved)
    rename_s = time.perf_counter() - start
    store.close()
    return {
        "write, records/s median": CHUNK / float(np.median(chunk_s)),
        "write and optimize on the way, s": sum(chunk_s),
        "optimize the rest, s": optimize_s,
        "optimize with nothing to do, s": idle_s,
        f"rename {len(moved):,}, s": rename_s,
        "peak memory writing, MB anonymous": memory.anonymous,
        "peak memory writing, MB file-backed": memory.file_backed,
        "peak memory optimizing, MB anonymous": memory_of_optimizing.anonymous,
        "peak memory optimizing, MB file-backed": memory_of_optimizing.file_backed,
        **{f"bytes per record, {part}": size / args.records for part, size in sorted(sizes.items())},
        "bytes per record, all": sum(sizes.values()) / args.records,
    }


def read(args: argparse.Namespace) -> dict[str, float]:
    queries = clustered(999_999_999, QUERIES, args.dim)
    start = time.perf_counter()
    store = open_store(args.index)
    store.search(queries[:1], 10)
    open_s = time.perf_counter() - start
    store.search(queries, 10)  # warm
    report = {"open to first result, ms": 1000 * open_s}
    times = []
    answers = []
    for query in queries:
        start = time.perf_counter()
        answers += store.search(query[None], 10)
        times.append(1000 * (time.perf_counter() - start))
    report["query, ms median"], report["query, ms p95"] = np.percentile(times, [50, 95])
    start = time.perf_counter()
    store.search(queries, 10)
    report["query in a batch of 500, ms"] = 1000 * (time.perf_counter() - start) / QUERIES
    start = time.perf_counter()
    store.search(queries[:50], 10, exact=True)
    report["exact query in a batch of 50, ms"] = 1000 * (time.perf_counter() - start) / 50
    times = []
    for query in queries[:100]:
        start = time.perf_counter()
        store.search(query[None], 10, Where(under=("0/0001",)))
        times.append(1000 * (time.perf_counter() - start))
    report["query under one folder of 1,000, ms median"] = float(np.median(times))
    times, times_of_patches = [], []
    for query in queries[:50]:
        start = time.perf_counter()
        candidates = [hit.id for hit in store.search(query[None], 100)[0]]
        found = time.perf_counter()
        store.patches(candidates)
        times.append(1000 * (found - start))
        times_of_patches.append(1000 * (time.perf_counter() - found))
    report["query for 100 candidates, ms median"] = float(np.median(times))
    report["patches of 100 candidates, ms median"] = float(np.median(times_of_patches))
    times = []
    rng = np.random.default_rng(1)
    for _ in range(20):
        others = [content_id(str(n).encode()) for n in rng.choice(args.records, min(100, args.records), False)]
        start = time.perf_counter()
        store.patches(others)
        times.append(1000 * (time.perf_counter() - start))
    report["patches of 100 that lie on the disk, ms median"] = float(np.median(times))
    for name, records in (("scroll", store.scroll()), ("list_files", store.list_files())):
        start = time.perf_counter()
        read = sum(1 for _ in records)
        report[f"{name}, records/s"] = read / (time.perf_counter() - start)
    store.close()
    if args.recall:
        report["recall@10"] = recall(args, queries, [[hit.id for hit in answer] for answer in answers])
    return report


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
    parser.add_argument("--optimize", action=argparse.BooleanOptionalAction, default=True, help="build the graph")
    parser.add_argument("--index", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--step", choices=["write", "read"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps({"write": write, "read": read}[args.step](args)))
        return
    index = args.index or Path(tempfile.mkdtemp(prefix="store_speed."))
    print(f"{args.records:,} records, global {args.dim}, {args.patch_bytes:,} bytes of patches")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        for step in ("write", "read"):
            command = [sys.executable, __file__, *sys.argv[1:], "--step", step, "--index", str(index)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            for name, value in json.loads(done.stdout).items():
                print(f"  {name:46s} {value:12,.3f}" if value < 100 else f"  {name:46s} {value:12,.0f}", flush=True)
    finally:
        if args.index is None:
            shutil.rmtree(index, ignore_errors=True)


if __name__ == "__main__":
    main()
