"""The engine's shard of an index: made with its vector and payload indexes, loaded again, and what it says of itself.

What is surprising: a shard is described only when it is made. The numbers below therefore hold for new indexes; an old
one keeps those that it was made with.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from .errors import SeenitError, StoreError, first_line
from .payload import INDEXED_FIELDS
from .store import Schema

SEGMENTS = 8  # more are merged, fewer are left alone, so that a small sync does not rebuild a large graph

# Chosen by tests/benchmarks/store_speed.py: recall@10 of at least 0.99 at 100,000 records.
HNSW_EDGES = 16
HNSW_EF_CONSTRUCT = 128
# What weighs less than this is compared one by one, which is exact and takes some 5 ms: small indexes, narrow filters.
FULL_SCAN_KILOBYTES = 20_000


def create_shard(folder: Path, schema: Schema) -> None:
    """Make the shard under another name and rename it, so that a half-made one is never opened."""
    unfinished = folder / "shard.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    shard = edge.EdgeShard.create(str(unfinished), _config(schema))
    for field, kind in INDEXED_FIELDS.items():
        shard.update(edge.UpdateOperation.create_field_index(field, _INDEX_PARAMS[kind]))
    shard.flush()
    shard.close()
    os.replace(unfinished, folder / "shard")


def load_shard(folder: Path, wait_s: float) -> edge.EdgeShard:
    """Open the shard, its files released by other processes within `wait_s`; StoreError where they are damaged."""
    shutil.rmtree(folder / "shard" / "temp_segments", ignore_errors=True)  # of an optimizing that was killed
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with engine_errors(f"the index at {folder} is damaged"):
                return edge.EdgeShard.load(str(folder / "shard"))
        except StoreError as error:
            # A process that was just killed holds its files for a moment longer than our lock.
            if "WouldBlock" in str(error) and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise StoreError(f"{error}; move it away and index anew") from None


def read_schema(folder: Path) -> Schema:
    """The dims of the shard's vector, from the engine's own description of it; StoreError where it is not ours."""
    try:
        vectors = json.loads((folder / "shard" / "edge_config.json").read_text("utf-8"))["vectors"]
        schema = Schema(int(vectors["global"]["size"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"the index at {folder} is damaged or not seenit's; move it away and index anew") from None
    if set(vectors) != {"global"}:
        raise StoreError(f"the index at {folder} was made by another version of seenit; remove it and index anew")
    return schema


@contextmanager
def engine_errors(failure: str) -> Iterator[None]:
    """The engine raises bare Exceptions, and panics that are no Exception; both become one line."""
    try:
        yield
    except SeenitError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C and the like
        raise StoreError(f"{failure}: {first_line(error)}") from None


# No links per value in the search graph: they make its building 1.6 times slower, and Acorn finds its way without.
_INDEX_PARAMS: dict[str, Any] = {
    "keyword": edge.KeywordIndexParams(memory=edge.Memory.Cold, enable_hnsw=False),
    "datetime": edge.DatetimeIndexParams(memory=edge.Memory.Cold, enable_hnsw=False),
    "geo": edge.GeoIndexParams(memory=edge.Memory.Cold, enable_hnsw=False),
}


def _config(schema: Schema) -> edge.EdgeConfig:
    """Everything lies in memory-mapped files; what is hot stays in the page cache and not in the process."""
    return edge.EdgeConfig(
        vectors={
            "global": edge.EdgeVectorParams(
                schema.global_dim,
                edge.Distance.Cosine,
                datatype=edge.VectorStorageDatatype.Float16,
                memory=edge.Memory.Cold,
                hnsw_config=edge.HnswIndexConfig(
                    m=HNSW_EDGES,
                    ef_construct=HNSW_EF_CONSTRUCT,
                    full_scan_threshold=FULL_SCAN_KILOBYTES,
                    memory=edge.Memory.Cold,
                ),
            ),
        },
        payload_memory=edge.Memory.Cold,
        id_tracker_memory=edge.Memory.Cold,
        optimizers=edge.EdgeOptimizersConfig(default_segment_number=SEGMENTS),
    )
