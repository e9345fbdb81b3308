"""A record as both engines hold it: a list of numbers, and a payload of plain JSON that the filters read.

Three things are surprising. The packed patch tokens are text, in base64, because a payload knows no bytes. Engines
take only valid UTF-8, but a file's name may be any bytes, which Python shows as lone surrogates; each of those becomes
NUL and its four hex digits, which is reversible because no file's name holds a NUL. And a camera's name is stored a
second time as its words, so that every engine gives the same answer to "all of these words" without a tokenizer of
its own.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ..errors import StoreError
from ..images.metadata import Metadata
from .attributes import Attributes, terms_of
from .protocol import Listed, Record, Schema, StoredFile, folder_keys

# Payload fields that filters read, and the kind of index that answers them.
INDEXED_FIELDS = {
    "folders": "keyword",
    "taken_at": "datetime",
    "date_source": "keyword",
    "camera_words": "keyword",
    "location": "geo",
    "tags": "keyword",
    "keyword_words": "keyword",
    "rating": "integer",
    "attribute_terms": "keyword",
    "whitening_id": "keyword",
}

HALF_EQUATOR_M = 20_040_000.0  # no two places are farther apart

METRES_PER_DEGREE = 111_195.0  # of latitude, on the sphere that engines reckon with

LISTED_FIELDS = ["files", "whitening_id"]  # what `listed_from` needs
PATCHES_FIELD = "patches"  # most of a payload's bytes, so read only where it is asked for
ATTRIBUTES_FIELD = "attributes"
_FOREIGN = "record {id} in {location} is not one that seenit wrote; remove it, or index into a new place"
_SURROGATE = re.compile("[\ud800-\udfff]")
_WRITTEN_SURROGATE = re.compile("\x00(d[89a-f][0-9a-f]{2})")


def to_engine(text: str) -> str:
    """The same text without lone surrogates; `from_engine` gives them back."""
    return text if text.isascii() else _SURROGATE.sub(lambda found: f"\x00{ord(found[0]):04x}", text)


def from_engine(text: str) -> str:
    return _WRITTEN_SURROGATE.sub(lambda found: chr(int(found[1], 16)), text) if "\x00" in text else text


def camera_words(camera: str) -> list[str]:
    """The distinct words of a camera's name, case ignored."""
    return sorted(set(re.findall(r"\w+", to_engine(camera).casefold())))


def as_rfc3339(moment: datetime) -> str:
    """UTC; a moment without a zone is taken as UTC, one that UTC has no year for as the first or the last there is."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC).isoformat()
    except OverflowError:  # 0001-01-01T00:00+09:00 is in the year 0
        return (datetime.min if moment.year == 1 else datetime.max).replace(tzinfo=UTC).isoformat()


def geo_circle(latitude: float, longitude: float, radius_km: float) -> tuple[float, float, float]:
    """Latitude and longitude in degrees, within the ranges that engines insist on, and the radius in metres.

    Engines leave the border out, and gRPC carries the radius in float32. A millimetre and a ten-millionth more keep the
    border in, so that a radius of 0 means the place itself.
    """
    if abs(longitude) > 180:
        longitude = (longitude + 180) % 360 - 180
    radius_m = min(1000 * radius_km, HALF_EQUATOR_M)  # infinity is no JSON
    return latitude, longitude, radius_m + 1e-7 * abs(radius_m) + 1e-3


def reaches_a_pole(latitude: float, radius_m: float) -> bool:
    """Whether a circle holds a pole, or nearly; with a margin of a tenth of a degree.

    The engine's index of places covers such a circle by the cells at the 180th meridian alone and loses all others.
    Asked for what is not outside of the circle, the engine compares with every record and loses none.
    """
    return abs(latitude) + radius_m / METRES_PER_DEGREE > 89.9


def files_payload(files: Iterable[StoredFile]) -> dict[str, Any]:
    """The part of the payload that a rename changes."""
    files = tuple(files)
    return {
        "files": [{"key": to_engine(file.key), "size": file.size, "mtime_ns": file.mtime_ns} for file in files],
        "folders": sorted({to_engine(folder) for file in files for folder in folder_keys(file.key)}),
    }


def tags_payload(tags: Iterable[str]) -> dict[str, Any]:
    return {"tags": [to_engine(tag) for tag in tags]}


def attributes_payload(attributes: Attributes) -> dict[str, Any]:
    """As JSON in ASCII, which takes any text and any depth, and as what the filter reads."""
    if not attributes:
        return {ATTRIBUTES_FIELD: None, "attribute_terms": None}
    return {ATTRIBUTES_FIELD: json.dumps(dict(attributes)), "attribute_terms": terms_of(attributes)}


def record_payload(record: Record) -> dict[str, Any]:
    """Everything of a record but its id and its vector; what is not known is left out."""
    metadata = record.metadata
    payload: dict[str, Any] = {
        **files_payload(record.files),
        **tags_payload(record.tags),
        "whitening_id": record.whitening_id,
        "width": metadata.width,
        "height": metadata.height,
        "format": metadata.format,
    }
    if metadata.taken_at is not None:
        payload["taken_at"] = as_rfc3339(metadata.taken_at)
    if metadata.camera is not None:
        payload["camera"] = to_engine(metadata.camera)
        payload["camera_words"] = camera_words(metadata.camera)
    if metadata.gps is not None and abs(metadata.gps[0]) <= 90 and abs(metadata.gps[1]) <= 180:
        payload["location"] = {"lat": metadata.gps[0], "lon": metadata.gps[1]}
    if metadata.date_source is not None:
        payload["date_source"] = metadata.date_source
    if metadata.frames != 1:
        payload["frames"] = metadata.frames
    if metadata.raw:
        payload["raw"] = True
    if metadata.note is not None:
        payload["note"] = to_engine(metadata.note)
    if metadata.keywords:
        payload["keywords"] = [to_engine(keyword) for keyword in metadata.keywords]
        payload["keyword_words"] = [to_engine(keyword.casefold()) for keyword in metadata.keywords]
    if metadata.rating is not None:
        payload["rating"] = metadata.rating
    for name in ("title", "caption"):
        if (text := getattr(metadata, name)) is not None:
            payload[name] = to_engine(text)
    if record.attributes:
        payload |= attributes_payload(record.attributes)
    if record.patches is not None:
        payload[PATCHES_FIELD] = base64.b64encode(record.patches).decode()
    return payload


def checked_vectors(record: Record, schema: Schema) -> dict[str, Any]:
    """`checked_vector` as a list of Python floats by name, as a server takes it."""
    return {"global": checked_vector(record, schema).astype(np.float32).tolist()}


def checked_vector(record: Record, schema: Schema) -> np.ndarray:
    """The record's vector as it is stored: (G,) little-endian float16, L2-normalised; StoreError if it does not fit."""
    vector = record.global_vector
    if vector is None:
        raise StoreError(f"record {record.id} has no vector `global`; a record is written with its vector")
    if vector.shape != (schema.global_dim,):
        raise StoreError(
            f"record {record.id} has a vector `global` of shape {vector.shape}, the index holds {schema.global_dim} "
            "dimensions; index into a new place with this backbone"
        )
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm):
        raise StoreError(f"record {record.id} has a vector `global` with NaN or infinity; skip this image")
    return (vector / (norm or 1.0)).astype("<f2")


def batches(records: Sequence[Record], max_bytes: int) -> Iterator[list[Record]]:
    """The records in order, cut so that no batch weighs more than that (but holds at least one record)."""
    batch: list[Record] = []
    held = 0
    for record in records:
        if batch and held + num_bytes(record) > max_bytes:
            yield batch
            batch, held = [], 0
        batch.append(record)
        held += num_bytes(record)
    if batch:
        yield batch


def num_bytes(record: Record) -> int:
    """What a record weighs: its vector in float32, its patches in base64, and 1,000 for all else."""
    vector, patches = record.global_vector, record.patches
    return 1000 + (0 if vector is None else 4 * vector.size) + (0 if patches is None else 4 * len(patches) // 3)


def record_from(id: str, payload: Mapping[str, Any] | None, vectors: Any, location: str) -> Record:
    """The record of one point; `location` is for the message when the payload is not one of ours.

    vectors   None, or a mapping from vector name to its numbers
    """
    try:
        return _record_from(id, payload or {}, vectors)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StoreError(_FOREIGN.format(id=id, location=location)) from None


def listed_from(id: str, payload: Mapping[str, Any] | None, location: str) -> Listed:
    """`record_from` for a payload of LISTED_FIELDS."""
    try:
        payload = payload or {}
        return Listed(id, payload["whitening_id"], _files_from(payload))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StoreError(_FOREIGN.format(id=id, location=location)) from None


def patches_from(id: str, payload: Mapping[str, Any] | None, location: str) -> bytes | None:
    """`record_from` for a payload of PATCHES_FIELD alone: the packed tokens, None where the record has none."""
    try:
        return _patches_from(payload or {})
    except (TypeError, ValueError):
        raise StoreError(_FOREIGN.format(id=id, location=location)) from None


def attributes_from(id: str, payload: Mapping[str, Any] | None, location: str) -> Attributes:
    """`record_from` for a payload of ATTRIBUTES_FIELD alone; empty where the record has none."""
    try:
        return _attributes_from(payload or {})
    except (TypeError, ValueError):
        raise StoreError(_FOREIGN.format(id=id, location=location)) from None


def _patches_from(payload: Mapping[str, Any]) -> bytes | None:
    text = payload.get(PATCHES_FIELD)
    return None if text is None else base64.b64decode(text, validate=True)


def _attributes_from(payload: Mapping[str, Any]) -> Attributes:
    text = payload.get(ATTRIBUTES_FIELD)
    values = {} if text is None else json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("attributes are a JSON object")
    return values


def _files_from(payload: Mapping[str, Any]) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(from_engine(file["key"]), int(file["size"]), int(file["mtime_ns"])) for file in payload["files"]
    )


def _record_from(id: str, payload: Mapping[str, Any], vectors: Any) -> Record:
    taken_at, location = payload.get("taken_at"), payload.get("location")
    camera, note = payload.get("camera"), payload.get("note")
    rating, title, caption = payload.get("rating"), payload.get("title"), payload.get("caption")
    global_vector = vectors.get("global") if vectors else None
    return Record(
        id=id,
        files=_files_from(payload),
        metadata=Metadata(
            width=int(payload["width"]),
            height=int(payload["height"]),
            format=payload["format"],
            taken_at=None if taken_at is None else datetime.fromisoformat(taken_at),
            camera=None if camera is None else from_engine(camera),
            gps=None if location is None else (location["lat"], location["lon"]),
            date_source=payload.get("date_source"),
            frames=int(payload.get("frames", 1)),
            raw=bool(payload.get("raw", False)),
            note=None if note is None else from_engine(note),
            keywords=tuple(from_engine(keyword) for keyword in payload.get("keywords", ())),
            rating=None if rating is None else int(rating),
            title=None if title is None else from_engine(title),
            caption=None if caption is None else from_engine(caption),
        ),
        whitening_id=payload["whitening_id"],
        tags=tuple(from_engine(tag) for tag in payload["tags"]),
        global_vector=None if global_vector is None else np.asarray(global_vector, np.float32),  # (G,)
        patches=_patches_from(payload),
        attributes=_attributes_from(payload),
    )
