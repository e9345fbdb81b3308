"""Vectors as shards in a folder or an object store: what embedding writes where the index is made later or elsewhere.

    PLACE/shards.json       what this is: format, length of the vectors, whether patches are kept
    PLACE/000017.parquet    some thousand records, see `shard_file`
    PLACE/blobs/NAME        the blobs of an index, among them the manifest and the statistics
    PLACE/lock, lock.json   locked while a process writes; in an object store PLACE/locks/NUMBER.json

It fulfils the protocol of a store as far as bringing it in line with its sources, copying it into an index and curating
it need; it is not searched, and knows no filters. What is surprising: a shard is written when it is full, so a process
that is killed loses what it had not written yet, a shard at most. The next run finds that it is missing. A record that
is written anew goes into a new shard; of rows with the same id that in the later shard counts, and `close` rewrites the
shards in which a row no longer does. A place is listed once, when it is opened.

The actors of a cluster write shards of their own, by numbers that the writer gives them (`give_number`). These are
noted in `shards.json` first: an actor that outlives its killed driver for a moment overwrites nothing of the next one.
"""

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import SeenitError, StoreError, UnusableError
from ..printable import pasted, printable
from .attributes import Attributes
from .index_folder import MARKER
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
from .shard_file import MAX_DIM, arrow, read_ids, read_listed, read_records, write_shard
from .shard_place import PlacedFile, PlaceLock, ShardPlace, place_at

FORMAT = 1
READERS = 16  # shards whose ids are read at a time; not tuned
GIVEN_AT_ONCE = 1000  # numbers that are noted together
SHARD_RECORDS = 2048  # some 9 MB with patches of the usual size; so much is lost at most. Not tuned
MAX_BLOB = 1 << 30
_BLOBS = "blobs"
_SHARD = re.compile(r"(\d{6}|[1-9]\d{6,8})\.parquet")
_BLOB_NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9]+)+")
_OURS = {MARKER, _BLOBS, "lock", "lock.json", "locks"}
_MAX_MARKER = 10_000  # bytes
MAX_NUMBER = 999_999_999
_STEP = "make an index of them with: seenit copy {} INDEX"


def make_shard_place(location: str | Path, *, patches: bool = True) -> None:
    """Make a folder or an address a place for shards unless it is one; SeenitError where it holds anything else.

    patches  False: records are kept without them, for curation, at about a third of the size
    """
    arrow()
    place = place_at(location)
    if place.is_there(MARKER):
        if _read_marker(place).patches != patches:
            kept = "without" if patches else "with"
            raise SeenitError(f"the shards in {_named(place)} were made {kept} patches; name another one with --shards")
        return
    place.make()
    if any(name not in _OURS and not name.endswith(".part") for name in place.names()):
        raise SeenitError(f"{_named(place)} holds other files; name a new or empty one with --shards")
    _write_marker(place, Marker(None, patches))


def are_shards(location: str | Path) -> bool:
    """Whether vectors lie in a folder, or below an address, as shards; StoreError where that cannot be told."""
    return place_at(location).is_there(MARKER)


def shard_numbers(place: ShardPlace) -> dict[int, int]:
    """The bytes of each shard by its number, in order."""
    found = {int(name[1]): size for one, size in place.sizes().items() if (name := _SHARD.fullmatch(one))}
    return dict(sorted(found.items()))


def shard_at(place: ShardPlace, number: int) -> PlacedFile:
    return PlacedFile(place, f"{number:06d}.parquet")


def shard_schema(place: ShardPlace) -> Schema | None:
    """What vectors the shards of a place hold; None before the first one. UnusableError where its marker is none."""
    return _read_marker(place).schema


def remove_empty(location: str | Path) -> None:
    """Remove a place for shards that holds none, and no statistics."""
    place = place_at(location)
    if not {*place.names(), *place.sizes(_BLOBS)} - _OURS:
        place.delete(MARKER)
        place.discard()


class ShardStore:
    """See the module; use `open`."""

    def __init__(self, place: ShardPlace, lock: PlaceLock | None) -> None:
        self.location = place.location
        self._place, self._lock = place, lock
        marker = _read_marker(place)
        self._schema, self.has_patches, self._noted = marker.schema, marker.patches, marker.next
        self._numbers = set(shard_numbers(place))  # of shards
        self._waiting: dict[str, Record] = {}  # to be written
        self._shard_of: dict[str, int] = {}  # of each id that was written, the shard whose row counts
        self._outdated = set[int]()  # shards with rows that no longer count
        self._revision: object = None
        self._read_ids()
        self._next = max(max(self._numbers, default=-1) + 1, self._noted)  # number of a shard

    @classmethod
    def open(cls, location: str | Path, *, write: bool = False, wait_s: float = 10.0) -> "ShardStore":
        """Open the shards in a place that `make_shard_place` made; StoreError and kin as for an index."""
        place = place_at(location)
        if not write:
            return cls(place, None)
        lock = place.lock(wait_s)
        try:
            return cls(place, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        try:
            if self._lock is not None:
                self._flush()
                self._drop_outdated()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def snapshot(self) -> AbstractContextManager[None]:
        return nullcontext()

    # Blobs

    def read_blob(self, name: str) -> bytes | None:
        return self._place.read(_blob(name), MAX_BLOB)

    def write_blob(self, name: str, data: bytes) -> None:
        self._writer().check()
        self._place.put(_blob(name), data)
        self._revision = secrets.token_hex(8)

    def delete_blob(self, name: str) -> None:
        self._writer().check()
        self._place.delete(_blob(name))

    def blob_names(self) -> list[str]:
        return sorted(name for name in self._place.sizes(_BLOBS) if _BLOB_NAME.fullmatch(name))

    def revision(self) -> object:
        return self._revision

    # Records

    def schema(self) -> Schema | None:
        return self._schema

    def ensure(self, schema: Schema) -> None:
        if self._schema is None:
            self._writer().check()
            self._schema = schema
            self._note()
        elif self._schema != schema:
            raise StoreError(
                f"the shards in {_named(self._place)} hold vectors of {self._schema}, not of {schema}; name another one"
            )

    def upsert(self, records: Sequence[Record]) -> None:
        self._waiting.update((record.id, record) for record in records)
        if len(self._waiting) >= SHARD_RECORDS:
            self._flush()
        self._revision = secrets.token_hex(8)

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        self._change(files, lambda record: replace(record, files=files[record.id]))

    def set_dates(self, dates: dict[str, tuple[datetime | None, str | None]]) -> None:
        def dated(record: Record) -> Record:
            taken_at, source = dates[record.id]
            return replace(record, metadata=replace(record.metadata, taken_at=taken_at, date_source=source))

        self._change(dates, dated)

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        self._change(tags, lambda record: replace(record, tags=tags[record.id]))

    def set_attributes(self, attributes: dict[str, Attributes]) -> None:
        self._change(attributes, lambda record: replace(record, attributes=attributes[record.id]))

    def attributes_of(self, ids: Sequence[str]) -> dict[str, Attributes]:
        return {record.id: record.attributes for record in self.retrieve(ids) if record.attributes}

    def tags_of(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        return {record.id: record.tags for record in self.retrieve(ids)}

    def remembered_tags(self) -> dict[str, tuple[str, ...]]:
        return {}

    def delete(self, ids: Sequence[str]) -> None:
        self._change(dict.fromkeys(ids), lambda record: None)

    def scroll(self, where: Filter = Filter(), *, vectors: bool = False, batch: int = 2000) -> Iterator[Record]:
        """Shard by shard, and not in the order of ids, for which all shards would be read for each page."""
        meets = self._condition(where)
        for number in sorted(self._numbers):
            for record in self._records(number, vectors):
                if meets(record):
                    yield record
        yield from list(filter(meets, self._waiting.values()))

    def list_files(self) -> Iterator[Listed]:
        for number in sorted(self._numbers):
            for listed in read_listed(self._at(number), self._dims()):
                if self._counts(listed.id, number):
                    yield listed
        for record in list(self._waiting.values()):
            yield Listed(record.id, record.whitening_id, record.files)

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        found = {id: self._waiting[id] for id in ids if id in self._waiting}
        wanted = {id for id in ids if id not in found}
        for number in sorted({self._shard_of[id] for id in wanted if id in self._shard_of}):
            found |= {record.id: record for record in self._records(number, vectors) if record.id in wanted}
        return [found[id] for id in ids if id in found]

    def search(
        self, queries: np.ndarray, top: int, where: Filter = Filter(), *, exact: bool = False
    ) -> list[list[Hit]]:
        self._refuse("are not searched")

    def patches(self, ids: Sequence[str]) -> dict[str, bytes]:
        return {record.id: record.patches for record in self.retrieve(ids, vectors=True) if record.patches is not None}

    def features(self, ids: Sequence[str]) -> dict[str, StoredFeatures]:
        self._refuse("are not searched")

    def count(self, where: Filter = Filter()) -> int:
        if where:
            return sum(1 for _ in self.scroll(where))
        return len(self._shard_of.keys() | self._waiting.keys())

    def optimize(self, *, progress: BuildProgress = no_progress, stop: Callable[[], bool] = never) -> None:
        """Nothing is linked; what is not written yet is."""
        self._flush()

    def size(self) -> StoreSize:
        shards = sum(shard_numbers(self._place).values())
        return StoreSize({"shards": shards} if shards else {})

    # What the actors of a cluster write

    def give_number(self) -> int:
        """A number for a shard that somebody else writes; nobody is given it again, also after a kill."""
        if self._next >= self._noted:
            self._writer().check()
            self._noted = self._next + GIVEN_AT_ONCE
            self._note()
        self._next += 1
        return self._next - 1

    def took(self, number: int, ids: Iterable[str]) -> None:
        """Somebody else wrote records with these ids into a shard; in the place of others with the same ids."""
        self._numbers.add(number)
        for id in ids:
            self._counts_in(id, number)
        self._revision = secrets.token_hex(8)

    def moved(self, numbers: Iterable[int], into: int) -> None:
        """Somebody else wrote all records of shards into another one, and deleted these; each of their rows counts."""
        gone = set(numbers)
        assert not gone & self._outdated, "a row that no longer counts would count again"
        self._shard_of.update({id: into for id, number in self._shard_of.items() if number in gone})
        self._numbers = (self._numbers - gone) | {into}

    def small_shards(self) -> dict[int, int]:
        """Shards that are less than half full and of which each row counts: how many rows they have, by number."""
        rows = Counter(self._shard_of.values())
        return {n: count for n, count in rows.items() if count < SHARD_RECORDS // 2 and n not in self._outdated}

    # Within

    def _note(self) -> None:
        dim = None if self._schema is None else self._schema.global_dim
        _write_marker(self._place, Marker(dim, self.has_patches, self._noted))

    def _counts_in(self, id: str, number: int) -> None:
        """The row of an id that counts is that of this shard from now on."""
        if (before := self._shard_of.get(id)) not in (None, number):
            self._outdated.add(before)
        self._shard_of[id] = number

    def _condition(self, where: Filter) -> Callable[[Record], bool]:
        if where != Filter(not_whitening_id=where.not_whitening_id):
            self._refuse("know no filters")
        return lambda record: where.not_whitening_id is None or record.whitening_id != where.not_whitening_id

    def _refuse(self, what: str) -> NoReturn:
        raise StoreError(f"the shards in {_named(self._place)} {what}; {_STEP.format(pasted(self.location))}")

    def _records(self, number: int, vectors: bool) -> Iterator[Record]:
        for record in read_records(self._at(number), self._dims(), vectors=vectors):
            if self._counts(record.id, number):
                yield record

    def _counts(self, id: str, number: int) -> bool:
        return self._shard_of.get(id) == number and id not in self._waiting

    def _flush(self) -> None:
        """Write what waits as new shards."""
        while self._waiting:
            some = dict(islice(self._waiting.items(), SHARD_RECORDS))
            self._write(self._next, list(some.values()))
            for id in some:
                self._counts_in(id, self._next)
                del self._waiting[id]
            self._next += 1

    def _drop_outdated(self) -> None:
        for number in sorted(self._outdated):
            self._write(number, list(self._records(number, True)))
        self._outdated = set()

    def _change(self, wanted: Mapping[str, object], change: Callable[[Record], Record | None]) -> None:
        """Rewrite the shards that hold records with the ids of `wanted`; None removes one."""
        self._flush()
        self._drop_outdated()
        for number in sorted({self._shard_of[id] for id in wanted if id in self._shard_of}):
            records = list(self._records(number, True))
            kept = [change(record) if record.id in wanted else record for record in records]
            self._write(number, [record for record in kept if record is not None])
            for record, changed in zip(records, kept, strict=True):
                if changed is None:
                    del self._shard_of[record.id]
        self._revision = secrets.token_hex(8)

    def _write(self, number: int, records: Sequence[Record]) -> None:
        self._writer().check()
        if records:
            write_shard(self._at(number), records, self._dims(), patches=self.has_patches)
            self._numbers.add(number)
        else:
            self._place.delete(self._at(number).name)
            self._numbers.discard(number)

    def _read_ids(self) -> None:
        numbers = sorted(self._numbers)
        with ThreadPoolExecutor(READERS) as readers:  # an object store answers many questions in the time of one
            for start in range(0, len(numbers), READERS):
                some = numbers[start : start + READERS]
                for number, ids in zip(some, readers.map(self._ids_in, some), strict=True):
                    for id in ids:
                        self._counts_in(id, number)

    def _ids_in(self, number: int) -> list[str]:
        return read_ids(self._at(number), self._dims())

    def _dims(self) -> Schema:
        if self._schema is None:
            raise UnusableError(f"{PlacedFile(self._place, MARKER)} does not tell the vectors' length; embed again")
        return self._schema

    def _at(self, number: int) -> PlacedFile:
        return shard_at(self._place, number)

    def _writer(self) -> PlaceLock:
        assert self._lock is not None, "opened for reading only"
        return self._lock


def _blob(name: str) -> str:
    assert _BLOB_NAME.fullmatch(name), name
    return f"{_BLOBS}/{name}"


def _named(place: ShardPlace) -> str:
    return printable(place.location)


@dataclass(frozen=True)
class Marker:
    """What shards are.

    dim      length of the vectors; None before the first record
    patches  whether they are kept
    next     from which number on none was given to an actor of a cluster
    """

    dim: int | None
    patches: bool
    next: int = 0

    @property
    def schema(self) -> Schema | None:
        return None if self.dim is None else Schema(self.dim)


def _read_marker(place: ShardPlace) -> Marker:
    path = PlacedFile(place, MARKER)
    try:
        data = place.read(MARKER, _MAX_MARKER)
        values = json.loads(data or b"")
        format, dim, patches, number = values["format"], values["dim"], values["patches"], values.get("next", 0)
        if type(format) is not int or type(patches) is not bool or type(number) is not int:
            raise ValueError("other types")
        if not 0 <= number <= MAX_NUMBER - GIVEN_AT_ONCE:
            raise ValueError("no number of a shard")
        if dim is not None and not (type(dim) is int and 0 < dim <= MAX_DIM):
            raise ValueError("no length of vectors")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnusableError(f"{path} is not what seenit wrote; embed into another place") from None
    if format != FORMAT:
        raise UnusableError(
            f"the shards in {_named(place)} have format {format}, this seenit reads {FORMAT}; update seenit"
        )
    return Marker(dim, patches, number)


def _write_marker(place: ShardPlace, marker: Marker) -> None:
    values = {"format": FORMAT, "dim": marker.dim, "patches": marker.patches}
    place.put(MARKER, json.dumps(values | ({"next": marker.next} if marker.next else {})).encode())
