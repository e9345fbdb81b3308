"""The kinds of store that one contract is tested on, and how its tests compare."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient
from qdrant_peer import QdrantPeer
from stored_records import RECORDS

from indexer.store.open import open_store
from indexer.store.protocol import Filter, Record, Store
from indexer.store.qdrant_connection import Connection
from indexer.store.qdrant_store import QdrantStore

GALLERY = np.stack([np.asarray(record.global_vector) for record in RECORDS])  # (30, G)


def assert_near(got: object, want: object, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=atol)


def ids(records: list[Record]) -> set[str]:
    return {record.id for record in records}


def meeting(store: Store, where: Filter) -> set[int]:
    """The numbers of the records that meet the conditions, by scroll; count and search must agree."""
    numbers = {record.id: number for number, record in enumerate(RECORDS)}
    found = {numbers[record.id] for record in store.scroll(where, batch=7)}
    assert store.count(where) == len(found)
    (hits,) = store.search(GALLERY[0:1], 100, where)
    assert {numbers[hit.id] for hit in hits} == found
    return found


def open_kind(kind: str, folder: Path, peer: QdrantPeer, grpc_port: int) -> Store:
    """A store of that kind before `ensure`, open for writing; in `folder` or on `peer` (gRPC at `grpc_port`)."""
    if kind == "folder":
        return open_store(folder / "index", write=True)
    if kind == "memory":
        return QdrantStore(Connection(QdrantClient(":memory:"), "memory"), "photos")
    suffix = f"?grpc={grpc_port}" if kind == "grpc" else ""
    return open_store(f"{peer.url}/photos{len(peer.collections)}{suffix}", write=True)


def run_code(code: str, *args: object) -> "subprocess.Popen[str]":
    """A process that runs the code, with its stdout to be read."""
    command = [sys.executable, "-c", code, *map(str, args)]
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
