"""What a search waits for at the store: patches of its candidates and neighbours, embedded and over HTTP and gRPC.

    python tests/benchmarks/server_speed.py --records 20000

The server is the tests' peer in a process of its own: Qdrant's engine behind a small server in Python. What it takes
for JSON and for its own language is in the figures; a real server takes less. So they bound what the client and the
number of its requests cost, and do not tell how quick Qdrant is. Each figure is of --rounds calls with candidates of
their own, after ten that are not counted: p50 / p95 by the clock, and in brackets the milliseconds of the processor
that a call takes of this process and of the server's. Recall is held against comparing with every record.
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
def running_peer() -> Iterator[tuple[str, int, int]]:
    """The address of a peer in a process of its own, its port for gRPC, and the process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-c", PEER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        url, port = process.stdout.readline().split()
        try:
            yield url, int(port), process.pid
        finally:
            with suppress(OSError):
                process.stdin.close()


def processor_s(peer: int | None) -> np.ndarray:
    """Seconds of the processor so far, of this process and of the peer."""
    return np.array([time.process_time(), 0.0 if peer is None else of_process(peer)])


def of_process(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def fill(store: Store, args: argparse.Namespace, peer: int | None) -> str:
    """Records a second, and milliseconds of the processor for a thousand."""
    store.ensure(Schema(args.dim))
    writing_s, used_s = 0.0, np.zeros(2)
    for records in record_chunks(args):
        start, before = time.perf_counter(), processor_s(peer)
        store.upsert(records)
        writing_s += time.perf_counter() - start
        used_s += processor_s(peer) - before
    start = time.perf_counter()
    store.optimize()
    print(f"    linked in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return f"{args.records / writing_s:,.0f} {bracketed(used_s / args.records * 1000)}"


def bracketed(used_s: np.ndarray) -> str:
    own, peer = 1000 * used_s
    return f"({own:.1f})" if peer == 0 else f"({own:.1f} + {peer:.1f})"


def timed(rounds: int, call: Callable[[int], object], peer: int | None) -> str:
    """p50 and p95 of the calls, which get their number, and what they take of the processor."""
    took_ms, before = [], np.zeros(2)
    for number in range(-WARM_UP, rounds):
        if number == 0:
            before = processor_s(peer)
        start = time.perf_counter()
        call(number)
        took_ms.append(1000 * (time.perf_counter() - start))
    used_s = (processor_s(peer) - before) / rounds
    p50, p95 = np.percentile(took_ms[WARM_UP:], (50, 95))
    return f"{p50:.1f} / {p95:.1f} {bracketed(used_s)}"


def measure(store: Store, args: argparse.Namespace, peer: int | None) -> dict[str, str]:
    rng = np.random.default_rng(7)
    ids = [listed.id for listed in store.list_files()]
    queries = clustered(999_999, 400, args.dim)  # (400, G)

    def some(count: int) -> list[str]:
        return [ids[n] for n in rng.choice(len(ids), count, replace=False)]

    def time_of(rounds: int, call: Callable[[int], object]) -> str:
        return timed(rounds, call, peer)

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
        f"patches of {CANDIDATES} candidates": time_of(args.rounds, lambda _: store.patches(some(CANDIDATES))),
        f"patches of {AT_ONCE} x {CANDIDATES} candidates": time_of(
            args.rounds // 4, lambda _: store.patches(some(min(AT_ONCE * CANDIDATES, len(ids))))
        ),
        f"{TOP} neighbours of a query": time_of(args.rounds, lambda n: store.search(batch(n, 1), TOP)),
        f"the same below two folders of {args.records // 1000}": time_of(
            args.rounds, lambda n: store.search(batch(n, 1), TOP, filtered)
        ),
        f"{TOP} neighbours of {AT_ONCE} queries": time_of(
            args.rounds // 4, lambda n: store.search(batch(n, AT_ONCE), TOP)
        ),
        "10 records": time_of(args.rounds, lambda _: store.retrieve(some(10))),
        "recall@10": f"{recall:.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--patch-bytes", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="server_speed.") as folder, running_peer() as (url, port, pid):
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
            peer = None if name == "embedded" else pid
            rate = fill(store, args, peer)
            columns[name] = {"write, records/s (ms for 1,000)": rate, **measure(store, args, peer)}
            store.close()
    print("| ms, p50 / p95 (processor) | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for row in columns["embedded"]:
        print(f"| {row} | " + " | ".join(of_store[row] for of_store in columns.values()) + " |")


if __name__ == "__main__":
    main()
