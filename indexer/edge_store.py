"""The embedded store: Qdrant Edge on a folder, in this process.

What is surprising: the engine lets only one process at a time open a shard, be it for reading, so a reader waits for
the writer and the other way round. A write is in the write-ahead log when the call returns, so killing the process
loses nothing; a power cut may lose the operating system's last seconds of unwritten pages.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import qdrant_edge as edge

from .edge_filter import edge_filter
from .edge_folder import ask_for_room, blob_names, bytes_by_part, claim_folder, read_ahead, read_blob, write_blob
from .edge_shard import create_shard, engine_errors, load_shard, read_schema
from .errors import StoreError
from .payload import (
    LISTED_FIELDS,
    PATCHES_FIELD,
    batches,
    checked_vectors,
    files_payload,
    listed_from,
    num_bytes,
    patches_from,
    record_from,
    record_payload,
    tags_payload,
)
from .store import Hit, Listed, Record, Schema, StoredFile, StoreSize, Where

UPSERT_BYTES = 4 << 20  # of records in one write of the engine; at most eight times that as Python floats
FLUSH_BYTES = 32 << 20  # the log is cut after so many, so that it stays short and opening stays quick

# Room on the disk before a write, with a reserve for what the engine lays out on its own.
RESERVE_BYTES = 128 << 20
ROOM_PER_BYTE = 4  # of a record: in the log, in its storage and in the indexes, generously

# What was just written is held partly in memory, 0.5 KB a record; optimizing moves it into memory-mapped segments.
RECORDS_TO_OPTIMIZE = 100_000

HNSW_EF_SEARCH = 256  # chosen with the graph's numbers, see edge_shard


class EdgeStore:
    """See `store.Store`. One instance holds the folder for itself until `close`."""

    def __init__(
        self, folder: Path, lock: filelock.BaseFileLock, shard: edge.EdgeShard | None, schema: Schema | None
    ) -> None:
        self.location = str(folder)
        self._folder = folder
        self._lock = lock
        self._shard = shard
        self._schema = schema
        self._bytes_since_flush = 0
        self._records_since_optimize = 0

    @classmethod
    def open(cls, folder: Path, *, write: bool = False, wait_s: float = 5.0) -> "EdgeStore":
        """Open the index at `folder`; with `write` the folder is created if need be.

        Raises SeenitError where there is no index, LockedError where another process has it open for longer than
        `wait_s`, StoreError where its files are damaged, cannot be read or are another version's.
        """
        lock = claim_folder(folder, write, wait_s)
        try:
            if not (folder / "shard").is_dir():
                return cls(folder, lock, None, None)
            schema = read_schema(folder)  # before the engine, which would open another version's index and change it
            return cls(folder, lock, load_shard(folder, wait_s), schema)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Let go of the index; safe to call twice."""
        try:
            if self._shard is not None:
                shard, self._shard = self._shard, None
                with self._engine("close"):
                    shard.close()
        finally:
            self._lock.release()

    # Blobs

    def read_blob(self, name: str) -> bytes | None:
        return read_blob(self._folder, name)

    def write_blob(self, name: str, data: bytes) -> None:
        write_blob(self._folder, name, data)

    def blob_names(self) -> list[str]:
        return blob_names(self._folder)

    # Records

    def schema(self) -> Schema | None:
        return self._schema

    def ensure(self, schema: Schema) -> None:
        if self._shard is None:
            self._ask_for_room(RESERVE_BYTES, "create the vectors' storage")
            with self._engine("create the vectors' storage"):
                create_shard(self._folder, schema)
            self._shard = load_shard(self._folder, wait_s=0)
            self._schema = schema
        elif self._schema != schema:
            raise StoreError(
                f"the index at {self.location} holds vectors of {self._schema}, not of {schema}; "
                "index into a new place with this backbone"
            )

    def upsert(self, records: Sequence[Record]) -> None:
        shard = self._writable()
        assert self._schema is not None
        for batch in batches(records, UPSERT_BYTES):
            points = [
                edge.Point(record.id, checked_vectors(record, self._schema), record_payload(record)) for record in batch
            ]
            written = sum(num_bytes(record) for record in batch)
            self._ask_for_room(RESERVE_BYTES + ROOM_PER_BYTE * written, "write records")
            with self._engine("write records"):
                shard.update(edge.UpdateOperation.upsert_points(points))
            self._flush_after(written)
            self._records_since_optimize += len(batch)
            if self._records_since_optimize >= RECORDS_TO_OPTIMIZE:
                self.optimize()

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        self._set_payload({id: files_payload(of_record) for id, of_record in files.items()})

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        self._set_payload({id: tags_payload(of_record) for id, of_record in tags.items()})

    def _set_payload(self, payloads: dict[str, dict[str, Any]]) -> None:
        shard = self._writable()
        if not payloads:
            return
        # The engine writes the whole of a changed payload anew, patches and all.
        rewritten = self.size().parts["records"] * len(payloads) // max(len(payloads), self.count())
        self._ask_for_room(RESERVE_BYTES + rewritten + 5000 * len(payloads), "update records")
        known = self._known(payloads)  # the engine refuses ids that it does not hold
        with self._engine("update records"):
            for id, payload in payloads.items():
                if id in known:
                    shard.update(edge.UpdateOperation.set_payload([id], payload))
        self._flush_after(rewritten + 1000 * len(payloads))

    def _known(self, ids: Iterable[str]) -> set[str]:
        assert self._shard is not None
        with self._engine("look up records"):
            return {str(point.id) for point in self._shard.retrieve(list(ids), False, False)}

    def delete(self, ids: Sequence[str]) -> None:
        if ids and self._shard is not None:
            with self._engine("delete records"):
                self._shard.update(edge.UpdateOperation.delete_points(list(ids)))
            self._flush_after(40 * len(ids))

    def scroll(self, where: Where = Where(), *, vectors: bool = False, batch: int = 2000) -> Iterator[Record]:
        if self._shard is None:
            return
        if not where:
            read_ahead(self._folder)
        condition, offset = edge_filter(where), None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=batch, filter=condition, with_payload=_payload(vectors), with_vector=vectors
            )
            with self._engine("read records"):
                points, offset = self._shard.scroll(request)
            for point in points:
                yield record_from(str(point.id), point.payload, point.vector, self.location)
            if offset is None:
                return

    def list_files(self) -> Iterator[Listed]:
        if self._shard is None:
            return
        read_ahead(self._folder)
        offset = None
        while True:
            request = edge.ScrollRequest(offset=offset, limit=5000, with_payload=LISTED_FIELDS, with_vector=False)
            with self._engine("read records"):
                points, offset = self._shard.scroll(request)
            for point in points:
                yield listed_from(str(point.id), point.payload, self.location)
            if offset is None:
                return

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        if self._shard is None or not ids:
            return []
        with self._engine("read records"):
            points = self._shard.retrieve(list(dict.fromkeys(ids)), _payload(vectors), vectors)
        found = {str(point.id): point for point in points}
        return [record_from(id, found[id].payload, found[id].vector, self.location) for id in ids if id in found]

    def search(self, queries: np.ndarray, top: int, where: Where = Where(), *, exact: bool = False) -> list[list[Hit]]:
        if self._shard is None or top < 1:
            return [[] for _ in queries]
        assert self._schema is not None and queries.shape[1] == self._schema.global_dim, queries.shape
        condition = edge_filter(where)
        # A filter cuts the graph's paths; Acorn goes on through the neighbours of what it excludes.
        acorn = edge.AcornSearchParams(enable=condition is not None)
        params = edge.SearchParams(hnsw_ef=max(HNSW_EF_SEARCH, top), exact=exact, acorn=acorn)
        requests = [
            edge.QueryRequest(
                limit=top,
                query=edge.Query.Nearest(query, using="global"),
                filter=condition,
                params=params,
            )
            for query in queries.tolist()
        ]
        return [[Hit(str(point.id), point.score) for point in answer] for answer in self._answers(requests)]

    def patches(self, ids: Sequence[str]) -> dict[str, bytes]:
        if self._shard is None or not ids:
            return {}
        with self._engine("read patches"):
            points = self._shard.retrieve(list(dict.fromkeys(ids)), [PATCHES_FIELD], False)
        found = {str(point.id): patches_from(str(point.id), point.payload, self.location) for point in points}
        return {id: packed for id, packed in found.items() if packed is not None}

    def _answers(self, requests: list[edge.QueryRequest]) -> list[list[edge.ScoredPoint]]:
        if self._shard is None or not requests:
            return []
        with self._engine("search"):
            return self._shard.query_batch(edge.QueryBatchRequest(requests))

    def count(self, where: Where = Where()) -> int:
        if self._shard is None:
            return 0
        with self._engine("count records"):
            return self._shard.count(edge.CountRequest(exact=True, filter=edge_filter(where)))

    def optimize(self) -> None:
        """See `store.Store`. The engine keeps Python's interpreter lock all the while: no other thread runs."""
        if self._shard is not None:
            # The new segments are made beside the old ones.
            self._ask_for_room(RESERVE_BYTES + sum(self.size().parts.values()), "build the search graph")
            with self._engine("build the search graph"):
                self._shard.optimize()
                self._shard.flush()
            self._bytes_since_flush = self._records_since_optimize = 0

    def size(self) -> StoreSize:
        """Bytes on disk by part: global, graph, records (patches included), log, blobs."""
        return StoreSize(bytes_by_part(self._folder))

    def _writable(self) -> edge.EdgeShard:
        assert self._shard is not None, "ensure comes before the first write"
        return self._shard

    def _ask_for_room(self, needed: int, doing: str) -> None:
        ask_for_room(self._folder, needed, f"cannot {doing} in the index at {self.location}")

    def _flush_after(self, written: int) -> None:
        self._bytes_since_flush += written
        if self._bytes_since_flush >= FLUSH_BYTES and self._shard is not None:
            self._bytes_since_flush = 0
            with self._engine("write records"):
                self._shard.flush()

    def _engine(self, doing: str) -> AbstractContextManager[None]:
        return engine_errors(f"cannot {doing} in the index at {self.location}")


def _payload(vectors: bool) -> bool | edge.PayloadSelector:
    """Which payload is read: all of it with the vectors, without them all but the patches."""
    return True if vectors else edge.PayloadSelector.Exclude([PATCHES_FIELD])
