"""What a search waits for at the store: patches of its candidates and neighbours, embedded and over HTTP and gRPC.

    python tests/benchmarks/server_speed.py --records 20000

The server is the tests' peer in a process of its own: Qdrant's engine behind a small server in Python. What it takes
for JSON and for its own language is in the figures; a real server takes less. So they bound what the client and the
number of its requests cost, and do not tell how quick Qdrant is. Each figure is of --rounds calls with candidates of
their own, after ten that are not counted. Recall is held against comparing with every record.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from store_speed import clustered, record_chunks

from indexer.store.open import open_store
from indexer.store.protocol import Filter, Schema, Store

TESTS = Path(__file__).parents[1]
WARM_UP = 10
CANDIDATES, AT_ONCE, TOP = 100, 16, 100  # as a search asks: candidates of a query, queries of a batch, neighbours

PEER = """
import sys
from qdrant_grpc_peer import QdrantGrpcPeer
from qdrant_peer import QdrantPeer
with QdrantPeer() as peer, QdrantGrpcPeer(peer) as grpc_peer:
    print(peer.url, grpc_peer.port, flush=True)
    sys.stdin.read()
"""


@contextmanager
def running_peer() -> Iterator[tuple[str, int]]:
    """The address of a peer in a process of its own, and its port for gRPC."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-c", PEER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        url, port = process.stdout.readline().split()
        try:
            yield url, int(port)
        finally:
            with suppress(OSError):
                process.stdin.close()


def fill(store: Store, args: argparse.Namespace) -> float:
    """Records a second."""
    store.ensure(Schema(args.dim))
    writing_s = 0.0
    for records in record_chunks(args):
        start = time.perf_counter()
        store.upsert(records)
        writing_s += time.perf_counter() - start
    start = time.perf_counter()
    store.optimize()
    print(f"    linked in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return float(args.records / writing_s)


def timed(rounds: int, call: Callable[[int], object]) -> str:
    """p50 and p95 of the calls, which get their number."""
    took_ms = []
    for number in range(-WARM_UP, rounds):
        start = time.perf_counter()
        call(number)
        took_ms.append(1000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(took_ms[WARM_UP:], (50, 95))
    return f"{p50:.1f} / {p95:.1f}"


def measure(store: Store, args: argparse.Namespace) -> dict[str, str]:
    rng = np.random.default_rng(7)
    ids = [listed.id for listed in store.list_files()]
    queries = clustered(999_999, 400, args.dim)  # (400, G)

    def some(count: int) -> list[str]:
        return [ids[n] for n in rng.choice(len(ids), count, replace=False)]

    def batch(number: int, count: int) -> np.ndarray:
        return np.roll(queries, number * count, axis=0)[:count]

    filtered = Filter(under=("0/0000", "0/0001"))
    found = store.search(queries[:100], 10)
    exact = store.search(queries[:100], 10, exact=True)
    recall = np.mean(
        [len({a.id for a in one} & {b.id for b in best}) / 10 for one, best in zip(found, exact, strict=True)]
    )
    assert len(store.patches(some(CANDIDATES))) == CANDIDATES
    return {
        f"patches of {CANDIDATES} candidates": timed(args.rounds, lambda _: store.patches(some(CANDIDATES))),
        f"patches of {AT_ONCE} x {CANDIDATES} candidates": timed(
            args.rounds // 4, lambda _: store.patches(some(min(AT_ONCE * CANDIDATES, len(ids))))
        ),
        f"{TOP} neighbours of a query": timed(args.rounds, lambda n: store.search(batch(n, 1), TOP)),
        f"the same below two folders of {args.records // 1000}": timed(
            args.rounds, lambda n: store.search(batch(n, 1), TOP, filtered)
        ),
        f"{TOP} neighbours of {AT_ONCE} queries": timed(
            args.rounds // 4, lambda n: store.search(batch(n, AT_ONCE), TOP)
        ),
        "10 records": timed(args.rounds, lambda _: store.retrieve(some(10))),
        "recall@10": f"{recall:.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--patch-bytes", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="server_speed.") as folder, running_peer() as (url, port):
        os.environ["SEENIT_CACHE"] = os.path.join(folder, "cache")
        columns: dict[str, dict[str, str]] = {}
        places: dict[str, str | Path] = {
            "embedded": Path(folder) / "index",
            "HTTP": f"{url}/http",
            "gRPC": f"{url}/grpc?grpc={port}",
        }
        for name, place in places.items():
            store = open_store(place, write=True)
            print(name, file=sys.stderr)
            rate = fill(store, args)
            columns[name] = {"write, records/s": f"{rate:,.0f}", **measure(store, args)}
            store.close()
    print("| ms, p50 / p95 | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for row in columns["embedded"]:
        print(f"| {row} | " + " | ".join(of_store[row] for of_store in columns.values()) + " |")


if __name__ == "__main__":
    main()
