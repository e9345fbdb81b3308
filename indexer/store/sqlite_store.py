"""The embedded store: SQLite in a folder, in this process.

Any number of processes read beside one that writes. Every call reads one consistent state; `snapshot` holds one over
several calls. A write is on the disk when its call returns. See `sqlite_schema` for the tables and for what notices
damage, `neighbours` for how a search finds its way.
"""

import json
import os
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import apsw
import filelock
import numpy as np

from ..errors import StoreError, UnusableError
from ..images.metadata import Metadata
from .index_folder import claim_folder, refuse_missing, shares_memory
from .neighbour_cache import Epoch, graph_bytes
from .neighbours import Found, Neighbours
from .payload import checked_vector
from .protocol import Filter, Hit, Listed, Progress, Record, Schema, StoredFile, StoreSize, never, no_progress
from .sqlite_errors import is_passing, sqlite_errors
from .sqlite_filter import (
    add_functions,
    condition,
    from_bytes,
    id_bytes,
    id_text,
    microseconds,
    moment_of,
    to_bytes,
)
from .sqlite_schema import NAME, check_schema, connect, create, mend, select, set_journal
from .tag_copy import NAME as TAGS_NAME
from .tag_copy import Tags, put_aside, read_tags, write_tags

PAGE_OF_FILES = 5000  # records in one read of `list_files`
UPSERT_RECORDS = 2000  # in one transaction; the log holds their pages until it is worked in
MANY_FREE = 0.25  # share of a file's pages that are free, from which on they are given back to the disk


class SqliteStore:
    """See `store.Store`. With `write` it holds the writer's lock until `close`."""

    def __init__(self, folder: Path, lock: filelock.BaseFileLock | None = None) -> None:
        """Use `open`."""
        self.location = str(folder)
        self._folder = folder
        self._lock = lock
        self._writer: apsw.Connection | None = None
        self._writing = threading.RLock()
        self._readers = _Readers(folder)
        self._neighbours = Neighbours()
        self._schema: Schema | None = None
        self._epoch: str | None = None  # of this session, once it has written records
        self._tags: Tags | None = None  # the second copy, once it was read
        self._tags_waiting = False  # to be written

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
                self._write_tags()
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

    def blob_names(self) -> list[str]:
        with self._reading("read") as db:
            return [name for (name,) in select(db, "SELECT name FROM blobs ORDER BY name")]

    # Records

    def schema(self) -> Schema | None:
        if self._schema is None:
            with self._reading("open") as db:
                dim = _meta(db, "dim")
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
                last = int(_meta(db, "last_number") or 0)
                self._begin_epoch(db, last + 1)
                _insert(db, last + 1, list(some.values()))
                _set_meta(db, "last_number", last + len(some))
                _set_meta(db, "records", int(_meta(db, "records") or 0) + len(some) - replaced)
        self._remember_tags({record.id: record.tags for record in records if record.tags}, at_once=False)

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        if not files:
            return
        with self._transaction("update records of") as db:
            numbers = _numbers(db, files)
            if numbers:
                wanted = apsw.carray(np.array(list(numbers.values()), np.int64))
                db.execute("DELETE FROM files WHERE number IN carray(?)", (wanted,))
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                (row for id, number in numbers.items() for row in _file_rows(number, files[id])),
            )

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        with self._transaction("update records of") as db:
            known = _numbers(db, tags)
            for id, number in known.items():
                db.execute("DELETE FROM tags WHERE number = ?", (number,))
                db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", _tag_rows(number, tags[id]))
        self._remember_tags(tags, at_once=True)

    def remembered_tags(self) -> Tags:
        return dict(self._kept_tags())

    def tags_of(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        with self._reading("read tags of") as db:
            numbers = _numbers(db, ids)
            of_record = _tags_by_number(db, numbers.values())
        known = {id: of_record.get(number, ()) for id, number in numbers.items()}
        kept = self._kept_tags()
        return {id: known[id] if id in known else kept[id] for id in ids if id in known or id in kept}

    def delete(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        with self._transaction("delete records of") as db:
            removed = self._remove(db, ids)
            _set_meta(db, "records", int(_meta(db, "records") or 0) - removed)

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
                found = _read(db, [number for _, number in rows], vectors, self.location)
                if not rows and not where and last == b"":
                    self._check_count(db, 0)
            if not rows:
                return
            last = rows[-1][0]
            yield from found

    def list_files(self) -> Iterator[Listed]:
        with self.snapshot_of_own() as db:
            yield from _listed(db, self.location, self._check_count)

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        if not ids:
            return []
        with self._reading("read records of") as db:
            numbers = _numbers(db, ids)
            found = {record.id: record for record in _read(db, list(numbers.values()), vectors, self.location)}
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
            source = _Source(db, schema.global_dim)
            allowed = _allowed(db, where) if where else None
            found = self._neighbours.search(source, queries, top, allowed, exact=exact)
            return [[Hit(id_text(id), score) for id, score in hits] for hits in found]

    def patches(self, ids: Sequence[str]) -> dict[str, bytes]:
        if not ids:
            return {}
        wanted = tuple(dict.fromkeys(map(id_bytes, ids)))
        with self._reading("read patches of") as db:
            rows = select(
                db,
                "SELECT r.id, p.patches FROM records r JOIN patches p USING (number) WHERE r.id IN carray(?)",
                (apsw.carray(wanted),),
            ).fetchall()
        return {id_text(id): packed for id, packed in rows}

    def count(self, where: Filter = Filter()) -> int:
        with self._reading("count records of") as db:
            clause, values = condition(db, where)
            found = int(select(db, f"SELECT COUNT(*) FROM records WHERE {clause}", values).fetchone()[0])
            if not where:
                self._check_count(db, found)
        return found

    def optimize(self, *, progress: Progress = no_progress, stop: Callable[[], bool] = never) -> None:
        """See `store.Store`; also where the index cannot be written, for the graph lies in the user's cache."""
        schema = self.schema()
        if schema is None:
            return
        with self.snapshot_of_own() as db:
            try:
                source = _Source(db, schema.global_dim)
                self._neighbours.build(source, self.location, progress=progress, stop=stop)
            except OSError as error:
                raise StoreError(f"cannot keep the graph of neighbours: {error.strerror or error}; make room") from None

    def size(self) -> StoreSize:
        """Bytes on disk: the database with its log, the tags' second copy, the graph in the user's cache."""
        parts: dict[str, int] = {}
        for path in self._folder.iterdir():
            if path.name.startswith(NAME) or path.name == TAGS_NAME:
                part = "tags" if path.name == TAGS_NAME else "database"
                parts[part] = parts.get(part, 0) + os.lstat(path).st_size
        with self._reading("read") as db:
            graph = graph_bytes(_Source(db, 0).index_id)
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
        numbers = list(_numbers(db, ids).values())
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
        if found != (written := int(_meta(db, "records") or 0)):
            raise StoreError(
                f"the index at {self.location} is damaged: it holds {found:,} records of the {written:,} that were"
                f" written; {mend(self.location)}"
            )

    def _kept_tags(self) -> Tags:
        """The second copy, for a writer with what a run that was killed did not get into it."""
        if self._tags is None:
            try:
                kept, sound = read_tags(self._folder), True
            except (OSError, ValueError):
                kept, sound = {}, False
            if self._writer is not None:
                if not sound:
                    put_aside(self._folder)
                held = self._held_tags()
                self._tags_waiting = not sound or any(kept.get(id) != tags for id, tags in held.items())
                kept = {**kept, **held}
            self._tags = kept
        return self._tags

    def _held_tags(self) -> Tags:
        """The tags of all records that are there and have any."""
        held: dict[str, list[str]] = {}
        with self.snapshot_of_own() as db:
            for id, tag in select(db, "SELECT r.id, t.tag FROM tags t JOIN records r USING (number)"):
                held.setdefault(id_text(id), []).append(from_bytes(tag))
        return {id: tuple(sorted(tags)) for id, tags in held.items()}

    def _remember_tags(self, tags: Tags, *, at_once: bool) -> None:
        """Into the second copy; what a run writes by the thousand is kept back until `close`."""
        kept = self._kept_tags()
        changed = {id: tuple(sorted(of_record)) for id, of_record in tags.items()}
        changed = {id: of_record for id, of_record in changed.items() if kept.get(id, ()) != of_record}
        if changed:
            self._tags = {id: of_record for id, of_record in {**kept, **changed}.items() if of_record}
            self._tags_waiting = True
        if at_once:
            self._write_tags()

    def _write_tags(self) -> None:
        if not self._tags_waiting or self._tags is None:
            return
        try:
            write_tags(self._folder, self._tags)
        except OSError as error:
            raise StoreError(
                f"the tags are in the index at {self.location}, but their second copy could not be written:"
                f" {error.strerror or error}; make room and tag again"
            ) from None
        self._tags_waiting = False


class _Readers:
    """Connections for reading, one for each thread that reads at the moment; they are kept for the next one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[apsw.Connection]:
        """This thread's connection in a read transaction; within another `one` of the thread it is that one's."""
        if (current := getattr(self._of_thread, "db", None)) is not None:
            yield current
            return
        with self.another() as db:
            self._of_thread.db = db
            try:
                yield db
            finally:
                self._of_thread.db = None

    @contextmanager
    def another(self) -> Iterator[apsw.Connection]:
        """A connection in a read transaction."""
        reader = self._take()
        db = reader.db
        good = False
        try:
            db.execute("BEGIN")
            yield db
            if reader.as_it_lies and file_state(self._folder) != reader.state:
                raise StoreError(f"the index at {self._folder} was written to while it was read; ask again")
            good = True
        except GeneratorExit:  # whoever read a long list has seen enough
            good = True
            raise
        finally:
            with suppress(apsw.Error):
                db.execute("COMMIT" if good else "ROLLBACK")
            self._give_back(reader)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.db.close()

    def _take(self) -> "_Reader":
        """An idle connection to the file that is there now, or a new one."""
        state = file_state(self._folder)
        with self._lock:
            while self._idle:
                reader = self._idle.pop()
                if reader.state == state or (not reader.as_it_lies and reader.state[:2] == state[:2]):
                    return reader
                reader.db.close()  # replaced by a repair, or by whoever keeps the index for those who read it
        db, as_it_lies = _opened(self._folder)
        return _Reader(db, as_it_lies, state)

    def _give_back(self, reader: "_Reader") -> None:
        with self._lock:
            if not self._closed and not reader.db.in_transaction and len(self._idle) < 8:
                self._idle.append(reader)
                return
        reader.db.close()


@dataclass(frozen=True)
class _Reader:
    db: apsw.Connection
    as_it_lies: bool  # nothing tells it of a writer: no locks, no log
    state: tuple[int, ...]  # of the file before it was opened


class _Source:
    """See `neighbours.Source`."""

    def __init__(self, db: apsw.Connection, dim: int) -> None:
        self.dim = dim
        self._db = db
        id = _meta(db, "index")
        self.index_id: str = id.hex() if isinstance(id, bytes) else ""

    def last_number(self) -> int:
        return int(_meta(self._db, "last_number") or 0)

    def num_records(self) -> int:
        return int(_meta(self._db, "records") or 0)

    def num_records_after(self, number: int) -> int:
        return int(select(self._db, "SELECT COUNT(*) FROM vectors WHERE number > ?", (number,)).fetchone()[0])

    def epochs(self) -> list[Epoch]:
        rows = select(self._db, "SELECT token, first_number FROM epochs ORDER BY epoch")
        return [Epoch(token.hex(), first) for token, first in rows]

    def last_epoch(self) -> str:
        row = select(self._db, "SELECT token FROM epochs ORDER BY epoch DESC LIMIT 1").fetchone()
        return row[0].hex() if row else ""

    def vectors(self, numbers: np.ndarray) -> Found:
        if not len(numbers):
            return Found(np.empty(0, np.int64), [], np.empty((0, self.dim), np.float16))
        wanted = apsw.carray(np.ascontiguousarray(numbers, np.int64))
        return self._found(
            select(
                self._db, "SELECT number, id, vector FROM vectors WHERE number IN carray(?) ORDER BY number", (wanted,)
            ).fetchall()
        )

    def vectors_after(self, number: int, limit: int) -> Found:
        return self._found(
            select(
                self._db,
                "SELECT number, id, vector FROM vectors WHERE number > ? ORDER BY number LIMIT ?",
                (number, limit),
            ).fetchall()
        )

    def _found(self, rows: Sequence[tuple[int, bytes, bytes]]) -> Found:
        numbers = np.fromiter((number for number, _, _ in rows), np.int64, len(rows))
        vectors = np.frombuffer(b"".join(vector for _, _, vector in rows), "<f2").reshape(len(rows), self.dim)
        return Found(numbers, [id for _, id, _ in rows], vectors)


def open_reader(folder: Path) -> apsw.Connection:
    """A connection that only reads; StoreError where that cannot be, SeenitError where there is no index."""
    return _opened(folder)[0]


def _opened(folder: Path) -> tuple[apsw.Connection, bool]:
    """See `open_reader`; and whether the file is read as it lies.

    Where nothing can be written (a read-only folder, a full disk), a log cannot be shared with others. Without one that
    has something in it the file is read as it lies; `_Readers` notices when it changes.
    """
    with sqlite_errors("open", folder, values=True):
        refuse_missing(folder)
        try:
            return _connected(folder), False
        except apsw.Error as error:
            if not is_passing(error):
                raise
            failure = error
        if isinstance(failure, apsw.ReadOnlyError) and (folder / f"{NAME}-journal").exists():
            with closing(connect(folder, write=True)) as db:  # undoes what a killed writer left half written
                db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
            return _checked(connect(folder), folder), False
        for suffix in ("-wal", "-journal"):
            with suppress(FileNotFoundError):
                if os.lstat(folder / (NAME + suffix)).st_size:
                    raise failure
        return _checked(connect(folder, immutable=True), folder), True


def _connected(folder: Path) -> apsw.Connection:
    """A checked connection to read; a second one where the file got its first page just now.

    Opened while the file is empty, a connection does not know the size of its pages, and a page of another size has
    another checksum.
    """
    try:
        return _checked(connect(folder), folder)
    except apsw.IOError as error:
        if getattr(error, "extendedresult", 0) != apsw.SQLITE_IOERR_DATA:
            raise
        return _checked(connect(folder), folder)


def file_state(folder: Path) -> tuple[int, ...]:
    """Device and inode of the database, and what changes when it or its log is written; empty where there is none."""
    state: list[int] = []
    for suffix in ("", "-wal"):
        with suppress(OSError):
            status = os.lstat(folder / (NAME + suffix))
            state += [status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size]
    return tuple(state[:4]) if len(state) == 8 and not state[7] else tuple(state)


def _checked(db: apsw.Connection, folder: Path) -> apsw.Connection:
    try:
        if not check_schema(db, folder):
            raise StoreError(f"the index at {folder} is empty; run seenit index on it")
        add_functions(db)
        return db
    except BaseException:
        db.close()
        raise


# Rows and records


def _meta(db: apsw.Connection, name: str) -> Any:
    return next((value for (value,) in select(db, "SELECT value FROM meta WHERE name = ?", (name,))), None)


def _set_meta(db: apsw.Connection, name: str, value: int) -> None:
    db.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))


def _numbers(db: apsw.Connection, ids: Iterable[str]) -> dict[str, int]:
    """The numbers of the records that are there, by id."""
    wanted = tuple({id_bytes(id) for id in ids})
    if not wanted:
        return {}
    rows = select(db, "SELECT id, number FROM records WHERE id IN carray(?)", (apsw.carray(wanted),))
    return {id_text(id): number for id, number in rows}


def _allowed(db: apsw.Connection, where: Filter) -> np.ndarray:
    """The numbers that meet the conditions, ascending.  (A,) int64"""
    clause, values = condition(db, where)
    rows = select(db, f"SELECT number FROM records WHERE {clause} ORDER BY number", values).fetchall()
    return np.fromiter((number for (number,) in rows), np.int64, len(rows))


def _insert(db: apsw.Connection, first: int, records: Sequence[tuple[Record, np.ndarray]]) -> None:
    """Write records of which none is there, numbered from `first` on."""
    cameras = _cameras(db, {record.metadata.camera for record, _ in records if record.metadata.camera is not None})
    rows = [(first + n, record, vector) for n, (record, vector) in enumerate(records)]
    db.executemany(
        f"INSERT INTO records VALUES ({', '.join('?' * 12)})",
        (_record_row(number, record, vector, cameras) for number, record, vector in rows),
    )
    db.executemany(
        "INSERT INTO vectors VALUES (?, ?, ?)",
        ((n, id_bytes(record.id), vector.tobytes()) for n, record, vector in rows),
    )
    db.executemany(
        "INSERT INTO patches VALUES (?, ?)",
        ((n, record.patches) for n, record, _ in rows if record.patches is not None),
    )
    db.executemany(
        "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
        (row for number, record, _ in rows for row in _file_rows(number, record.files)),
    )
    db.executemany(
        "INSERT OR IGNORE INTO tags VALUES (?, ?)",
        (row for number, record, _ in rows for row in _tag_rows(number, record.tags)),
    )


def _record_row(number: int, record: Record, vector: np.ndarray, cameras: dict[str, int]) -> tuple[object, ...]:
    metadata = record.metadata
    gps = metadata.gps if metadata.gps and abs(metadata.gps[0]) <= 90 and abs(metadata.gps[1]) <= 180 else (None, None)
    return (
        number,
        id_bytes(record.id),
        record.whitening_id,
        metadata.width,
        metadata.height,
        metadata.format,
        None if metadata.taken_at is None else microseconds(metadata.taken_at),
        None if metadata.camera is None else cameras[metadata.camera],
        *gps,
        more_of(metadata),
        record_crc(record.id, record.whitening_id, vector.tobytes(), record.patches),
    )


_MORE_TYPES: dict[str, type] = {"date_source": str, "frames": int, "raw": bool, "note": str}


def more_of(metadata: Metadata) -> str:
    """The fields of metadata without a column of their own, as JSON; those that have their default are left out."""
    values = asdict(metadata)
    return json.dumps({name: values[name] for name in _MORE_TYPES if values[name] != getattr(Metadata, name)})


def metadata_of(
    width: int,
    height: int,
    format: str,
    taken_at: int | None,
    camera: bytes | None,
    latitude: float | None,
    longitude: float | None,
    more: str,
) -> Metadata:
    """The metadata of a row of `records`, `camera` being its camera's name; ValueError or TypeError where it is none.

    A field of `more` that is not known is left alone: a later version may have written it.
    """
    fields = json.loads(more)
    if not isinstance(fields, dict):
        raise ValueError("its further fields are none")
    known = {name: fields[name] for name in _MORE_TYPES if name in fields}
    if any(type(value) is not _MORE_TYPES[name] for name, value in known.items()):
        raise ValueError("its further fields are of other types")
    return Metadata(
        width=int(width),
        height=int(height),
        format=str(format),
        taken_at=None if taken_at is None else moment_of(taken_at),
        camera=None if camera is None else from_bytes(camera),
        gps=None if latitude is None or longitude is None else (float(latitude), float(longitude)),
        **known,
    )


def record_crc(id: str, whitening_id: str, vector: bytes, patches: bytes | None) -> int:
    """A checksum over what of a record only the network can give again."""
    return zlib.crc32(patches or b"", zlib.crc32(vector, zlib.crc32(f"{id} {whitening_id} {patches is None}".encode())))


def _cameras(db: apsw.Connection, names: set[str]) -> dict[str, int]:
    """The numbers of cameras by name; new ones are entered."""
    db.executemany("INSERT OR IGNORE INTO cameras (name) VALUES (?)", [(to_bytes(name),) for name in sorted(names)])
    rows = {
        name: select(db, "SELECT camera FROM cameras WHERE name = ?", (to_bytes(name),)).fetchone()[0] for name in names
    }
    return {name: int(camera) for name, camera in rows.items()}


def _file_rows(number: int, files: Iterable[StoredFile]) -> list[tuple[bytes, int, int, int, int]]:
    return [(to_bytes(file.key), number, file.size, file.mtime_ns, place) for place, file in enumerate(files)]


def _tag_rows(number: int, tags: Iterable[str]) -> list[tuple[bytes, int]]:
    return [(to_bytes(tag), number) for tag in tags]


_COLUMNS = (
    "r.number, r.id, r.whitening, r.crc,"
    " r.width, r.height, r.format, r.taken_at, c.name, r.latitude, r.longitude, r.more"
)


def _read(db: apsw.Connection, numbers: Sequence[int], vectors: bool, location: str) -> list[Record]:
    """The records with these numbers, in the order asked; StoreError where one is not what was written."""
    if not numbers:
        return []
    wanted = np.array(numbers, np.int64)
    files = _files_by_number(db, wanted)
    tags = _tags_by_number(db, wanted)
    extra, join = (
        ("NULL, NULL", "")
        if not vectors
        else ("v.vector, p.patches", "LEFT JOIN vectors v USING (number) LEFT JOIN patches p USING (number)")
    )
    rows = select(
        db,
        f"SELECT {_COLUMNS}, {extra} FROM records r LEFT JOIN cameras c ON c.camera = r.camera {join}"
        " WHERE r.number IN carray(?)",
        (apsw.carray(wanted),),
    )
    found: dict[int, Record] = {}
    for number, id, whitening_id, crc, *of_metadata, vector, packed in rows:
        try:
            record = Record(
                id_text(id), files.get(number, ()), metadata_of(*of_metadata), whitening_id, tags.get(number, ())
            )
            if vectors:
                if vector is None or record_crc(record.id, whitening_id, vector, packed) != crc:
                    raise ValueError("its checksum is not right")
                record = replace(record, global_vector=np.frombuffer(vector, "<f2").astype(np.float32), patches=packed)
        except (ValueError, TypeError, OverflowError) as error:
            raise StoreError(
                f"record {bytes(id).hex()} in {location} is not what seenit wrote ({error}); {mend(location)}"
            ) from None
        found[number] = record
    return [found[number] for number in numbers if number in found]


def _files_by_number(db: apsw.Connection, numbers: np.ndarray) -> dict[int, tuple[StoredFile, ...]]:
    """Files of records, in the order in which they were first written."""
    rows = select(
        db,
        "SELECT number, key, size, mtime_ns FROM files WHERE number IN carray(?) ORDER BY number, place",
        (apsw.carray(numbers),),
    )
    files: dict[int, list[StoredFile]] = {}
    for number, key, size, mtime_ns in rows:
        files.setdefault(number, []).append(StoredFile(from_bytes(key), size, mtime_ns))
    return {number: tuple(of_record) for number, of_record in files.items()}


def _tags_by_number(db: apsw.Connection, numbers: Iterable[int]) -> dict[int, tuple[str, ...]]:
    wanted = np.fromiter(numbers, np.int64)
    if not len(wanted):
        return {}
    rows = select(db, "SELECT number, tag FROM tags WHERE number IN carray(?) ORDER BY tag", (apsw.carray(wanted),))
    tags: dict[int, list[str]] = {}
    for number, tag in rows:
        tags.setdefault(number, []).append(from_bytes(tag))
    return {number: tuple(of_record) for number, of_record in tags.items()}


def _listed(
    db: apsw.Connection, location: str, check_count: Callable[[apsw.Connection, int], None]
) -> Iterator[Listed]:
    """Every record\'s id, whitening and files, in the order of writing, which reads the tables from front to back.

    As many as were written, or StoreError."""
    rows = select(
        db,
        "SELECT r.number, r.id, r.whitening, f.place, f.key, f.size, f.mtime_ns"
        " FROM records r LEFT JOIN files f USING (number) ORDER BY r.number",
    )
    seen = 0
    for _, of_record in groupby(rows, itemgetter(0)):
        files = sorted(of_record, key=itemgetter(3))
        _, id, whitening_id, place, *_ = files[0]
        stored = [] if place is None else [StoredFile(from_bytes(key), size, at) for *_, key, size, at in files]
        yield Listed(id_text(id), whitening_id, tuple(stored))
        seen += 1
    check_count(db, seen)
