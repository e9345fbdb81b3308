"""Connections for reading: one for each thread that reads, kept for the next one, renewed where the file was replaced.

Where a log cannot be shared (a read-only folder, a full disk) the file is read as it lies.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import apsw

from ..errors import StoreError
from .index_folder import refuse_missing
from .sqlite_errors import is_passing, sqlite_errors
from .sqlite_filter import add_functions
from .sqlite_schema import DATABASE_NAME, check_schema, connect


class Readers:
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


def open_reader(folder: Path) -> apsw.Connection:
    """A connection that only reads; StoreError where that cannot be, SeenitError where there is no index."""
    return _opened(folder)[0]


def _opened(folder: Path) -> tuple[apsw.Connection, bool]:
    """See `open_reader`; and whether the file is read as it lies.

    Where nothing can be written (a read-only folder, a full disk), a log cannot be shared with others. Without one that
    has something in it the file is read as it lies; `Readers` notices when it changes.
    """
    with sqlite_errors("open", folder, values=True):
        refuse_missing(folder)
        try:
            return _connected(folder), False
        except apsw.Error as error:
            if not is_passing(error):
                raise
            failure = error
        if isinstance(failure, apsw.ReadOnlyError) and (folder / f"{DATABASE_NAME}-journal").exists():
            with closing(connect(folder, write=True)) as db:  # undoes what a killed writer left half written
                db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
            return _checked(connect(folder), folder), False
        for suffix in ("-wal", "-journal"):
            with suppress(FileNotFoundError):
                if os.lstat(folder / (DATABASE_NAME + suffix)).st_size:
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
            status = os.lstat(folder / (DATABASE_NAME + suffix))
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
