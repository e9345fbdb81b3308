"""The embedded store: SQLite in a folder, in this process.

Any number of processes read beside one that writes. Every call reads one consistent state; `snapshot` holds one over
several calls. A write is on the disk when its call returns. See `sqlite_schema` for the tables and for what notices
damage, `neighbours` for how a search finds its way.
"""

import os
import secrets
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import apsw
import filelock
import numpy as np

from ..errors import StoreError, UnusableError
from .attributes import Attributes
from .index_folder import claim_folder, refuse_missing, shares_memory
from .neighbour_cache import graph_bytes
from .neighbours import Neighbours
from .payload import checked_vector
from .protocol import (
    BuildProgress,
    Filter,
    Hit,
    Listed,
    Record,
    Schema,
    StoredFeatures,
    StoredFile,
    StoreSize,
    never,
    no_progress,
)
from .sqlite_errors import sqlite_errors
from .sqlite_filter import (
    condition,
    id_bytes,
    id_text,
    microseconds,
)
from .sqlite_readers import Readers
from .sqlite_rows import (
    attributes_of_more,
    numbers_of,
    numbers_where,
    read_held_tags,
    read_listed,
    read_meta,
    read_records,
    set_meta,
    tags_by_number,
    with_attributes,
)
from .sqlite_schema import DATABASE_NAME, check_schema, connect, create, mend, select, set_journal
from .sqlite_source import VectorSource
from .sqlite_write import file_rows, insert_records, tag_rows
from .tag_copy import TAGS_NAME, KeptTags, Tags

UPSERT_RECORDS = 2000  # in one transaction; the log holds their pages until it is worked in. Not tuned
MANY_FREE = 0.25  # share of a file's pages that are free, from which on they are given back to the disk; not tuned


class SqliteStore:
    """See `protocol.Store`. With `write` it holds the writer's lock until `close`."""

    def __init__(self, folder: Path, lock: filelock.BaseFileLock | None = None) -> None:
        """Use `open`."""
        self.location = str(folder)
        self._folder = folder
        self._lock = lock
        self._writer: apsw.Connection | None = None
        self._writing = threading.RLock()
        self._readers = Readers(folder)
        self._neighbours = Neighbours()
        self._schema: Schema | None = None
        self._epoch: str | None = None  # of this session, once it has written records
        self._tags = KeptTags(folder, None if lock is None else self._held_tags)

    @classmethod
    def open(cls, folder: Path, *, write: bool = False, wait_s: float = 10.0) -> "SqliteStore":
        """Open the index at `folder`; with `write` the folder is created if need be.

        Raises SeenitError where there is no index, LockedError where another process writes for longer than `wait_s`,
        StoreError where its files are damaged, cannot be read or are another version's.
        """
        if not write:
            refuse_missing(folder)
            store = cls(folder)
            try:
                store.schema()
            except BaseException:
                store.close()
                raise
            return store
        lock = claim_folder(folder, wait_s)
        store = cls(folder, lock)
        try:
            with sqlite_errors("open", folder):
                store._writer = connect(folder, write=True)
                if not check_schema(store._writer, folder):
                    create(store._writer, shared_memory=shares_memory(folder))
                set_journal(store._writer, shared_memory=shares_memory(folder))
            store.schema()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the index and give up the lock; safe to call twice."""
        try:
            self._readers.close()
            if self._lock is not None:
                self._tags.write()
        finally:
            self._close_writer()
            if self._lock is not None:
                self._lock.release()

    def _close_writer(self) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        with suppress(apsw.Error):  # the log stays, and whoever opens the index next works it in
            if writer.pragma("freelist_count") > MANY_FREE * writer.pragma("page_count"):
                writer.execute("PRAGMA incremental_vacuum").fetchall()
            writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        writer.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within the block every read of this thread sees the index as it was at its start."""
        with self._readers.one():
            yield

    # Blobs

    def read_blob(self, name: str) -> bytes | None:
        with self._reading("read " + name) as db:
            for data, crc in select(db, "SELECT data, crc FROM blobs WHERE name = ?", (name,)):
                if zlib.crc32(data) != crc:
                    raise UnusableError(f"{name} of the index at {self.location} is damaged; {mend(self.location)}")
                return bytes(data)
        return None

    def write_blob(self, name: str, data: bytes) -> None:
        with self._transaction(f"write {name} to") as db:
            db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (name, data, zlib.crc32(data)))

    def delete_blob(self, name: str) -> None:
        with self._transaction(f"remove {name} of") as db:
            db.execute("DELETE FROM blobs WHERE name = ?", (name,))

    def revision(self) -> object:
        """Size and time of the database and of its log."""
        return tuple(_stamp(self._folder / name) for name in (DATABASE_NAME, f"{DATABASE_NAME}-wal"))

    def blob_names(self) -> list[str]:
        with self._reading("read") as db:
            return [name for (name,) in select(db, "SELECT name FROM blobs ORDER BY name")]

    # Records

    def schema(self) -> Schema | None:
        if self._schema is None:
            with self._reading("open") as db:
                dim = read_meta(db, "dim")
                self._schema = None if dim is None else Schema(int(dim))
        return self._schema

    def ensure(self, schema: Schema) -> None:
        there = self.schema()
        if there is None:
            with self._transaction("create the vectors' storage in") as db:
                db.execute("INSERT INTO meta VALUES ('dim', ?)", (schema.global_dim,))
            self._schema = schema
        elif there != schema:
            raise StoreError(
                f"the index at {self.location} holds vectors of {there}, not of {schema}; "
                "index into a new place with this backbone"
            )

    def upsert(self, records: Sequence[Record]) -> None:
        schema = self.schema()
        assert schema is not None, "ensure comes before the first write"
        vectors = [checked_vector(record, schema) for record in records]
        by_id = {record.id: (record, vector) for record, vector in zip(records, vectors, strict=True)}
        pairs = list(by_id.items())
        for start in range(0, len(pairs), UPSERT_RECORDS):
            some = dict(pairs[start : start + UPSERT_RECORDS])
            with self._transaction("write records to") as db:
                replaced = self._remove(db, list(some))
                last = int(read_meta(db, "last_number") or 0)
                self._begin_epoch(db, last + 1)
                insert_records(db, last + 1, list(some.values()))
                set_meta(db, "last_number", last + len(some))
                set_meta(db, "records", int(read_meta(db, "records") or 0) + len(some) - replaced)
        self._tags.remember({record.id: record.tags for record in records if record.tags})

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        if not files:
            return
        with self._transaction("update records of") as db:
            numbers = numbers_of(db, files)
            if numbers:
                wanted = apsw.carray(np.array(list(numbers.values()), np.int64))
                db.execute("DELETE FROM files WHERE number IN carray(?)", (wanted,))
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                (row for id, number in numbers.items() for row in file_rows(number, files[id])),
            )

    def set_dates(self, dates: dict[str, tuple[datetime | None, str | None]]) -> None:
        if not dates:
            return
        with self._transaction("update records of") as db:
            for id, number in numbers_of(db, dates).items():
                taken_at, source = dates[id]
                db.execute(
                    "UPDATE records SET taken_at = ?1, more = CASE WHEN ?2 IS NULL THEN"
                    " json_remove(more, '$.date_source') ELSE json_set(more, '$.date_source', ?2) END"
                    " WHERE number = ?3",
                    (None if taken_at is None else microseconds(taken_at), source, number),
                )

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        with self._transaction("update records of") as db:
            known = numbers_of(db, tags)
            for id, number in known.items():
                db.execute("DELETE FROM tags WHERE number = ?", (number,))
                db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tag_rows(number, tags[id]))
        self._tags.remember(tags)
        self._tags.write()

    def set_attributes(self, attributes: dict[str, Attributes]) -> None:
        with self._transaction("update records of") as db:
            for id, number in numbers_of(db, attributes).items():
                more = select(db, "SELECT more FROM records WHERE number = ?", (number,)).fetchone()[0]
                changed = with_attributes(more, attributes[id])
                db.execute("UPDATE records SET more = ? WHERE number = ?", (changed, number))

    def attributes_of(self, ids: Sequence[str]) -> dict[str, Attributes]:
        with self._reading("read attributes of") as db:
            numbers = numbers_of(db, ids)
            wanted = apsw.carray(np.fromiter(numbers.values(), np.int64)) if numbers else None
            rows = select(db, "SELECT id, more FROM records WHERE number IN carray(?)", (wanted,)) if numbers else ()
            found = {id_text(id): attributes_of_more(more) for id, more in rows}
        return {id: attributes for id, attributes in found.items() if attributes}

    def remembered_tags(self) -> Tags:
        return dict(self._tags.read())

    def tags_of(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        with self._reading("read tags of") as db:
            numbers = numbers_of(db, ids)
            of_record = tags_by_number(db, numbers.values())
        known = {id: of_record.get(number, ()) for id, number in numbers.items()}
        kept = self._tags.read()
        return {id: known[id] if id in known else kept[id] for id in ids if id in known or id in kept}

    def delete(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        with self._transaction("delete records of") as db:
            removed = self._remove(db, ids)
            set_meta(db, "records", int(read_meta(db, "records") or 0) - removed)

    def scroll(self, where: Filter = Filter(), *, vectors: bool = False, batch: int = 2000) -> Iterator[Record]:
        """The read of a page is a state of its own; a record that is written meanwhile may be among them or not."""
        last = b""
        while True:
            with self._reading("read records of") as db:
                clause, values = condition(db, where)
                rows = select(
                    db,
                    f"SELECT id, number FROM records WHERE ({clause}) AND id > ? ORDER BY id LIMIT ?",
                    (*values, last, batch),
                ).fetchall()
                found = read_records(db, [number for _, number in rows], vectors, self.location)
                if not rows and not where and last == b"":
                    self._check_count(db, 0)
            if not rows:
                return
            last = rows[-1][0]
            yield from found

    def list_files(self) -> Iterator[Listed]:
        with self.snapshot_of_own() as db:
            yield from read_listed(db, self.location, self._check_count)

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        if not ids:
            return []
        with self._reading("read records of") as db:
            numbers = numbers_of(db, ids)
            found = {record.id: record for record in read_records(db, list(numbers.values()), vectors, self.location)}
        return [found[id] for id in ids if id in found]

    def search(
        self, queries: np.ndarray, top: int, where: Filter = Filter(), *, exact: bool = False
    ) -> list[list[Hit]]:
        schema = self.schema()
        if schema is None or top < 1 or not len(queries):
            return [[] for _ in queries]
        assert queries.shape[1] == schema.global_dim, queries.shape
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        queries = np.ascontiguousarray(queries / np.where(norms > 0, norms, 1), np.float32)
        with self._reading("search") as db:
            source = VectorSource(db, schema.global_dim)
            allowed = numbers_where(db, where) if where else None
            found = self._neighbours.search(source, queries, top, allowed, exact=exact)
            return [[Hit(id_text(id), score) for id, score in hits] for hits in found]

    def patches(self, ids: Sequence[str]) -> dict[str, bytes]:
        if not ids:
            return {}
        asked = {id_bytes(id): id for id in ids}
        with self._reading("read patches of") as db:
            rows = select(
                db,
                "SELECT r.id, p.patches FROM records r JOIN patches p USING (number) WHERE r.id IN carray(?)",
                (apsw.carray(tuple(asked)),),
            ).fetchall()
        return {asked[id]: packed for id, packed in rows}

    def features(self, ids: Sequence[str]) -> dict[str, StoredFeatures]:
        schema = self.schema()
        if schema is None or not ids:
            return {}
        asked = {id_bytes(id): id for id in ids}
        with self._reading("read features of") as db:
            rows = select(
                db,
                "SELECT r.id, v.vector, p.patches FROM records r JOIN vectors v USING (number)"
                " LEFT JOIN patches p USING (number) WHERE r.id IN carray(?)",
                (apsw.carray(tuple(asked)),),
            ).fetchall()
            vectors = np.frombuffer(b"".join(vector for _, vector, _ in rows), "<f2").reshape(-1, schema.global_dim)
        found = zip(rows, vectors.astype(np.float32), strict=True)
        return {asked[id]: StoredFeatures(vector, packed) for (id, _, packed), vector in found}

    def count(self, where: Filter = Filter()) -> int:
        with self._reading("count records of") as db:
            clause, values = condition(db, where)
            found = int(select(db, f"SELECT COUNT(*) FROM records WHERE {clause}", values).fetchone()[0])
            if not where:
                self._check_count(db, found)
        return found

    def optimize(self, *, progress: BuildProgress = no_progress, stop: Callable[[], bool] = never) -> None:
        """See `protocol.Store`; also where the index cannot be written, for the graph lies in the user's cache."""
        schema = self.schema()
        if schema is None:
            return
        with self.snapshot_of_own() as db:
            try:
                source = VectorSource(db, schema.global_dim)
                self._neighbours.build(source, self.location, progress=progress, stop=stop)
            except OSError as error:
                raise StoreError(f"cannot keep the graph of neighbours: {error.strerror or error}; make room") from None

    def size(self) -> StoreSize:
        """Bytes on disk: the database with its log, the tags' second copy, the graph in the user's cache."""
        parts: dict[str, int] = {}
        for path in self._folder.iterdir():
            if path.name.startswith(DATABASE_NAME) or path.name == TAGS_NAME:
                part = "tags" if path.name == TAGS_NAME else "database"
                parts[part] = parts.get(part, 0) + os.lstat(path).st_size
        with self._reading("read") as db:
            graph = graph_bytes(VectorSource(db, 0).index_id)
        return StoreSize(parts | ({"neighbours, in the cache": graph} if graph else {}))

    # Within

    @contextmanager
    def _reading(self, doing: str) -> Iterator[apsw.Connection]:
        """A connection whose reads within the block see one state."""
        with sqlite_errors(doing, self._folder, values=True), self._readers.one() as db:
            yield db

    @contextmanager
    def snapshot_of_own(self) -> Iterator[apsw.Connection]:
        """A connection for a long read, which other reads of this thread do not share."""
        with sqlite_errors("read", self._folder, values=True), self._readers.another() as db:
            yield db

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[apsw.Connection]:
        """All that is written within the block, or nothing of it; on the disk when it ends."""
        assert self._writer is not None, "opened for reading only"
        with self._writing, sqlite_errors(doing, self._folder), self._writer:
            yield self._writer

    def _remove(self, db: apsw.Connection, ids: Sequence[str]) -> int:
        """Delete all that is held of these records; how many there were."""
        numbers = list(numbers_of(db, ids).values())
        if numbers:
            wanted = apsw.carray(np.array(numbers, np.int64))
            for table in ("records", "vectors", "patches", "files", "tags"):
                db.execute(f"DELETE FROM {table} WHERE number IN carray(?)", (wanted,))
        return len(numbers)

    def _begin_epoch(self, db: apsw.Connection, first_number: int) -> None:
        if self._epoch is None:
            self._epoch = secrets.token_hex(8)
            select(
                db, "INSERT INTO epochs (token, first_number) VALUES (?, ?)", (bytes.fromhex(self._epoch), first_number)
            )

    def _check_count(self, db: apsw.Connection, found: int) -> None:
        """A smaller index than was written is damage, never an answer."""
        if found != (written := int(read_meta(db, "records") or 0)):
            raise StoreError(
                f"the index at {self.location} is damaged: it holds {found:,} records of the {written:,} that were"
                f" written; {mend(self.location)}"
            )

    def _held_tags(self) -> Tags:
        """The tags of all records that are there and have any."""
        with self.snapshot_of_own() as db:
            return read_held_tags(db)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
