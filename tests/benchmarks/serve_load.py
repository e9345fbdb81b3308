"""How many searches a server answers with 1, 8 and 32 clients, how soon, and whether its memory stays flat.

    python tests/benchmarks/serve_load.py ~/Pictures/.seenit ~/queries --records 100000 --requests 10000

The index is copied and filled up with records whose vectors lie near those of real ones and whose patches are those of
other images, so that a query has as many candidates to compare as among so many photos. Clients upload photos on
connections that they keep: each time a new image (the same pixels with other bytes behind them, so that nothing is
known of it), or the same images again and again, as a page does that asks with another filter. An answer is right if
its first results are those that a single client got.
"""

import argparse
import contextlib
import http.client
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from indexer.images.metadata import content_id
from indexer.index.index import Index
from indexer.store.protocol import StoredFile

ROOT = Path(__file__).parents[2]
CHUNK = 2000
COMPARED = 3  # first results of an answer that are held against those of one client
BOUNDARY = "seenit" + "0" * 20


@dataclass(frozen=True)
class Load:
    """What so many clients saw.

    core_ms  CPU time of the server and its decoder processes for a request, in milliseconds of one core
    """

    images: str  # new or known
    clients: int
    requests: int
    per_s: float
    p50_ms: float
    p95_ms: float
    core_ms: float
    wrong: int
    refused: int  # 429


@dataclass(frozen=True)
class Memory:
    """Resident memory of the server, without its decoder processes.

    tenths_mb  after each tenth of the requests; it grows until the server's caches are full
    """

    requests: int
    tenths_mb: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="an index of real photos")
    parser.add_argument("queries", type=Path, help="a folder of photos to upload")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=0, help="that memory is watched over")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(args.queries.iterdir()) if path.suffix.lower() in (".jpg", ".png")]
    if not photos:
        parser.error(f"no photos in {args.queries}")
    with tempfile.TemporaryDirectory(prefix="serve-load-") as folder:
        index = Path(folder) / "index"
        fill(args.index, index, args.records)
        process, port = start(index)
        try:
            right = [top_of(ask(connect(port), photo)[1]) for photo in photos]
            loads = [
                measure(process.pid, port, photos, right, images, clients, args.seconds)
                for images in ("new", "known")
                for clients in args.clients
            ]
            memory = watch_memory(process.pid, port, photos, args.requests) if args.requests else None
        finally:
            process.terminate()
            process.wait(60)
    if args.json:
        print(json.dumps({"loads": [asdict(load) for load in loads], "memory": asdict(memory) if memory else None}))
        return
    print(f"{args.records:,} records; {len(photos)} photos")
    print("images  clients  requests   per s  p50 ms  p95 ms  core ms  wrong  refused")
    for load in loads:
        print(
            f"{load.images:<6}  {load.clients:>7}  {load.requests:>8}  {load.per_s:>6.1f}  {load.p50_ms:>6.0f}"
            f"  {load.p95_ms:>6.0f}  {load.core_ms:>7.0f}  {load.wrong:>5}  {load.refused:>7}"
        )
    if memory:
        tenths = ", ".join(f"{one:.0f}" for one in memory.tenths_mb)
        print(f"memory in MB after each tenth of {memory.requests:,} requests: {tenths}")


def fill(source: Path, target: Path, records: int) -> None:
    """A copy of an index with so many records."""
    shutil.copytree(source, target)
    rng = np.random.default_rng(0)
    with Index.open(target, write=True) as index:
        real = list(index.store.scroll(vectors=True))
        root = next(iter(index.roots.folders))
        for begin in range(len(real), records, CHUNK):
            made = []
            for n in range(begin, min(begin + CHUNK, records)):
                near, other = (real[int(rng.integers(len(real)))] for _ in range(2))
                assert near.global_vector is not None
                noise = rng.standard_normal(len(near.global_vector)).astype(np.float32)
                vector = near.global_vector + noise / np.linalg.norm(noise)
                made.append(
                    replace(
                        near,
                        id=content_id(f"made {n}".encode()),
                        files=(StoredFile(f"{root}/made/{n // 1000}/{n}.jpg", 1, 1),),
                        tags=(),
                        global_vector=vector / np.linalg.norm(vector),
                        patches=other.patches,
                    )
                )
            index.store.upsert(made)
        index.store.optimize()


def start(index: Path) -> tuple[subprocess.Popen[str], int]:
    """The server as a process, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", str(index), "--port", "0", "--read-only"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    port = int(line.split(" at http://127.0.0.1:")[1].split("/")[0])
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return process, port


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=120)


def ask(connection: http.client.HTTPConnection, photo: bytes) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """One search with an upload: status and answer."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{secrets.token_hex(4)}.jpg"\r\n\r\n'
    )
    body = head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    connection.request("POST", "/api/search", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def top_of(answer: dict[str, list[dict[str, str]]]) -> list[str]:
    return [result["id"] for result in answer["results"][:COMPARED]]


def measure(
    pid: int,
    port: int,
    photos: Sequence[bytes],
    right: Sequence[list[str]],
    images: Literal["new", "known"],
    clients: int,
    seconds: float,
) -> Load:
    """So many clients, each asking again as soon as it is answered."""
    times: list[float] = []
    statuses: list[int] = []
    wrong = 0
    lock = threading.Lock()
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        nonlocal wrong
        with contextlib.closing(connect(port)) as connection:
            n = number
            while time.monotonic() < until:
                began = time.monotonic()
                behind = secrets.token_bytes(16) if images == "new" else b""
                status, answer = ask(connection, photos[n % len(photos)] + behind)
                with lock:
                    statuses.append(status)
                    if status == 200:
                        times.append(time.monotonic() - began)
                        wrong += top_of(answer)[:1] != right[n % len(photos)][:1]
                if status == 429:
                    time.sleep(1.0)
                n += clients

    before, began = cpu_s(pid), time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, worked = time.monotonic() - began, cpu_s(pid) - before
    unexpected = set(statuses) - {200, 429}
    assert not unexpected, f"answers with status {unexpected}"
    ranks = statistics.quantiles(times, n=20) if len(times) > 1 else [times[0]] * 19
    return Load(
        images,
        clients,
        len(times),
        len(times) / took,
        1e3 * ranks[9],
        1e3 * ranks[18],
        1e3 * worked / len(times),
        wrong,
        statuses.count(429),
    )


def watch_memory(pid: int, port: int, photos: Sequence[bytes], requests: int) -> Memory:
    """Resident memory while pages of the library are listed and, every fifth time, an image is searched with.

    Every fifth of these images is a new one.
    """

    def client(numbers: Sequence[int]) -> None:
        with contextlib.closing(connect(port)) as connection:
            for n in numbers:
                if n % 5 == 0:
                    behind = secrets.token_bytes(16) if n % 25 == 0 else b""
                    ask(connection, photos[n % len(photos)] + behind)
                    continue
                connection.request("GET", f"/api/images?limit=50&offset={n % 90_000}")
                connection.getresponse().read()

    tenths = []
    for tenth in range(10):
        numbers = range(tenth * requests // 10, (tenth + 1) * requests // 10)
        threads = [threading.Thread(target=client, args=(numbers[first::8],)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tenths.append(resident_mb(pid))
    return Memory(requests, tuple(tenths))


def cpu_s(pid: int) -> float:
    """CPU time of a process and of those that it began and that still run, in seconds."""
    total = 0.0
    for one in (pid, *children_of(pid)):
        with open(f"/proc/{one}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def children_of(pid: int) -> list[int]:
    """Processes that a process began, and those that they began."""
    with contextlib.suppress(FileNotFoundError):
        found = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        return [one for child in found for one in (child, *children_of(child))]
    return []


def resident_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
