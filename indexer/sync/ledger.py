"""What the store holds against what the disk holds.

The comparison runs in SQL on a private temporary database (SQLite's, spilled to disk and gone with the process), so
that a million files cost no more memory than a thousand. The store stays the only truth: nothing here outlives a run.

Tables: `known` files as the store had them at the start, `found` files as folders and other sources have them (a size
or time that is not known is NULL and equals nothing), `read_by` how images are read that are no files, `skipped` files
that were read before and gave no image.

Mostly all is as it was, so only differences are written down. What a file holds now is `current`: the known files but
those in `apart`, and `assigned`. What the store says by now is `stored`: the known files but those of records in
`rewritten`, and `written`.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..images.description import SIDECAR
from ..index.skipped import SkippedFile
from ..store.protocol import Listed, StoredFile

_TABLES = """
CREATE TABLE known     (key TEXT, id TEXT, size INT, mtime_ns INT, PRIMARY KEY (key, id)) WITHOUT ROWID;
CREATE TABLE found     (key TEXT PRIMARY KEY, size INT, mtime_ns INT) WITHOUT ROWID;
CREATE TABLE read_by   (key TEXT PRIMARY KEY, text TEXT, described INT) WITHOUT ROWID;
CREATE TABLE skipped   (key TEXT PRIMARY KEY, size INT, mtime_ns INT, reason TEXT) WITHOUT ROWID;
CREATE TABLE apart     (key TEXT, id TEXT, PRIMARY KEY (key, id)) WITHOUT ROWID;
CREATE TABLE assigned  (key TEXT PRIMARY KEY, id TEXT, size INT, mtime_ns INT) WITHOUT ROWID;
CREATE TABLE rewritten (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE written   (id TEXT, key TEXT, size INT, mtime_ns INT, PRIMARY KEY (id, key)) WITHOUT ROWID;
CREATE TABLE stale     (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE claimed   (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE todo      (key TEXT PRIMARY KEY, hash_first INT, shuffle INT) WITHOUT ROWID;
CREATE INDEX assigned_id ON assigned (id);
"""
_INDEX_OF_KNOWN = "CREATE INDEX known_id ON known (id)"
_STANDS = "NOT EXISTS (SELECT 1 FROM apart WHERE apart.key = k.key AND apart.id = k.id)"  # of a row k of `known`
_KEEP = "INSERT OR IGNORE INTO assigned SELECT o.* FROM known o"  # as it is known, unless it was assigned
_NONE_STANDS = f"NOT EXISTS (SELECT 1 FROM known k WHERE k.key = o.key AND {_STANDS})"
_UNCHANGED = "SELECT 1 FROM {} WHERE k.key = f.key AND k.size = f.size AND k.mtime_ns = f.mtime_ns"
_IS_SIDECAR = f"lower(substr(CAST(key AS TEXT), -{len(SIDECAR)})) = '{SIDECAR}'"


@dataclass(frozen=True)
class Changes:
    """How many files a run brought in line."""

    added: int = 0  # files that are new here, copies included
    copies: int = 0  # of those, files whose content had a record already
    updated: int = 0  # known files with new content
    renamed: int = 0  # known contents under another name or folder
    removed: int = 0  # files that are gone
    unchanged: int = 0


@dataclass(frozen=True)
class FoundEntry:
    """An image of a source that is no folder.

    size, mtime_ns  None where the source does not tell them
    read_by         what a decoder is told to read it by, in JSON
    described       whether the source says something of the image, which a change of `mtime_ns` may stand for
    """

    key: str
    size: int | None
    mtime_ns: int | None
    read_by: str
    described: bool = False


class Ledger:
    """One run's book-keeping; see the module's docstring. Close it to drop the temporary database."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32000;")
        self._db.executescript(_TABLES)
        self._db.create_function("shuffled", 1, zlib.crc32, deterministic=True)
        self._db.execute("BEGIN")
        self._copies = 0

    def close(self) -> None:
        self._db.close()

    # ---- filling ----

    def add_known(self, records: Iterable[Listed], whitening_id: str | None) -> None:
        """The store's records; those whose vectors another whitening than this one made become stale."""
        stale: list[tuple[str]] = []

        def rows() -> Iterator[tuple[bytes, str, int, int]]:
            for id, made_by, files in records:
                if made_by != whitening_id:
                    stale.append((id,))
                for key, size, mtime_ns in files:
                    yield key.encode("utf-8", "surrogateescape"), id, size, mtime_ns

        self._db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", rows())
        self._db.executemany("INSERT OR IGNORE INTO stale VALUES (?)", stale)

    def add_skipped(self, files: Iterable[SkippedFile]) -> None:
        rows = ((_text(file.key), file.size, file.mtime_ns, file.reason) for file in files)
        self._db.executemany("INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?)", rows)

    def add_found(self, files: Iterable[StoredFile]) -> None:
        rows = ((key.encode("utf-8", "surrogateescape"), size, mtime_ns) for key, size, mtime_ns in files)
        self._db.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)

    def add_entries(self, entries: Iterable[FoundEntry]) -> int:
        """Images of sources that are no folders; how many of them had the key of an earlier one, and do not count."""
        count = 0
        for entry in entries:
            key = _text(entry.key)
            row = (key, entry.size, entry.mtime_ns)
            if self._db.execute("INSERT OR IGNORE INTO found VALUES (?, ?, ?)", row).rowcount:
                how = (key, entry.read_by, entry.described)
                self._db.execute("INSERT OR REPLACE INTO read_by VALUES (?, ?, ?)", how)
            else:
                count += 1
        return count

    def add_read_by(self, entries: Iterable[FoundEntry]) -> None:
        """How images are read whose files are not compared in this run."""
        rows = ((_text(entry.key), entry.read_by) for entry in entries)
        self._db.executemany("INSERT OR IGNORE INTO read_by VALUES (?, ?, 0)", rows)

    def read_by(self, key: str) -> str | None:
        """How an image is read, see `FoundEntry`; None where that is not known, or for a file of a folder."""
        found = self._db.execute("SELECT text FROM read_by WHERE key = ?", (_text(key),)).fetchone()
        return found[0] if found else None

    def keep_under(self, folder_key: str) -> None:
        """A folder could not be listed: what is known below it counts as still there."""
        self._db.execute(
            "INSERT OR IGNORE INTO found SELECT key, size, mtime_ns FROM known WHERE key >= ? AND key < ?",
            _below(folder_key),
        )

    def keep_key(self, key: str) -> None:
        """An image could not be asked for now: what is known of it counts as still there."""
        self._db.execute(
            "INSERT OR IGNORE INTO found SELECT key, size, mtime_ns FROM known WHERE key = ?", (_text(key),)
        )

    def settle(self, scopes: Sequence[str], *, retry: bool = False, verify: bool = False) -> None:
        """Compare. Files outside of the scopes (folder keys) stay as they are known.

        retry   what is remembered as broken is to be read again
        verify  so is what seems unchanged
        """
        db = self._db
        db.execute(_INDEX_OF_KNOWN)
        inside = " OR ".join(["(key >= ? AND key < ?)"] * len(scopes)) or "0"
        bounds = [bound for scope in scopes for bound in _below(scope)]
        is_found = "0" if verify else f"EXISTS ({_UNCHANGED.format('found f')})"
        db.execute(f"INSERT INTO apart SELECT key, id FROM known k WHERE ({inside}) AND NOT {is_found}", bounds)
        db.execute(  # of two contents of one file, which a run that was killed leaves behind, one stands
            f"INSERT INTO apart SELECT k.key, k.id FROM known k WHERE {_STANDS}"
            " AND k.key IN (SELECT key FROM known GROUP BY key HAVING COUNT(*) > 1) AND k.id >"
            f" (SELECT MIN(o.id) FROM known o WHERE o.key = k.key AND {_STANDS.replace('k.', 'o.')})"
        )
        sidecars = self._sidecars_gone()
        db.execute(  # what was skipped stays skipped until it changes; what is gone or changed is forgotten
            f"DELETE FROM skipped WHERE ({inside}) AND NOT EXISTS (SELECT 1 FROM found f WHERE f.key = skipped.key"
            " AND f.size = skipped.size AND f.mtime_ns = skipped.mtime_ns)",
            bounds,
        )
        if retry:
            db.execute(f"DELETE FROM skipped WHERE ({inside}) AND reason IS NOT NULL", bounds)
        is_known = "0" if verify else f"EXISTS ({_UNCHANGED.format('known k')})"
        db.execute(
            "INSERT INTO todo SELECT key, size IN (SELECT size FROM known), shuffled(key) FROM found f"
            f" WHERE NOT {is_known} AND NOT EXISTS (SELECT 1 FROM skipped s WHERE s.key = f.key)"
        )

        db.execute(  # what a table says of an image may be what changed
            "INSERT OR IGNORE INTO stale SELECT k.id FROM read_by r JOIN found f USING (key) JOIN known k USING (key)"
            " WHERE r.described AND (f.size IS NOT k.size OR f.mtime_ns IS NOT k.mtime_ns)"
        )
        self._make_described_stale([*sidecars, *self._keys(f"SELECT key FROM todo WHERE {_IS_SIDECAR}")])

    def _sidecars_gone(self) -> list[str]:
        query = (
            f"SELECT key FROM skipped WHERE {_IS_SIDECAR} AND NOT EXISTS (SELECT 1 FROM found WHERE key = skipped.key)"
        )
        return list(self._keys(query))

    def _make_described_stale(self, sidecars: Sequence[str]) -> None:
        """The images beside sidecars that are new, changed or gone are to be read again."""
        for sidecar in sidecars:
            stem = _text(sidecar[: -len(SIDECAR)])  # photo.jpg.xmp and photo.xmp both belong to photo.jpg
            self._db.execute(
                f"INSERT OR IGNORE INTO stale SELECT id FROM known k WHERE {_STANDS}"
                " AND (key = ? OR (key >= ? AND key < ?))",
                (stem, stem + b".", stem + b"/"),
            )

    def make_all_stale(self) -> None:
        self._db.execute("INSERT OR IGNORE INTO stale SELECT DISTINCT id FROM known")

    # ---- what is to be done ----

    def to_hash(self) -> Iterator[tuple[str, int]]:
        """Keys and sizes of files to be read whose size equals a known one's: likely renamed, moved or copied."""
        query = "SELECT t.key, f.size FROM todo t JOIN found f USING (key) WHERE hash_first ORDER BY t.key"
        for key, size in self._rows(query):
            yield _key(key), size

    def to_decode(self, sample: int) -> Iterator[str]:
        """Keys to be decoded, a random sample of them first; the stale records' files among them."""
        self._db.execute(
            "INSERT OR IGNORE INTO todo SELECT MIN(key), 0, 0 FROM"
            f" (SELECT k.key, id FROM stale JOIN known k USING (id) WHERE {_STANDS}"
            " UNION ALL SELECT key, id FROM stale JOIN assigned USING (id)) GROUP BY id"
        )
        self._db.execute(
            "CREATE TEMP TABLE IF NOT EXISTS sample AS SELECT key FROM todo ORDER BY shuffle, key LIMIT ?", (sample,)
        )
        yield from self._keys("SELECT key FROM sample ORDER BY key")
        yield from self._keys("SELECT key FROM todo WHERE key NOT IN (SELECT key FROM sample) ORDER BY key")

    def to_sniff(self) -> Iterator[str]:
        """Keys to be decoded, in an order of no meaning."""
        yield from self._keys("SELECT key FROM todo ORDER BY shuffle, key")

    def num_to_hash(self) -> int:
        return self._number("SELECT COUNT(*) FROM todo WHERE hash_first")

    def num_to_decode(self) -> int:
        return self._number("SELECT COUNT(*) FROM todo") + self.num_stale()

    def num_stale(self) -> int:
        return self._number(
            f"SELECT COUNT(*) FROM stale s WHERE EXISTS (SELECT 1 FROM known k WHERE k.id = s.id AND {_STANDS})"
            " OR EXISTS (SELECT 1 FROM assigned a WHERE a.id = s.id)"
        )

    def has_stale(self) -> bool:
        """Whether any record may still be embedded again."""
        return bool(self._number("SELECT EXISTS (SELECT 1 FROM stale)"))

    def num_known(self) -> int:
        return self._number("SELECT COUNT(DISTINCT id) FROM known")

    # ---- outcomes ----

    def assign(self, key: str, record_id: str, size: int, mtime_ns: int) -> None:
        """The file `key` has this content."""
        self._db.execute("INSERT OR IGNORE INTO apart SELECT key, id FROM known WHERE key = ?", (_text(key),))
        self._db.execute("INSERT OR REPLACE INTO assigned VALUES (?, ?, ?, ?)", (_text(key), record_id, size, mtime_ns))

    def done(self, key: str) -> None:
        self._db.execute("DELETE FROM todo WHERE key = ?", (_text(key),))

    def skip(self, file: SkippedFile) -> None:
        self.add_skipped([file])

    def keep(self, key: str) -> None:
        """The file could not be read this time: what is known of it stays."""
        self._db.execute(f"{_KEEP} WHERE o.key = ? AND {_NONE_STANDS}", (_text(key),))

    def keep_unread(self) -> None:
        """The run was cut short: what is known of files that were not read yet stays."""
        self._db.execute(
            f"{_KEEP} JOIN todo t USING (key) JOIN found f USING (key)"
            f" WHERE NOT EXISTS (SELECT 1 FROM skipped s WHERE s.key = o.key) AND {_NONE_STANDS}"
        )

    def verified(self) -> tuple[int, list[str]]:
        """Of the files with a known size and time: how many there are, and those that hold something else."""
        unchanged = (
            "known k JOIN found f ON f.key = k.key AND f.size = k.size AND f.mtime_ns = k.mtime_ns"
            " LEFT JOIN assigned a ON a.key = k.key"
        )
        differ = list(self._keys(f"SELECT k.key FROM {unchanged} WHERE a.id IS NOT k.id ORDER BY k.key"))
        return self._number(f"SELECT COUNT(*) FROM {unchanged}"), differ

    def claim(self, record_id: str) -> bool:
        """Whether this content has to be embedded: it has no vectors yet, or those of an older whitening."""
        if self._db.execute("DELETE FROM stale WHERE id = ?", (record_id,)).rowcount:
            return True
        if self.is_known(record_id):
            return False
        return self._db.execute("INSERT OR IGNORE INTO claimed VALUES (?)", (record_id,)).rowcount == 1

    def is_known(self, record_id: str) -> bool:
        return bool(self._number("SELECT EXISTS (SELECT 1 FROM known WHERE id = ?)", record_id))

    def files(self, record_id: str) -> tuple[StoredFile, ...]:
        """The current files of a record, by key."""
        return self._stored_files(
            f"SELECT key, size, mtime_ns FROM known k WHERE id = ?1 AND {_STANDS}"
            " UNION ALL SELECT key, size, mtime_ns FROM assigned WHERE id = ?1 ORDER BY key",
            record_id,
        )

    def _files_in_store(self, record_id: str) -> tuple[StoredFile, ...]:
        return self._stored_files(
            "SELECT key, size, mtime_ns FROM known WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM rewritten WHERE id = ?1)"
            " UNION ALL SELECT key, size, mtime_ns FROM written WHERE id = ?1 ORDER BY key",
            record_id,
        )

    def _stored_files(self, query: str, record_id: str) -> tuple[StoredFile, ...]:
        rows = self._db.execute(query, (record_id,))
        return tuple(StoredFile(_key(key), size, mtime_ns) for key, size, mtime_ns in rows)

    def wrote(self, record_id: str, files: Iterable[StoredFile]) -> None:
        """The store has this record with these files, which need not be its current ones."""
        self._db.execute("INSERT OR IGNORE INTO rewritten VALUES (?)", (record_id,))
        self._db.execute("DELETE FROM written WHERE id = ?", (record_id,))
        rows = ((record_id, _text(file.key), file.size, file.mtime_ns) for file in files)
        self._db.executemany("INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?)", rows)

    # ---- closing the books ----

    def out_of_line(self) -> Iterator[tuple[str, tuple[StoredFile, ...]]]:
        """Records whose stored list of files is not the current one, with that list; an empty one: to be deleted.

        Records that were claimed but never written (the run was cut short) have no files in the store and are left out.
        """
        touched = "SELECT id FROM apart UNION SELECT id FROM assigned UNION SELECT id FROM rewritten"
        for record_id in self._keys(touched):  # of all others every file stands, and is stored as it was
            in_store, now = self._files_in_store(record_id), self.files(record_id)
            if in_store and in_store != now:
                yield record_id, now

    def skipped(self, *, only_broken: bool = False) -> Iterator[SkippedFile]:
        where = " WHERE reason IS NOT NULL" if only_broken else ""
        for key, size, mtime_ns, reason in self._db.execute(f"SELECT * FROM skipped{where} ORDER BY key"):
            yield SkippedFile(_key(key), size, mtime_ns, reason)

    def num_found_in(self, scope: str) -> int:
        return self._number("SELECT COUNT(*) FROM found WHERE key >= ? AND key < ?", *_below(scope))

    def num_known_in(self, scope: str) -> int:
        return self._number("SELECT COUNT(*) FROM known WHERE key >= ? AND key < ?", *_below(scope))

    def changes(self) -> Changes:
        """Counts over files, by comparing `known` with `current`."""
        for name, rows in (
            ("new", "assigned a WHERE NOT EXISTS (SELECT 1 FROM known WHERE key = a.key)"),
            (
                "gone",
                "apart o WHERE NOT EXISTS (SELECT 1 FROM assigned WHERE key = o.key)"
                f" AND NOT EXISTS (SELECT 1 FROM known k WHERE k.key = o.key AND {_STANDS})",
            ),
        ):
            self._db.execute(f"DROP TABLE IF EXISTS temp.{name}")
            self._db.execute(f"CREATE TEMP TABLE {name} AS SELECT key, id FROM {rows}")
        renamed = self._number(
            "SELECT COALESCE(SUM(MIN(n.files, g.files)), 0) FROM"
            " (SELECT id, COUNT(*) files FROM new GROUP BY id) n"
            " JOIN (SELECT id, COUNT(*) files FROM gone GROUP BY id) g USING (id)"
        )
        num_new = self._number("SELECT COUNT(*) FROM new")
        contents = self._number(
            "SELECT COUNT(DISTINCT id) FROM new WHERE NOT EXISTS (SELECT 1 FROM known WHERE known.id = new.id)"
        )
        stand = self._number("SELECT COUNT(*) FROM known") - self._number("SELECT COUNT(*) FROM apart")
        as_known = self._number("SELECT COUNT(*) FROM assigned a JOIN known k ON k.key = a.key AND k.id = a.id")
        return Changes(
            added=num_new - renamed,
            copies=num_new - renamed - contents,
            updated=self._number("SELECT COUNT(*) FROM assigned") - num_new - as_known,
            renamed=renamed,
            removed=self._number("SELECT COUNT(DISTINCT key) FROM gone") - renamed,
            unchanged=stand + as_known,
        )

    def _number(self, query: str, *values: object) -> int:
        return int(self._db.execute(query, values).fetchone()[0])

    def _keys(self, query: str) -> Iterator[str]:
        """A query's only column, keys or record ids."""
        for (value,) in self._rows(query):
            yield _key(value) if isinstance(value, bytes) else value

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """A query's rows, read from a copy, so that the tables may change in between."""
        self._copies += 1
        copy = f"copy_{self._copies}"
        self._db.execute(f"CREATE TEMP TABLE {copy} AS {query}")
        last = 0
        while rows := self._db.execute(f"SELECT rowid, * FROM {copy} WHERE rowid > ? LIMIT 1000", (last,)).fetchall():
            last = rows[-1][0]
            for _, *row in rows:
                yield tuple(row)
        self._db.execute(f"DROP TABLE {copy}")


def _text(key: str) -> bytes:
    """Keys are held as bytes: file names need not be valid UTF-8."""
    return key.encode("utf-8", "surrogateescape")


def _key(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _below(folder_key: str) -> tuple[bytes, bytes]:
    """The range of keys that lie under a folder key: `/` is followed by `0` in every order of bytes."""
    return _text(folder_key + "/"), _text(folder_key + "0")
