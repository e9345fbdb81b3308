"""Conditions on records as SQL: which numbers meet them, answered before any vector is compared.

A list of folders, tags, cameras or ids is one value, JSON with bytes in hexadecimal: SQLite bounds both the depth of an
expression and the number of values, and a filter may name thousands of folders.
"""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import apsw

from ..images.metadata import REAL_DATES
from .attributes import conditions_of, term
from .payload import camera_words
from .protocol import Filter
from .sqlite_schema import select

EARTH_RADIUS_KM = 6371.0088  # the mean radius; what Qdrant takes
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_bytes(text: str) -> bytes:
    """Text as it is stored where it need not be valid: file names, tags, cameras."""
    return text.encode("utf-8", "surrogatepass")


def from_bytes(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def microseconds(moment: datetime) -> int:
    """Since 1970; a moment without a zone is taken as UTC."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment_of(count: int) -> datetime:
    return EPOCH + timedelta(microseconds=count)


def folder_range(folder_key: str) -> tuple[bytes, bytes]:
    """The range of file keys that lie under a folder key: `/` is followed by `0` in the order of bytes."""
    return to_bytes(folder_key + "/"), to_bytes(folder_key + "0")


def add_functions(db: apsw.Connection) -> None:
    """What the conditions below need beyond SQL."""
    function: Any = distance_km
    db.create_scalar_function("distance_km", function, 4, deterministic=True)
    function = str.casefold
    db.create_scalar_function("casefold", function, 1, deterministic=True)


def distance_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Along the great circle, by the haversine formula; degrees in."""
    north, south = math.radians(latitude), math.radians(other_latitude)
    half_way = math.sin((south - north) / 2) ** 2
    half_round = math.sin(math.radians(other_longitude - longitude) / 2) ** 2
    share = half_way + math.cos(north) * math.cos(south) * half_round
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(share)))


def condition(db: apsw.Connection, where: Filter) -> tuple[str, list[object]]:
    """The WHERE clause on `records` and its values; `1` where every record is meant.

    db  for the cameras' names, which are few and compared word by word
    """
    parts: list[str] = []
    values: list[object] = []

    def add(part: str, *new: object) -> None:
        parts.append(part)
        values.extend(new)

    if where.under:
        ranges = [[bound.hex() for bound in folder_range(folder)] for folder in where.under]
        files = "json_each(?) AS folder CROSS JOIN files ON files.key >= unhex(folder.value ->> 0)"
        add(f"number IN (SELECT number FROM {files} AND files.key < unhex(folder.value ->> 1))", json.dumps(ranges))
    if where.after is not None:
        add("taken_at >= ?", microseconds(where.after))
    if where.before is not None:
        add("taken_at < ?", microseconds(where.before))
    if where.has_dates and not where.file_dates:
        add("more ->> 'date_source' IN (SELECT value FROM json_each(?))", json.dumps(REAL_DATES))
    if words := set(camera_words(where.camera or "")):
        cameras = [
            camera
            for camera, name in select(db, "SELECT camera, name FROM cameras")
            if words <= set(camera_words(from_bytes(name)))
        ]
        add("camera IN (SELECT value FROM json_each(?))", json.dumps(cameras))
    if where.near is not None:
        latitude, longitude, radius_km = where.near
        degrees = math.degrees(radius_km / EARTH_RADIUS_KM) * 1.0001 + 1e-9  # a little more than the circle's height
        add("latitude BETWEEN ? AND ?", latitude - degrees, latitude + degrees)
        add("distance_km(latitude, longitude, ?, ?) <= ?", latitude, longitude, radius_km)
    if tags := sorted({to_bytes(tag).hex() for tag in where.tags}):
        with_one = "SELECT number FROM tags WHERE tag IN (SELECT unhex(value) FROM json_each(?))"
        add(f"number IN ({with_one} GROUP BY number HAVING count(*) = ?)", json.dumps(tags), len(tags))
    if keywords := sorted({keyword.casefold() for keyword in where.keywords}):
        of_image = "SELECT DISTINCT casefold(value) AS word FROM json_each(more, '$.keywords')"
        wanted = "word IN (SELECT value FROM json_each(?))"
        add(f"(SELECT count(*) FROM ({of_image}) WHERE {wanted}) = ?", json.dumps(keywords), len(keywords))
    if terms := sorted({term(name, value) for name, value in conditions_of(where.attributes)}):
        of_record = "SELECT count(DISTINCT value) FROM json_each(more, '$.attribute_terms')"
        add(f"({of_record} WHERE value IN (SELECT value FROM json_each(?))) = ?", json.dumps(terms), len(terms))
    if where.rating is not None:
        add("more ->> 'rating' >= ?", where.rating)
    if where.not_whitening_id is not None:
        add(
            "(whitening < ? OR whitening > ?)", where.not_whitening_id, where.not_whitening_id
        )  # two ranges of the index; <> has none
    if where.not_ids:
        ids = json.dumps([id_bytes(id).hex() for id in where.not_ids])
        add("id NOT IN (SELECT unhex(value) FROM json_each(?))", ids)
    return " AND ".join(parts) or "1", values


def id_bytes(id: str) -> bytes:
    """A content id as it is stored; what is no UUID is no record's."""
    try:
        return bytes.fromhex(id.replace("-", ""))
    except ValueError:
        return b""


def id_text(id: bytes) -> str:
    """The other way; ValueError where these are no 16 bytes."""
    digits = id.hex()
    if len(digits) != 32:
        raise ValueError(f"{digits} is no content id")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
