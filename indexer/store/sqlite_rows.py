"""Rows of the tables read as records, each checked against its checksum."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from typing import Any

import apsw
import numpy as np

from ..errors import StoreError
from ..images.metadata import Metadata
from .attributes import Attributes, terms_of
from .protocol import Filter, Listed, Record, StoredFile
from .sqlite_filter import condition, from_bytes, id_bytes, id_text, moment_of
from .sqlite_schema import mend, select


def read_meta(db: apsw.Connection, name: str) -> Any:
    return next((value for (value,) in select(db, "SELECT value FROM meta WHERE name = ?", (name,))), None)


def set_meta(db: apsw.Connection, name: str, value: int) -> None:
    db.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))


def numbers_of(db: apsw.Connection, ids: Iterable[str]) -> dict[str, int]:
    """The numbers of the records that are there, by id."""
    wanted = tuple({id_bytes(id) for id in ids})
    if not wanted:
        return {}
    rows = select(db, "SELECT id, number FROM records WHERE id IN carray(?)", (apsw.carray(wanted),))
    return {id_text(id): number for id, number in rows}


def numbers_where(db: apsw.Connection, where: Filter) -> np.ndarray:
    """The numbers that meet the conditions, ascending.  (A,) int64"""
    clause, values = condition(db, where)
    rows = select(db, f"SELECT number FROM records WHERE {clause} ORDER BY number", values).fetchall()
    return np.fromiter((number for (number,) in rows), np.int64, len(rows))


_COLUMNS = (
    "r.number, r.id, r.whitening, r.crc,"
    " r.width, r.height, r.format, r.taken_at, c.name, r.latitude, r.longitude, r.more"
)


def read_records(db: apsw.Connection, numbers: Sequence[int], vectors: bool, location: str) -> list[Record]:
    """The records with these numbers, in the order asked; StoreError where one is not what was written."""
    if not numbers:
        return []
    wanted = np.array(numbers, np.int64)
    files = files_by_number(db, wanted)
    tags = tags_by_number(db, wanted)
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
                id_text(id),
                files.get(number, ()),
                metadata_of(*of_metadata),
                whitening_id,
                tags.get(number, ()),
                attributes=attributes_of_more(of_metadata[-1]),
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


def read_listed(
    db: apsw.Connection, location: str, check_count: Callable[[apsw.Connection, int], None]
) -> Iterator[Listed]:
    """Every record's id, whitening and files, in the order of writing, which reads the tables from front to back.

    As many as were written, or StoreError."""
    rows = select(
        db,
        "SELECT r.number, r.id, r.whitening, f.place, f.key, f.size, f.mtime_ns"
        " FROM records r LEFT JOIN files f USING (number) ORDER BY r.number",
    )
    seen = 0
    last: tuple[int, bytes, str, list[tuple[int, StoredFile]]] | None = None
    for number, id, whitening_id, place, key, size, mtime_ns in rows:
        if last is None or last[0] != number:
            if last is not None:
                yield _listed(*last)
            seen += 1
            last = (number, id, whitening_id, [])
        if place is not None:
            last[3].append((place, StoredFile(from_bytes(key), size, mtime_ns)))
    if last is not None:
        yield _listed(*last)
    check_count(db, seen)


def _listed(_: int, id: bytes, whitening_id: str, files: list[tuple[int, StoredFile]]) -> Listed:
    if len(files) == 1:
        return Listed(id_text(id), whitening_id, (files[0][1],))
    files.sort(key=itemgetter(0))
    return Listed(id_text(id), whitening_id, tuple(file for _, file in files))


def files_by_number(db: apsw.Connection, numbers: np.ndarray) -> dict[int, tuple[StoredFile, ...]]:
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


def tags_by_number(db: apsw.Connection, numbers: Iterable[int]) -> dict[int, tuple[str, ...]]:
    wanted = np.fromiter(numbers, np.int64)
    if not len(wanted):
        return {}
    rows = select(db, "SELECT number, tag FROM tags WHERE number IN carray(?) ORDER BY tag", (apsw.carray(wanted),))
    tags: dict[int, list[str]] = {}
    for number, tag in rows:
        tags.setdefault(number, []).append(from_bytes(tag))
    return {number: tuple(of_record) for number, of_record in tags.items()}


def read_held_tags(db: apsw.Connection) -> dict[str, tuple[str, ...]]:
    """The tags, ascending, of all records that have any, by id."""
    held: dict[str, list[str]] = {}
    for id, tag in select(db, "SELECT r.id, t.tag FROM tags t JOIN records r USING (number)"):
        held.setdefault(id_text(id), []).append(from_bytes(tag))
    return {id: tuple(sorted(tags)) for id, tags in held.items()}


_ATTRIBUTES, _TERMS = "attributes", "attribute_terms"  # in `more`: what a caller gave, and what a filter compares

_MORE_TYPES: dict[str, type] = {
    "date_source": str,
    "frames": int,
    "raw": bool,
    "note": str,
    "keywords": list,
    "rating": int,
    "title": str,
    "caption": str,
}


def more_of(metadata: Metadata, attributes: Attributes) -> str:
    """The fields of metadata without a column of their own, and the attributes, as JSON; without those that have their
    default."""
    values = asdict(metadata)
    fields = {name: values[name] for name in _MORE_TYPES if values[name] != getattr(Metadata, name)}
    return with_attributes(json.dumps(fields), attributes)


def with_attributes(more: str, attributes: Attributes) -> str:
    """The further fields of a row with these attributes in place of those that it had."""
    fields = {name: value for name, value in json.loads(more).items() if name not in (_ATTRIBUTES, _TERMS)}
    if attributes:
        fields |= {_ATTRIBUTES: dict(attributes), _TERMS: terms_of(attributes)}
    return json.dumps(fields)


def attributes_of_more(more: str) -> Attributes:
    """The attributes among the further fields of a row; ValueError where they are none."""
    if f'"{_ATTRIBUTES}"' not in more:  # most rows have none, and need not be parsed twice
        return {}
    found = json.loads(more).get(_ATTRIBUTES, {})
    if not isinstance(found, dict):
        raise ValueError("its attributes are none")
    return found


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
    if "keywords" in known:
        known["keywords"] = tuple(map(str, known["keywords"]))
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
