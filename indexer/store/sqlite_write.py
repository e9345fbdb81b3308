"""Records written as rows, within a transaction of the caller."""

from collections.abc import Iterable, Sequence

import apsw
import numpy as np

from .protocol import Record, StoredFile
from .sqlite_filter import id_bytes, microseconds, to_bytes
from .sqlite_rows import more_of, record_crc
from .sqlite_schema import select


def insert_records(db: apsw.Connection, first: int, records: Sequence[tuple[Record, np.ndarray]]) -> None:
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
        (row for number, record, _ in rows for row in file_rows(number, record.files)),
    )
    db.executemany(
        "INSERT OR IGNORE INTO tags VALUES (?, ?)",
        (row for number, record, _ in rows for row in tag_rows(number, record.tags)),
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
        more_of(metadata, record.attributes),
        record_crc(record.id, record.whitening_id, vector.tobytes(), record.patches),
    )


def _cameras(db: apsw.Connection, names: set[str]) -> dict[str, int]:
    """The numbers of cameras by name; new ones are entered."""
    db.executemany("INSERT OR IGNORE INTO cameras (name) VALUES (?)", [(to_bytes(name),) for name in sorted(names)])
    rows = {
        name: select(db, "SELECT camera FROM cameras WHERE name = ?", (to_bytes(name),)).fetchone()[0] for name in names
    }
    return {name: int(camera) for name, camera in rows.items()}


def file_rows(number: int, files: Iterable[StoredFile]) -> list[tuple[bytes, int, int, int, int]]:
    return [(to_bytes(file.key), number, file.size, file.mtime_ns, place) for place, file in enumerate(files)]


def tag_rows(number: int, tags: Iterable[str]) -> list[tuple[bytes, int]]:
    return [(to_bytes(tag), number) for tag in tags]
