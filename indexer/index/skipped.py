"""The memory of files that were read and gave no image, so that they are not tried again until they change."""

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass

from ..store.protocol import Store

SKIPPED_BLOB = "skipped.json"


@dataclass(frozen=True)
class SkippedFile:
    """`reason` is None where the file simply is no image (a text, a film)."""

    key: str
    size: int  # bytes; -1 where the file could not even be opened, which is tried again each time
    mtime_ns: int
    reason: str | None


def read_skipped(store: Store) -> list[SkippedFile]:
    data = store.read_blob(SKIPPED_BLOB)
    if data is None:
        return []
    try:
        return [
            SkippedFile(str(key), int(size), int(mtime_ns), None if reason is None else str(reason))
            for key, size, mtime_ns, reason in json.loads(data)
        ]
    except (ValueError, TypeError):
        return []  # only a memory of past attempts: they are made again


def write_skipped(store: Store, files: Iterable[SkippedFile]) -> None:
    rows = [astuple(file) for file in files]
    if rows or store.read_blob(SKIPPED_BLOB) is not None:
        store.write_blob(SKIPPED_BLOB, json.dumps(rows).encode())
