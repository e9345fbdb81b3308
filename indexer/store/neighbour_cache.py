"""The graph of neighbours as files in the user's own cache folder: disposable, and never taken from an index folder.

    CACHE/neighbours/INDEX_ID/about.json      what the two files beside it are, with their checksums
    CACHE/neighbours/INDEX_ID/graph-*.faiss   an HNSW graph over 8-bit codes, mapped and not read into memory
    CACHE/neighbours/INDEX_ID/numbers-*.npy   the record number of each of its points, ascending

What is missing, damaged, another user's or made from another file of the same id is no error: it counts as not there.
FAISS trusts what it reads, so nothing is handed to it that this user did not write, or whose checksum is not right.
"""

import json
import mmap
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from ..atomic_file import atomic_file, read_plain
from .faiss_library import faiss

FORMAT = 1


@dataclass(frozen=True)
class Epoch:
    """A writing session: the numbers from `first_number` on were given in it, until the next one began."""

    token: str  # hex
    first_number: int


@dataclass(frozen=True, eq=False)
class Graph:
    """An HNSW graph over the vectors of the records up to `last_number`, as they were when it was built.

    numbers  (N,)  int64, ascending: the record of each point
    """

    index: Any  # faiss.IndexHNSWSQ
    numbers: np.ndarray
    epoch: str  # token of the last epoch it covers
    last_number: int


@dataclass(frozen=True)
class _About:
    format: int
    index: str  # the index's own id, hex
    location: str  # where it lay, for whoever cleans up
    epoch: str
    last_number: int
    dim: int
    graph: str  # file name
    graph_crc: int
    numbers: str
    numbers_crc: int


def graph_folder(index_id: str) -> Path:
    """Where the graph of an index lies: below SEENIT_CACHE, else in the user's cache folder of this system."""
    root = os.environ.get("SEENIT_CACHE") or platformdirs.user_cache_dir("seenit", appauthor=False)
    return Path(root) / "neighbours" / index_id


def load_graph(index_id: str, dim: int, epochs: list[Epoch], *, writable: bool = False) -> Graph | None:
    """The graph made from this very index, None where there is none that can be used.

    epochs    of the index, in order
    writable  read into memory, to be added to: FAISS ends the process that adds to a mapped graph, or to a clone of one
    """
    folder = graph_folder(index_id)
    try:
        if not _own(folder, stat.S_ISDIR):
            return None
        about = _About(**json.loads(read_plain(folder / "about.json", 100_000)))
        if (about.format, about.index, about.dim) != (FORMAT, index_id, dim):
            return None
        if not given_by(epochs, about.epoch, about.last_number):
            return None
        for name, crc in ((about.graph, about.graph_crc), (about.numbers, about.numbers_crc)):
            if Path(name).name != name or not _own(folder / name, stat.S_ISREG) or _crc(folder / name) != crc:
                return None
        index = faiss().read_index(str(folder / about.graph), 0 if writable else faiss().IO_FLAG_MMAP_IFC)
        numbers = np.load(folder / about.numbers, mmap_mode="r", allow_pickle=False)
        right = isinstance(index, faiss().IndexHNSWSQ) and index.d == dim and numbers.shape == (index.ntotal,)
        right = right and len(numbers) > 0 and int(numbers[-1]) == about.last_number
        return Graph(index, numbers, about.epoch, about.last_number) if right else None
    except (OSError, ValueError, TypeError, RuntimeError, RecursionError):
        return None


def save_graph(index_id: str, location: str, graph: Graph) -> None:
    """Keep a graph for later runs; OSError where the cache cannot be written.

    A reader finds the old files or the new ones: `about.json`, which names them, is replaced last.
    """
    folder = graph_folder(index_id)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    needed = graph.index.ntotal * (graph.index.d + 200)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(f"no room for {needed >> 20} MB in {folder}")
    part = secrets.token_hex(8)
    names = (f"graph-{part}.faiss", f"numbers-{part}.npy")
    try:
        faiss().write_index(graph.index, str(folder / names[0]))
        np.save(folder / names[1], np.asarray(graph.numbers, np.int64), allow_pickle=False)
        about = _About(
            format=FORMAT,
            index=index_id,
            location=location,
            epoch=graph.epoch,
            last_number=graph.last_number,
            dim=graph.index.d,
            graph=names[0],
            graph_crc=_crc(folder / names[0]),
            numbers=names[1],
            numbers_crc=_crc(folder / names[1]),
        )
        with atomic_file(folder / "about.json", mode=0o600) as file:
            file.write(json.dumps(asdict(about)).encode("utf-8", "backslashreplace"))
    except BaseException as error:
        for name in names:
            with suppress(OSError):
                os.unlink(folder / name)
        if isinstance(error, RuntimeError):  # FAISS's own
            raise OSError(f"cannot write to {folder}: {error}") from None
        raise
    for path in folder.iterdir():  # a process that has the old ones mapped keeps them
        if path.name not in (*names, "about.json"):
            with suppress(OSError):
                path.unlink()


def graph_bytes(index_id: str) -> int:
    """What the graph of an index takes on the disk; 0 where there is none."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in graph_folder(index_id).iterdir())
    return 0


def given_by(epochs: list[Epoch], token: str, last_number: int) -> bool:
    """Whether this index gave all numbers up to one that session `token` gave: a copy of it may go its own way."""
    place = next((n for n, epoch in enumerate(epochs) if epoch.token == token), None)
    return place is not None and all(epoch.first_number > last_number for epoch in epochs[place + 1 :])


def _own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether this is a folder or file of this user's own, and no link."""
    status = os.lstat(path)
    return kind(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())


def _crc(path: Path) -> int:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return zlib.crc32(data)
