"""Whether an embedded index is whole, and a new database of what is sound where it is not.

A check reads every page (each has a checksum), lets SQLite compare its trees, and holds every record against its own
checksum. A repair copies what can be read, record by record, into a new file, gives tags from their second copy, and
puts the damaged file aside; images whose records were lost are embedded again by the next `seenit index`.
"""

import os
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from ..errors import SeenitError, StoreError, first_line
from ..index.index import WAIT_S, Index
from ..index.manifest import MANIFEST_BLOB, parse_manifest
from ..printable import pasted, plural, printable, quoted
from ..progress_bar import progress_bar
from ..sources.place import is_address
from .index_folder import claim_folder, is_index_folder, is_shard_folder, refuse_missing, remove_blank
from .open import refuse_no_shards
from .protocol import Record, Schema, StoredFile, is_url
from .sqlite_errors import sqlite_errors
from .sqlite_filter import from_bytes, id_text
from .sqlite_readers import open_reader
from .sqlite_rows import attributes_of_more, metadata_of, record_crc
from .sqlite_schema import DATABASE_NAME, connect, mend, select
from .sqlite_store import SqliteStore
from .tag_copy import TAGS_NAME, read_tags

BATCH = 500  # records
MOST_PROBLEMS = 20  # that are told
LONGEST_STEP = 1000  # row numbers that are passed over at once behind a damaged page
MOST_NUMBERS = 50_000_000  # of rows, where the largest cannot be read
BEYOND = (
    f"the index at {{}} cannot be repaired; move its {DATABASE_NAME} away and index again,"
    f" tags come back from {TAGS_NAME}"
)


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    index: str
    images: int  # records that are sound
    problems: tuple[str, ...]
    step: str = ""  # what to do about them; empty: a repair

    @property
    def in_words(self) -> str:
        if not self.problems:
            return f"{quoted(self.index)} is whole: {plural(self.images, 'image')}"
        told = [f"  {printable(problem)}" for problem in self.problems[:MOST_PROBLEMS]]
        more = [f"  and {len(self.problems) - MOST_PROBLEMS} more"] if len(self.problems) > MOST_PROBLEMS else []
        return "\n".join([f"{quoted(self.index)} is damaged:", *told, *more, self.step or mend(quoted(self.index))])


@dataclass(frozen=True)
class Repaired:
    """What a repair kept. `lost` counts records; `kept_as` is the damaged database."""

    index: str
    images: int
    lost: int
    tags: int  # images with tags
    kept_as: str

    @property
    def in_words(self) -> str:
        rest = f"; to embed what was lost: seenit index --index {pasted(self.index)}" if self.lost else ""
        return (
            f"{self.index}: kept {plural(self.images, 'image')}, {self.tags:,} of them tagged, lost {self.lost:,}; the"
            f" damaged database is kept as {self.kept_as}{rest}"
        )


def check_index(location: str | Path, *, progress: bool = False) -> Checked:
    """Read the whole index, or all shards of a folder; SeenitError where there is none."""
    if is_url(location):
        with Index.open(location) as index:
            seen = sum(1 for _ in index.store.scroll(vectors=True))
            problems = () if seen == index.count else (f"{seen:,} records can be read of {index.count:,}",)
        return Checked(str(location), seen, problems)
    if _holds_shards(location):
        from .shard_check import STEP, check_shards

        return Checked(str(location), *check_shards(location, progress=progress), step=STEP)
    folder = Path(location)
    refuse_missing(folder)
    found: list[str] = []
    seen = 0
    try:
        with sqlite_errors("read", folder), closing(open_reader(folder)) as db:
            for (line,) in db.execute("PRAGMA integrity_check"):
                if line != "ok":
                    found.append(str(line))
        with Index.open(folder) as index, progress_bar(index.count, "checking", "records", progress) as bar:
            with index.store.snapshot():  # another process may write meanwhile
                count = index.count
                for name in index.store.blob_names():
                    index.store.read_blob(name)
                for _record in index.store.scroll(vectors=True):
                    seen += 1
                    bar.update()
            if seen != count:
                found.append(f"{seen:,} records can be read of {count:,}")
    except (SeenitError, apsw.Error) as error:
        found.append(str(error))
    try:
        read_tags(folder)
    except (OSError, ValueError) as error:
        found.append(f"{TAGS_NAME}: {first_line(error)}; the next change of a tag writes it again")
    return Checked(str(location), seen, tuple(found))


def _holds_shards(location: str | Path) -> bool:
    """Whether shards are meant; SeenitError for an address of an object store without any."""
    if is_address(location):
        refuse_no_shards(location)
        return True
    return is_shard_folder(location) and not is_index_folder(location)


def repair_index(location: str | Path, *, wait_s: float = WAIT_S, progress: bool = False) -> Repaired:
    """Put a new database of all that is sound in the place of a damaged one, which is kept beside it.

    SeenitError where so little can be read that the index has to be rebuilt; its tags are safe then, too.
    """
    if is_url(location):
        raise SeenitError(f"{location} is a server's; restore one of its snapshots, or index again")
    if _holds_shards(location):
        raise SeenitError(
            f"{location} holds shards, which are not repaired; remove those that seenit check names, and embed again"
        )
    folder = Path(location)
    refuse_missing(folder)
    lock = claim_folder(folder, wait_s)
    unfinished = folder / "repair.part"
    try:
        tags = _tags_of(folder)
        _remove_database(unfinished)
        if os.path.lexists(unfinished):  # somebody else's link would lead our writes elsewhere
            raise StoreError(f"{unfinished} is in the way of a repair; move it away")
        unfinished.mkdir()
        try:
            with closing(_unchecked(folder)) as damaged:
                salvaged = _salvage(damaged, folder, unfinished, tags, progress)
        except apsw.Error as error:
            raise StoreError(f"{first_line(error)}: {BEYOND.format(folder)}") from None
        aside = _free_name(folder / f"{DATABASE_NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        for suffix in ("-wal", "-shm", "-journal", ""):  # a log that stays would be worked into the new database
            if (folder / (DATABASE_NAME + suffix)).exists():
                os.replace(folder / (DATABASE_NAME + suffix), f"{aside}{suffix}")
        os.replace(unfinished / DATABASE_NAME, folder / DATABASE_NAME)
    except OSError as error:
        raise StoreError(f"cannot repair the index at {folder}: {first_line(error)}; check the folder") from None
    finally:
        _remove_database(unfinished)
        lock.release()
    return Repaired(str(location), *salvaged, kept_as=str(aside))


def _salvage(
    damaged: apsw.Connection, folder: Path, unfinished: Path, tags: dict[str, tuple[str, ...]], progress: bool
) -> tuple[int, int, int]:
    """Write all that is sound into a new index; how many records were kept, lost, and tagged."""
    blobs = {
        str(name): bytes(data)
        for name, data, crc in _rows(damaged, "blobs", "name, data, crc")
        if isinstance(data, bytes) and zlib.crc32(data) == crc
    }
    try:
        parse_manifest(blobs[MANIFEST_BLOB], folder)
    except (KeyError, SeenitError):
        raise StoreError(f"its manifest is gone: {BEYOND.format(folder)}") from None
    cameras = {camera: bytes(name) for camera, name in _rows(damaged, "cameras", "camera, name")}
    files: dict[int, list[tuple[int, StoredFile]]] = {}
    for key, number, size, mtime_ns, place in _rows(
        damaged, "files", "key, number, size, mtime_ns, place", numbered=False
    ):
        files.setdefault(number, []).append((place, StoredFile(from_bytes(bytes(key)), size, mtime_ns)))
    tagged: dict[int, set[str]] = {}
    for tag, number in _rows(damaged, "tags", "tag, number", numbered=False):
        tagged.setdefault(number, set()).add(from_bytes(bytes(tag)))
    kept = with_tags = written = 0
    with closing(SqliteStore.open(unfinished, write=True)) as target:
        batch: list[Record] = []
        bar = progress_bar(None, "repairing", "records", progress)
        for row in _rows(damaged, "records", _RECORD):
            bar.update()
            written += 1
            record = _sound_record(damaged, row, cameras)
            if record is None:
                continue
            of_record = tuple(file for _, file in sorted(dict(files.get(row[0], [])).items()))
            words = tagged.get(row[0], set()) | set(tags.get(record.id, ()))
            record = replace(record, files=of_record, tags=tuple(sorted(words)))
            target.ensure(Schema(len(record.global_vector if record.global_vector is not None else ())))
            kept, with_tags = kept + 1, with_tags + bool(words)
            batch.append(record)
            if len(batch) == BATCH:
                target.upsert(batch)
                batch = []
        if batch:
            target.upsert(batch)
        for name, data in blobs.items():
            target.write_blob(name, data)
    counted = next(
        (value for name, value in _rows(damaged, "meta", "name, value", numbered=False) if name == "records"), 0
    )
    return kept, max(int(counted), written) - kept, with_tags


_RECORD = "number, id, whitening, crc, camera, width, height, format, taken_at, latitude, longitude, more"


def _sound_record(db: apsw.Connection, row: tuple[Any, ...], cameras: dict[int, bytes]) -> Record | None:
    """The record of a row with its vector and patches; None where any of them is not what was written."""
    number, id, whitening_id, crc, camera, width, height, format, taken_at, latitude, longitude, more = row
    try:
        vectors = select(db, "SELECT vector FROM vectors WHERE number = ?", (number,)).fetchall()
        packed = select(db, "SELECT patches FROM patches WHERE number = ?", (number,)).fetchall()
        vector, patches = bytes(vectors[0][0]), bytes(packed[0][0]) if packed else None
        record_id = id_text(id)
        if record_crc(record_id, whitening_id, vector, patches) != crc:
            return None
        metadata = metadata_of(width, height, format, taken_at, cameras.get(camera), latitude, longitude, more)
        attributes = attributes_of_more(more)
    except (apsw.Error, IndexError, TypeError, ValueError, OverflowError):
        return None
    values = np.frombuffer(vector, "<f2").astype(np.float32)
    return Record(record_id, (), metadata, whitening_id, global_vector=values, patches=patches, attributes=attributes)


def _rows(db: apsw.Connection, table: str, columns: str, *, numbered: bool = True) -> Iterator[tuple[Any, ...]]:
    """Every row that can be read: with row numbers all but damaged stretches, without them those before the first."""
    if not numbered:
        with suppress(apsw.Error):  # what comes behind the damage is lost, and counted as such
            yield from select(db, f"SELECT {columns} FROM {table}")
        return
    last, step, most = -1, 1, _most_rows(db, table)
    while last < most:
        try:
            for row in select(db, f"SELECT rowid, {columns} FROM {table} WHERE rowid > ? ORDER BY rowid", (last,)):
                last, step = row[0], 1
                yield row[1:]
            return
        except apsw.Error:  # a damaged page: go on behind it, in growing steps
            last += step
            step = min(2 * step, LONGEST_STEP)


def _most_rows(db: apsw.Connection, table: str) -> int:
    """The largest row number, or more where that cannot be read."""
    try:
        return int(select(db, f"SELECT MAX(rowid) FROM {table}").fetchone()[0] or 0)
    except apsw.Error:
        return MOST_NUMBERS


def _unchecked(folder: Path) -> apsw.Connection:
    """The database as it lies, page checksums unchecked: each record's own one decides."""
    db = connect(folder)
    try:
        db.execute("PRAGMA checksum_verification = OFF")
        db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
        return db
    except BaseException:
        db.close()
        raise


def _tags_of(folder: Path) -> dict[str, tuple[str, ...]]:
    try:
        return read_tags(folder)
    except (OSError, ValueError):
        return {}


def _remove_database(folder: Path) -> None:
    """Remove a half-made database of ours, and its folder."""
    if folder.is_symlink() or not folder.is_dir():
        return
    remove_blank(folder, also_tags=True)


def _free_name(path: Path) -> Path:
    """The path, or one with a number where something lies there already."""
    return next(one for n in count() if not os.path.lexists(one := path.with_name(path.name + (f"-{n}" if n else ""))))
