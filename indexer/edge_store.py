"""The embedded store: Qdrant Edge in a folder, in this process; the only module that imports it.

    INDEX/shard/         the engine's files: write-ahead log, segments, indexes
    INDEX/lock           locked while a process has the index open; the lock dies with its process
    INDEX/lock.json      who that is, for the message
    INDEX/NAME           the blobs

What is surprising: the engine lets only one process at a time open a shard, be it for reading, so a reader waits for
the writer and the other way round. A write is in the write-ahead log when the call returns, so killing the process
loses nothing; a power cut may lose the operating system's last seconds of unwritten pages.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import qdrant_edge as edge

from .errors import LockedError, SeenitError, StoreError
from .payload import (
    INDEXED_FIELDS,
    as_rfc3339,
    batches,
    camera_words,
    checked_vectors,
    files_payload,
    num_numbers,
    record_from,
    record_payload,
    tags_payload,
    to_engine,
)
from .store import Hit, Record, Schema, StoredFile, StoreSize, Where

BLOB_NAME = re.compile(r"[a-z0-9_-][a-z0-9_.-]*")
RESERVED = ("shard", "shard.new", "lock", "lock.json")
UPSERT_NUMBERS = 1_000_000  # at most so many vector elements in one write of the engine: 32 MB as Python floats
FLUSH_NUMBERS = 8_000_000  # the log is cut after so many, so that it stays short and opening stays quick

# The engine writes through memory maps, and a full disk then kills the process with a bus error, nothing lost but
# nothing said either. So room is asked for before, with a reserve for what the engine lays out on its own.
RESERVE_BYTES = 128 << 20
OPEN_BYTES = 32 << 20
BYTES_PER_NUMBER = 16  # in the log and in the vectors, generously

# What was just written is held partly in memory, 0.5 KB a record; optimizing moves it into memory-mapped segments.
RECORDS_TO_OPTIMIZE = 100_000
SEGMENTS = 8  # more are merged, fewer are left alone, so that a small sync does not rebuild a large graph

# Chosen by tests/benchmarks/store_speed.py: recall@10 of at least 0.99 at 100,000 records.
HNSW_EDGES = 16
HNSW_EF_CONSTRUCT = 128
HNSW_EF_SEARCH = 256
# What weighs less than this is compared one by one, which is exact and takes some 5 ms: small indexes, narrow filters.
FULL_SCAN_KILOBYTES = 20_000


class EdgeStore:
    """See `store.Store`. One instance holds the folder for itself until `close`."""

    def __init__(self, folder: Path, lock: filelock.BaseFileLock, shard: edge.EdgeShard | None) -> None:
        self.location = str(folder)
        self._folder = folder
        self._lock = lock
        self._shard = shard
        self._schema = None if shard is None else _schema(folder)
        self._numbers_since_flush = 0
        self._records_since_optimize = 0

    @classmethod
    def open(cls, folder: Path, *, write: bool = False, wait_s: float = 5.0) -> "EdgeStore":
        """Open the index at `folder`; with `write` the folder is created if need be.

        Raises SeenitError where there is no index, LockedError where another process has it open for longer than
        `wait_s`, StoreError where its files are damaged or cannot be read.
        """
        _refuse_foreign(folder, write)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _ask_for_room(folder, OPEN_BYTES, f"cannot open the index at {folder}")
            lock = _locked(folder, wait_s)
        except OSError as error:
            raise StoreError(f"cannot open the index at {folder}: {_reason(error)}; check the folder") from None
        try:
            shard = _load(folder, wait_s) if (folder / "shard").is_dir() else None
            return cls(folder, lock, shard)
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
        try:
            return self._blob(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {name} of the index at {self.location}: {_reason(error)}") from None

    def write_blob(self, name: str, data: bytes) -> None:
        path = self._blob(name)
        unfinished = path.with_name(f"{name}.part")
        try:
            with open(unfinished, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise StoreError(
                f"cannot write {name} to the index at {self.location}: {_reason(error)}; make room and run it again"
            ) from None

    def _blob(self, name: str) -> Path:
        assert _is_blob(name), name
        return self._folder / name

    def blob_names(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir() if path.is_file() and _is_blob(path.name))

    # Records

    def schema(self) -> Schema | None:
        return self._schema

    def ensure(self, schema: Schema) -> None:
        if self._shard is None:
            self._ask_for_room(RESERVE_BYTES, "create the vectors' storage")
            with self._engine("create the vectors' storage"):
                _create(self._folder, schema)
            self._shard = _load(self._folder, wait_s=0)
            self._schema = schema
        elif self._schema != schema:
            raise StoreError(
                f"the index at {self.location} holds vectors of {self._schema}, not of {schema}; "
                "index into a new place with this backbone"
            )

    def upsert(self, records: Sequence[Record]) -> None:
        shard = self._writable()
        assert self._schema is not None
        for batch in batches(records, UPSERT_NUMBERS):
            points = [
                edge.Point(record.id, checked_vectors(record, self._schema), record_payload(record)) for record in batch
            ]
            numbers = sum(num_numbers(record) for record in batch)
            self._ask_for_room(RESERVE_BYTES + BYTES_PER_NUMBER * numbers, "write records")
            with self._engine("write records"):
                shard.update(edge.UpdateOperation.upsert_points(points))
            self._flush_after(numbers)
            self._records_since_optimize += len(batch)
            if self._records_since_optimize >= RECORDS_TO_OPTIMIZE:
                self.optimize()

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        self._set_payload({id: files_payload(of_record) for id, of_record in files.items()})

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        self._set_payload({id: tags_payload(of_record) for id, of_record in tags.items()})

    def _set_payload(self, payloads: dict[str, dict[str, Any]]) -> None:
        shard = self._writable()
        self._ask_for_room(RESERVE_BYTES + 5000 * len(payloads), "update records")
        known = self._known(payloads)  # the engine refuses ids that it does not hold
        with self._engine("update records"):
            for id, payload in payloads.items():
                if id in known:
                    shard.update(edge.UpdateOperation.set_payload([id], payload))
        self._flush_after(200 * len(payloads))

    def _known(self, ids: Iterable[str]) -> set[str]:
        assert self._shard is not None
        with self._engine("look up records"):
            return {str(point.id) for point in self._shard.retrieve(list(ids), False, False)}

    def delete(self, ids: Sequence[str]) -> None:
        if ids and self._shard is not None:
            with self._engine("delete records"):
                self._shard.update(edge.UpdateOperation.delete_points(list(ids)))
            self._flush_after(10 * len(ids))

    def scroll(self, where: Where = Where(), *, vectors: bool = False, batch: int = 2000) -> Iterator[Record]:
        if self._shard is None:
            return
        condition, offset = _filter(where), None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=batch, filter=condition, with_payload=True, with_vector=vectors
            )
            with self._engine("read records"):
                points, offset = self._shard.scroll(request)
            for point in points:
                yield record_from(str(point.id), point.payload, point.vector, self.location)
            if offset is None:
                return

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        if self._shard is None or not ids:
            return []
        with self._engine("read records"):
            points = self._shard.retrieve(list(dict.fromkeys(ids)), True, vectors)
        found = {str(point.id): point for point in points}
        return [record_from(id, found[id].payload, found[id].vector, self.location) for id in ids if id in found]

    def search(
        self, queries: np.ndarray, top: int, where: Where = Where(), *, exact: bool = False, vectors: bool = False
    ) -> list[list[Hit]]:
        if self._shard is None or top < 1:
            return [[] for _ in queries]
        assert self._schema is not None and queries.shape[1] == self._schema.global_dim, queries.shape
        condition = _filter(where)
        # A filter cuts the graph's paths; Acorn goes on through the neighbours of what it excludes.
        acorn = edge.AcornSearchParams(enable=condition is not None)
        params = edge.SearchParams(hnsw_ef=max(HNSW_EF_SEARCH, top), exact=exact, acorn=acorn)
        requests = [
            edge.QueryRequest(
                limit=top,
                query=edge.Query.Nearest(query, using="global"),
                filter=condition,
                params=params,
                with_payload=True,
                with_vector=vectors,
            )
            for query in queries.tolist()
        ]
        return [
            [Hit(record_from(str(p.id), p.payload, p.vector, self.location), p.score) for p in answer]
            for answer in self._answers(requests)
        ]

    def rescore(self, tokens: Sequence[np.ndarray], ids: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        assert len(tokens) == len(ids)
        asked = [q for q in range(len(tokens)) if len(tokens[q]) and ids[q] and self._shard is not None]
        requests = [
            edge.QueryRequest(
                limit=len(ids[q]),
                query=edge.Query.Nearest(tokens[q].tolist(), using="patches"),
                filter=edge.Filter(must=[edge.HasIdCondition(set(ids[q]))]),
            )
            for q in asked
        ]
        scores: list[dict[str, float]] = [{} for _ in tokens]
        for q, answer in zip(asked, self._answers(requests), strict=True):
            scores[q] = {str(point.id): point.score / len(tokens[q]) for point in answer}
        return scores

    def _answers(self, requests: list[edge.QueryRequest]) -> list[list[edge.ScoredPoint]]:
        if self._shard is None or not requests:
            return []
        with self._engine("search"):
            return self._shard.query_batch(edge.QueryBatchRequest(requests))

    def count(self, where: Where = Where()) -> int:
        if self._shard is None:
            return 0
        with self._engine("count records"):
            return self._shard.count(edge.CountRequest(exact=True, filter=_filter(where)))

    def optimize(self) -> None:
        """See `store.Store`. The engine keeps Python's interpreter lock all the while: no other thread runs."""
        if self._shard is not None:
            # The new segments are made beside the old ones.
            self._ask_for_room(RESERVE_BYTES + sum(self.size().parts.values()), "build the search graph")
            with self._engine("build the search graph"):
                self._shard.optimize()
                self._shard.flush()
            self._numbers_since_flush = self._records_since_optimize = 0

    def size(self) -> StoreSize:
        """Bytes on disk by part: global, graph, patches, records, log, blobs."""
        parts: dict[str, int] = {}
        for folder, _, names in os.walk(self._folder):
            part = _part(Path(folder).relative_to(self._folder).parts)
            for name in names:
                try:
                    status = os.stat(os.path.join(folder, name))
                except FileNotFoundError:  # the engine removes a segment at any time
                    continue
                # The engine's files are sparse; only some systems tell how much of one is really there.
                size = status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
                parts[part] = parts.get(part, 0) + size
        return StoreSize(parts)

    def _writable(self) -> edge.EdgeShard:
        assert self._shard is not None, "ensure comes before the first write"
        return self._shard

    def _ask_for_room(self, needed: int, doing: str) -> None:
        _ask_for_room(self._folder, needed, f"cannot {doing} in the index at {self.location}")

    def _flush_after(self, numbers: int) -> None:
        self._numbers_since_flush += numbers
        if self._numbers_since_flush >= FLUSH_NUMBERS and self._shard is not None:
            self._numbers_since_flush = 0
            with self._engine("write records"):
                self._shard.flush()

    @contextmanager
    def _engine(self, doing: str) -> Iterator[None]:
        with _engine_errors(f"cannot {doing} in the index at {self.location}"):
            yield


def _is_blob(name: str) -> bool:
    return bool(BLOB_NAME.fullmatch(name)) and name not in RESERVED and not name.endswith(".part")


@contextmanager
def _engine_errors(failure: str) -> Iterator[None]:
    """The engine raises bare Exceptions, and panics that are no Exception; both become one line."""
    try:
        yield
    except SeenitError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C and the like
        raise StoreError(f"{failure}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The error's first line, shortened."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


# Opening


def _ask_for_room(folder: Path, needed: int, failure: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(f"{failure}: {free >> 20} MB are free on its disk, {needed >> 20} MB are needed; make room")


def _refuse_foreign(folder: Path, write: bool) -> None:
    """SeenitError unless there is an index at `folder`, or room for a new one where one may be made."""
    if folder.exists() and not folder.is_dir():
        raise SeenitError(f"{folder} is a file; an index is a folder, name another place with --index")
    made_here = any((folder / name).exists() for name in ("lock", "lock.json", "shard"))
    if not write and not made_here:
        raise SeenitError(f"no index at {folder}; create one with: seenit index FOLDER --index {folder}")
    try:
        if write and not made_here and folder.exists() and any(folder.iterdir()):
            raise SeenitError(f"{folder} holds other files and no index; name a new or empty folder with --index")
    except OSError as error:
        raise StoreError(f"cannot open the index at {folder}: {_reason(error)}; check the folder") from None


def _locked(folder: Path, wait_s: float) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / "lock", timeout=wait_s, is_singleton=False)
    try:
        lock.acquire(poll_interval=0.02)
    except filelock.Timeout:
        raise LockedError(
            f"the index at {folder} is in use by {_holder(folder)}; wait for it to end, or stop it"
        ) from None
    except NotImplementedError:
        raise StoreError(f"the disk of {folder} knows no locks; put the index on a local disk") from None
    holder = {"pid": os.getpid(), "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]), "since": time.time()}
    try:
        (folder / "lock.json").write_text(json.dumps(holder), "utf-8", "backslashreplace")
    except OSError:
        lock.release()
        raise
    return lock


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / "lock.json").read_text("utf-8"))
        since = time.strftime("%H:%M", time.localtime(holder["since"]))
        return f"`{holder['command']}` (process {holder['pid']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _load(folder: Path, wait_s: float) -> edge.EdgeShard:
    shutil.rmtree(folder / "shard" / "temp_segments", ignore_errors=True)  # of an optimizing that was killed
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with _engine_errors(f"the index at {folder} is damaged"):
                return edge.EdgeShard.load(str(folder / "shard"))
        except StoreError as error:
            # A process that was just killed holds its files for a moment longer than our lock.
            if "WouldBlock" in str(error) and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise StoreError(f"{error}; move it away and index anew") from None


# The schema


def _create(folder: Path, schema: Schema) -> None:
    """Make the shard under another name and rename it, so that a half-made one is never opened."""
    unfinished = folder / "shard.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    shard = edge.EdgeShard.create(str(unfinished), _config(schema))
    for field, kind in INDEXED_FIELDS.items():
        shard.update(edge.UpdateOperation.create_field_index(field, _INDEX_PARAMS[kind]))
    shard.flush()
    shard.close()
    os.replace(unfinished, folder / "shard")


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
            "patches": edge.EdgeVectorParams(
                schema.token_dim,
                edge.Distance.Cosine,
                multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
                datatype=edge.VectorStorageDatatype.Turbo8,  # a byte per number, 3e-4 off in the score of a token
                memory=edge.Memory.Cold,
                hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=1000),  # no graph
            ),
        },
        payload_memory=edge.Memory.Cold,
        id_tracker_memory=edge.Memory.Cold,
        optimizers=edge.EdgeOptimizersConfig(default_segment_number=SEGMENTS),
    )


def _schema(folder: Path) -> Schema:
    """The dims of the shard's vectors, from the engine's own description of them."""
    try:
        vectors = json.loads((folder / "shard" / "edge_config.json").read_text("utf-8"))["vectors"]
        return Schema(int(vectors["global"]["size"]), int(vectors["patches"]["size"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"the index at {folder} is damaged or not seenit's; move it away and index anew") from None


# Conditions


def _filter(where: Where) -> edge.Filter | None:
    """The engine's filter of the same meaning; None where every record is meant."""
    if not where:
        return None
    must: list[Any] = []
    must_not: list[Any] = []
    if where.under:
        must.append(edge.FieldCondition("folders", match=edge.MatchAny([to_engine(key) for key in where.under])))
    if where.after is not None or where.before is not None:
        moments = edge.RangeDateTime(
            gte=None if where.after is None else as_rfc3339(where.after),
            lt=None if where.before is None else as_rfc3339(where.before),
        )
        must.append(edge.FieldCondition("taken_at", range=moments))
    for word in camera_words(where.camera or ""):
        must.append(edge.FieldCondition("camera_words", match=edge.MatchValue(word)))
    if where.near is not None:
        latitude, longitude, radius_km = where.near
        circle = edge.GeoRadius(edge.GeoPoint(lon=longitude, lat=latitude), radius_km * 1000)
        must.append(edge.FieldCondition("location", geo_radius=circle))
    for tag in where.tags:
        must.append(edge.FieldCondition("tags", match=edge.MatchValue(to_engine(tag))))
    if where.not_fit is not None:
        must_not.append(edge.FieldCondition("fit", match=edge.MatchValue(where.not_fit)))
    if where.not_ids:
        must_not.append(edge.HasIdCondition(set(where.not_ids)))
    return edge.Filter(must=must or None, must_not=must_not or None)


# Sizes


def _part(folders: tuple[str, ...]) -> str:
    """Which part of the index the files of INDEX/folders... belong to."""
    if not folders or not folders[0].startswith("shard"):
        return "blobs"
    if "wal" in folders:
        return "log"
    names = {"vector_storage-global": "global", "vector_index-global": "graph", "vector_storage-patches": "patches"}
    return next((names[folder] for folder in folders if folder in names), "records")
