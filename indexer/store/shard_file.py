"""One shard: a Parquet file of some thousand records with their vectors, readable by whatever reads Parquet.

A shard that somebody else made is hostile input. So it is neither compressed nor written with dictionaries, of which a
few bytes could stand for gigabytes, and one that is, or whose declared sizes are over the bounds, is refused before its
pages are read. Columns are compared by name and type; every vector has to be finite and of length 1.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import SeenitError, UnusableError, first_line
from ..images.metadata import ID_PATTERN
from .payload import PATCHES_FIELD, checked_vector, from_engine, record_from, record_payload, to_engine
from .protocol import Listed, Record, Schema, StoredFile
from .shard_place import PlacedFile

MAX_ROWS = 65_536
MAX_BYTES = 4 << 30  # of a file, and of what it declares its columns to hold
MAX_PATCHES = 4 << 20  # bytes of one record's
MAX_DIM = 1 << 16
ROWS_AT_ONCE = 512  # made into records; also of the arrays that are in memory
LENGTH_SLACK = 0.01  # by which a vector's length may differ from 1; float16 takes 0.001
_ID = re.compile(ID_PATTERN)
_ASIDE = ("files", "folders", "whitening_id", PATCHES_FIELD)  # of a payload what columns of their own hold, or follows


def arrow() -> Any:
    """pyarrow with its Parquet part; SeenitError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SeenitError("shards of vectors need pyarrow; install it with: pip install pyarrow") from None
    return pyarrow


def columns(dim: int) -> Any:
    """The schema of a shard: what each column is called and holds."""
    pa = arrow()
    file = pa.struct([("key", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
    return pa.schema(
        [
            ("id", pa.string()),  # content id
            (
                "files",
                pa.list_(file),
            ),  # keys as in an index, see `keys`; what is no UTF-8 as `payload.to_engine` has it
            ("whitening", pa.string()),  # id of the statistics that made the vector
            ("vector", pa.list_(pa.float16(), dim)),  # L2-normalised
            ("patches", pa.binary()),  # packed patch tokens, or null
            ("about", pa.string()),  # JSON: size, format, date, camera, place, tags, attributes, ...
        ]
    )


def write_shard(at: PlacedFile, records: Sequence[Record], schema: Schema, *, patches: bool = True) -> None:
    """Write records whole or not at all, in the place of what is there; StoreError where the place does not take them.

    patches  False: without them
    """
    pa = arrow()
    vectors = np.stack([checked_vector(record, schema) for record in records])  # (N, G) float16
    rows: dict[str, Any] = {
        "id": [record.id for record in records],
        "files": [
            [{"key": to_engine(file.key), "size": file.size, "mtime_ns": file.mtime_ns} for file in record.files]
            for record in records
        ],
        "whitening": [record.whitening_id for record in records],
        "patches": [record.patches if patches else None for record in records],
        "about": [_about(record) for record in records],
    }
    wanted = columns(schema.global_dim)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), schema.global_dim)
        if field.name == "vector"
        else pa.array(rows[field.name], field.type)
        for field in wanted
    ]
    table = pa.Table.from_arrays(arrays, schema=wanted)
    encoded = pa.BufferOutputStream()
    pa.parquet.write_table(table, encoded, compression="none", use_dictionary=False, write_page_checksum=True)
    at.place.put(at.name, encoded.getvalue().to_pybytes())


def read_ids(at: PlacedFile, schema: Schema) -> list[str]:
    """The content ids of a shard, in its order."""
    with _opened(at, schema) as file:
        found = [id for batch in file.iter_batches(MAX_ROWS, columns=["id"]) for id in batch.column(0).to_pylist()]
    if not all(isinstance(id, str) and _ID.match(id) for id in found):
        raise _damaged(at, "a content id is none")
    return found


def read_listed(at: PlacedFile, schema: Schema) -> list[Listed]:
    """Ids, whitenings and files of a shard, in its order."""
    with _opened(at, schema) as file:
        rows = [
            row
            for batch in file.iter_batches(MAX_ROWS, columns=["id", "whitening", "files"])
            for row in batch.to_pylist()
        ]
        return [Listed(_id_of(row), _text(row["whitening"]), _files_of(row)) for row in rows]


def read_records(at: PlacedFile, schema: Schema, *, vectors: bool) -> Iterator[Record]:
    """The records of a shard in its order; without `vectors` neither these nor patches are read."""
    names = ["id", "files", "whitening", "about", *(["vector", "patches"] if vectors else [])]
    with _opened(at, schema) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
            rows = batch.select(names[:4]).to_pylist()
            found: Sequence[np.ndarray | None] = [None] * len(rows)
            packed: Sequence[bytes | None] = [None] * len(rows)
            if vectors:
                found = _vectors_of(batch.column("vector"), schema)
                packed = batch.column("patches").to_pylist()
            for row, vector, patches in zip(rows, found, packed, strict=True):
                yield _record_of(row, vector, patches, at)


def _record_of(row: dict[str, Any], vector: np.ndarray | None, patches: bytes | None, at: PlacedFile) -> Record:
    if patches is not None and len(patches) > MAX_PATCHES:
        raise ValueError(f"a record's patches take {len(patches):,} bytes")
    about = json.loads(row["about"])
    files = [{"key": to_engine(file.key), "size": file.size, "mtime_ns": file.mtime_ns} for file in _files_of(row)]
    payload = {**about, "files": files, "whitening_id": _text(row["whitening"])}
    payload.pop(PATCHES_FIELD, None)
    record = record_from(_id_of(row), payload, None if vector is None else {"global": vector}, str(at))
    return record if patches is None else replace(record, patches=patches)


def _vectors_of(column: Any, schema: Schema) -> list[np.ndarray]:
    if column.null_count or column.flatten().null_count:
        raise ValueError("a vector is missing")
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), schema.global_dim)
    vectors = vectors.astype(np.float32)  # (n, G)
    length = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(length) & (np.abs(length - 1) < LENGTH_SLACK)).all():
        raise ValueError("a vector is not finite, or not of length 1")
    return list(vectors)


def _about(record: Record) -> str:
    payload = record_payload(record)
    return json.dumps({name: value for name, value in payload.items() if name not in _ASIDE})


def _files_of(row: dict[str, Any]) -> tuple[StoredFile, ...]:
    files = []
    for file in row["files"]:
        key, size, mtime_ns = from_engine(_text(file["key"])), file["size"], file["mtime_ns"]
        if type(size) is not int or type(mtime_ns) is not int or "\0" in key:
            raise ValueError("a file is none")
        files.append(StoredFile(key, size, mtime_ns))
    return tuple(files)


def _id_of(row: dict[str, Any]) -> str:
    id = _text(row["id"])
    if not _ID.match(id):
        raise ValueError("a content id is none")
    return id


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is missing")
    return value


@contextmanager
def _opened(at: PlacedFile, schema: Schema) -> Iterator[Any]:
    """A shard whose declared shape is as it should be; UnusableError, in one line, for whatever is wrong with it."""
    pa = arrow()
    try:
        raw, size = at.place.open(at.name)
        with raw:
            if size > MAX_BYTES:
                raise ValueError(f"it has {size:,} bytes")
            file = pa.parquet.ParquetFile(raw, page_checksum_verification=True)
            _check_declared(file, schema, size)
            yield file
    except FileNotFoundError:
        raise UnusableError(f"the shard {at} is gone; if another process writes here, run the same again") from None
    except (SeenitError, GeneratorExit):
        raise
    except (OSError, pa.ArrowException) as error:
        raise _damaged(at, first_line(error)) from None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise _damaged(at, first_line(error)) from None


def _check_declared(file: Any, schema: Schema, size: int) -> None:
    """ValueError for columns of other names or types, and for what could take more memory than the file's size."""
    wanted = columns(schema.global_dim)
    for name in wanted.names:
        if name not in file.schema_arrow.names:
            raise ValueError(f"it has no column {name}")
        if not _same_type(file.schema_arrow.field(name).type, wanted.field(name).type):
            raise ValueError(f"its column {name} is {file.schema_arrow.field(name).type}")
    told = file.metadata
    if told.num_rows > MAX_ROWS:
        raise ValueError(f"it has {told.num_rows:,} rows, more than {MAX_ROWS:,}")
    held = 0
    for group in range(told.num_row_groups):
        for number in range(told.num_columns):
            chunk = told.row_group(group).column(number)
            if chunk.compression != "UNCOMPRESSED" or any("DICTIONARY" in encoding for encoding in chunk.encodings):
                raise ValueError("it is compressed, or written with dictionaries")
            held += chunk.total_uncompressed_size
    if held > size:
        raise ValueError(f"it declares {held:,} bytes and has {size:,}")


def _same_type(one: Any, other: Any) -> bool:
    """Whether types are equal but for the names that Parquet gives to what lists hold."""
    pa = arrow()
    if pa.types.is_fixed_size_list(other):
        if pa.types.is_fixed_size_list(one):
            return bool(one.list_size == other.list_size and one.value_type == other.value_type)
        return False
    if pa.types.is_list(other):
        return bool(pa.types.is_list(one) and one.value_type == other.value_type)
    return bool(one == other)


def _damaged(at: PlacedFile, why: str) -> UnusableError:
    return UnusableError(f"the shard {at} cannot be used: {why}; remove it, and embed again what it held")
