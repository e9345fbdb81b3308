"""The tables of `index.sqlite`, and how a connection to them is opened and judged.

    meta         facts of the file: the index's own id, the vector's length, counts that reads are held against
    blobs        the index's small files: manifest, descriptor, calibration, skipped files
    records      one row an image content; `number` grows and is never used again
    vectors      float16, little-endian, with the content id beside it, so that a search reads this table alone
    patches      packed patch tokens
    files        who has this content; keys are bytes, for a file's name need not be text
    tags, cameras
    epochs       which numbers each writing session gave, so that a cache can tell that it was made from this file

Two things are surprising. Every page carries a checksum, which SQLite's own checksum VFS writes and checks: a flipped
bit anywhere is an error when its page is read, never a smaller index. And the schema must be ours to the letter, for an
index may come from somebody else and a trigger in it would run with our writes.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
import apsw.sqlite_extra

from ..atomic_file import last_bytes
from ..errors import UnusableError
from ..printable import pasted

DATABASE_NAME = "index.sqlite"
FORMAT = 2  # in PRAGMA user_version; 1 was the embedded engine of the first version
APPLICATION_ID = 0x5EE41704  # marks the file as seenit's
PAGE_BYTES = 8192  # two balanced records' patches a page; 4096 wastes a quarter of them, 16384 reads no quicker
CHECKSUM_BYTES = 8  # what the checksum VFS keeps at the end of each page
MAX_BLOB_BYTES = 256 << 20  # of one value; the descriptor's statistics of a large backbone are some 30 MB
CACHE_KIB = 16_384  # of pages a connection; what is hot beyond that lies in the system's page cache; not tuned
OTHER_JOURNAL = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"  # ends a journal that names another file, which SQLite may delete
WAL_BYTES = 64 << 20  # that a log left behind may keep on the disk

TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    "CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE cameras (camera INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE)",
    "CREATE TABLE records (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, whitening TEXT NOT NULL,"
    " width INTEGER NOT NULL, height INTEGER NOT NULL, format TEXT NOT NULL, taken_at INTEGER, camera INTEGER,"
    " latitude REAL, longitude REAL, more TEXT NOT NULL, crc INTEGER NOT NULL)",
    "CREATE INDEX records_whitening ON records (whitening)",
    "CREATE INDEX records_taken_at ON records (taken_at) WHERE taken_at IS NOT NULL",
    "CREATE INDEX records_camera ON records (camera) WHERE camera IS NOT NULL",
    "CREATE INDEX records_latitude ON records (latitude) WHERE latitude IS NOT NULL",
    "CREATE TABLE vectors (number INTEGER PRIMARY KEY, id BLOB NOT NULL, vector BLOB NOT NULL)",
    "CREATE TABLE patches (number INTEGER PRIMARY KEY, patches BLOB NOT NULL)",
    "CREATE TABLE files (key BLOB NOT NULL, number INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
    " place INTEGER NOT NULL, PRIMARY KEY (key, number)) WITHOUT ROWID",
    "CREATE INDEX files_number ON files (number)",
    "CREATE TABLE tags (tag BLOB NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (tag, number)) WITHOUT ROWID",
    "CREATE INDEX tags_number ON tags (number)",
    "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, token BLOB NOT NULL, first_number INTEGER NOT NULL)",
)


def checksum_vfs() -> str:
    """The name of the VFS that keeps a checksum in every page; loaded once a process."""
    if "cksmvfs" not in apsw.vfs_names():
        with closing(apsw.Connection(":memory:")) as loader:
            apsw.sqlite_extra.load(loader, "cksumvfs")
    return "cksmvfs"


def connect(folder: Path, *, write: bool = False, immutable: bool = False, busy_s: float = 10.0) -> apsw.Connection:
    """A connection to the index in a folder; apsw.Error where SQLite refuses, StoreError where the file is not ours.

    write      create the file if it is not there
    immutable  the file is on a medium, or in a folder, where nothing can be written: no locks, no log
    busy_s     how long a statement waits for another process that writes
    """
    # the folder may be reached through links, what lies in it may not be one
    path = os.path.join(os.path.realpath(folder), DATABASE_NAME)
    flags = apsw.SQLITE_OPEN_NOFOLLOW | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_PRIVATECACHE
    flags |= (apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) if write else apsw.SQLITE_OPEN_READONLY
    uri = "file:" + quote(os.fsencode(path)) + ("?immutable=1" if immutable else "")
    db = apsw.Connection(uri, flags=flags, vfs=checksum_vfs())
    try:
        db.set_busy_timeout(int(1000 * busy_s))
        db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        db.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
        db.limit(apsw.SQLITE_LIMIT_LENGTH, MAX_BLOB_BYTES)
        db.limit(apsw.SQLITE_LIMIT_ATTACHED, 0)
        db.execute(f"PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA cache_size = -{CACHE_KIB};")
        db.execute("PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY; PRAGMA synchronous = FULL;")
        return db
    except BaseException:
        db.close()
        raise


def create(db: apsw.Connection, *, shared_memory: bool) -> None:
    """Lay the tables out in a new file.

    shared_memory  whether the disk can do what a write-ahead log needs; else a rollback journal is kept
    """
    db.reserve_bytes(reserve=CHECKSUM_BYTES)
    db.execute(f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL;")
    with db:
        for statement in TABLES:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};")
        db.execute("INSERT INTO meta VALUES ('index', randomblob(16)), ('last_number', 0), ('records', 0)")
    set_journal(db, shared_memory=shared_memory)


def select(db: apsw.Connection, statement: str, values: Sequence[Any] = ()) -> Any:
    """A cursor over rows, whose types only the schema knows."""
    return db.execute(statement, values)


def set_journal(db: apsw.Connection, *, shared_memory: bool) -> None:
    """Readers beside a writer need a write-ahead log, which network drives do not bear."""
    wanted = "wal" if shared_memory else "truncate"
    if db.pragma("journal_mode") != wanted:
        db.pragma("journal_mode", wanted)
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")


def check_schema(db: apsw.Connection, folder: Path) -> bool:
    """Whether the tables are there; StoreError where the file is another program's, another format's or was altered."""
    db.execute("BEGIN")  # one state, also while another process makes the tables
    try:
        there = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
        ours = db.pragma("application_id") == APPLICATION_ID
        made_in = int(db.pragma("user_version"))
    finally:
        if db.in_transaction:  # an error has ended it
            db.execute("COMMIT")
    if not there and not ours and made_in == 0:
        return False  # made, and then its maker was stopped
    if not ours:
        raise UnusableError(f"{folder / DATABASE_NAME} was not made by seenit; name another folder with --index")
    if made_in > FORMAT:
        raise UnusableError(f"the index at {folder} was made by a newer seenit (format {made_in}); update seenit")
    if there != set(TABLES) or int(db.pragma("checksum_verification")) != 1:
        raise UnusableError(f"the index at {folder} is damaged or was altered by another program; {mend(folder)}")
    return True


def mend(folder: object) -> str:
    """The next step where an index is damaged."""
    return f"mend it with: seenit check --repair --index {pasted(folder)}"


def refuse_odd_files(folder: Path) -> bool:
    """Whether there is a database in the folder; StoreError where it, or what SQLite keeps beside it, is no plain file.

    An index may be somebody else's: a link would lead our writes elsewhere, a named pipe would hang its reader.
    """
    for suffix in ("-wal", "-shm", "-journal", ""):
        path = folder / (DATABASE_NAME + suffix)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no regular file"
            raise UnusableError(
                f"cannot open the index at {folder}: {path.name} in it is {what}; remove it, or index again"
            )
        if suffix == "-journal" and last_bytes(path, 8) == OTHER_JOURNAL:
            raise UnusableError(
                f"cannot open the index at {folder}: {path.name} in it was not left by seenit; remove it"
            )
        if not suffix:
            return True
    return False
