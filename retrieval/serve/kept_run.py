"""The last run of duplicates: in memory, or, of an index on a server, in its store, where every server of it sees it.

A run is written as JSON. What is surprising: no path is. A server's data says which files are moved, so a path is made
anew from the file's key, which leads nowhere but into the indexed folders.
"""

import json
import secrets
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from indexer.errors import SeenitError
from indexer.images.metadata import Metadata
from indexer.index.index import Index
from indexer.index.keys import Roots
from indexer.store.protocol import SERVING, Record, Store, StoredFile, is_url

from ..duplicates.options import DuplicateOptions
from ..duplicates.outcome import Difference, Duplicates, File, Group, GroupMember

_ANOTHER = "the last run of duplicates at {} was kept by another version; look for duplicates again"
MOST_BYTES = 1 << 30  # of a run as JSON
_LAST, _RUN = f"{SERVING}duplicates", f"{SERVING}duplicates."  # which run is the last one, and a run


@dataclass(frozen=True)
class Run:
    """A run that is kept; its groups are numbered from 0.

    id     like no other run's, here or on another server of the index
    moved  keys of its files that were moved
    """

    id: str
    found: Duplicates
    finished_at: datetime
    moved: frozenset[str] = frozenset()


class KeptRun:
    """The last run of an index; its calls block, and come from any thread. StoreError as of a store."""

    def __init__(self, index: Index) -> None:
        self._roots = index.roots
        self._location = index.location
        self._store: Store | None = index.store if is_url(index.location) else None
        self._lock = threading.Lock()
        self._run: Run | None = None

    def read(self) -> Run | None:
        """The last run with what was moved of it; None where there is none."""
        if self._store is None:
            return self._run
        with self._lock:
            last = self._store.read_blob(_LAST)
            if last is None:
                return None
            id, moved = _last_of(last, self._location)
            if self._run is None or self._run.id != id:
                data = self._store.read_blob(_RUN + id)
                if data is None:  # a newer one took its place just now
                    return self._run
                self._run = run_from(data, self._location, self._roots)
            self._run = replace(self._run, moved=moved)
            return self._run

    def put(self, found: Duplicates) -> Run:
        """Keep a new run in place of the last one."""
        run = Run(secrets.token_hex(8), found, datetime.now(UTC))
        with self._lock:
            if self._store is not None:
                self._store.write_blob(_RUN + run.id, run_to(run))
                self._point_at(run)
                for name in self._store.blob_names():
                    if name.startswith(_RUN) and name != _RUN + run.id:
                        self._store.delete_blob(name)
            self._run = run
        return run

    def put_moved(self, run: Run, moved: Iterable[str]) -> None:
        """Note which files of a run are moved now."""
        with self._lock:
            self._run = replace(run, moved=frozenset(moved))
            if self._store is not None:
                self._point_at(self._run)

    def _point_at(self, run: Run) -> None:
        assert self._store is not None
        self._store.write_blob(_LAST, json.dumps({"run": run.id, "moved": sorted(run.moved)}).encode())


def _last_of(data: bytes, location: str) -> tuple[str, frozenset[str]]:
    """The id of the last run, and what was moved of it."""
    try:
        values = json.loads(data)
        return str(values["run"]), frozenset(map(str, values["moved"]))
    except (ValueError, TypeError, KeyError):
        raise SeenitError(_ANOTHER.format(location)) from None


def run_to(run: Run) -> bytes:
    """A run as compressed JSON."""
    found = run.found
    values = {
        "id": run.id,
        "finished_at": run.finished_at.isoformat(),
        "level": found.options.level,
        "keep": found.options.keep,
        "images": found.images,
        "seconds": found.seconds,
        "notes": found.notes,
        "groups": [
            {
                "keeper": _record_to(group.keeper),
                "file": _file_to(group.file),
                "why": group.why,
                "members": [_member_to(member) for member in group.members],
            }
            for group in found.groups
        ],
    }
    return zlib.compress(json.dumps(values).encode(), 1)


def run_from(data: bytes, location: str, roots: Roots) -> Run:
    """The run that was written; SeenitError where it is none, or names a file outside of the indexed folders."""
    try:
        inflated = zlib.decompressobj()
        values = json.loads(inflated.decompress(data, MOST_BYTES))
        groups = tuple(
            Group(
                _record_from(group["keeper"]),
                _file_from(group["file"], roots),
                tuple(_member_from(member, roots) for member in group["members"]),
                str(group["why"]),
            )
            for group in values["groups"]
        )
        options = DuplicateOptions(level=values["level"], keep=values["keep"])
        found = Duplicates(
            location, options, groups, int(values["images"]), float(values["seconds"]), tuple(values["notes"])
        )
        return Run(str(values["id"]), found, datetime.fromisoformat(values["finished_at"]))
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError):
        raise SeenitError(_ANOTHER.format(location)) from None


def _record_to(record: Record) -> dict[str, Any]:
    metadata = asdict(record.metadata)
    metadata["taken_at"] = record.metadata.taken_at and record.metadata.taken_at.isoformat()
    return {
        "id": record.id,
        "files": [[file.key, file.size, file.mtime_ns] for file in record.files],
        "metadata": metadata,
        "whitening_id": record.whitening_id,
        "tags": record.tags,
        "attributes": dict(record.attributes),
    }


def _record_from(values: Mapping[str, Any]) -> Record:
    metadata = dict(values["metadata"])
    taken_at, gps = metadata["taken_at"], metadata["gps"]
    metadata |= {
        "taken_at": datetime.fromisoformat(taken_at) if taken_at else None,
        "gps": (float(gps[0]), float(gps[1])) if gps else None,
        "keywords": tuple(metadata["keywords"]),
    }
    return Record(
        id=values["id"],
        files=tuple(StoredFile(key, size, mtime_ns) for key, size, mtime_ns in values["files"]),
        metadata=Metadata(**metadata),
        whitening_id=values["whitening_id"],
        tags=tuple(values["tags"]),
        attributes=values["attributes"],
    )


def _file_to(file: File) -> list[Any]:
    return [file.key, file.size, file.mtime_ns, file.id]


def _file_from(values: list[Any], roots: Roots) -> File:
    key, size, mtime_ns, id = values
    return File(key, roots.path(key), int(size), int(mtime_ns), str(id))


def _member_to(member: GroupMember) -> dict[str, Any]:
    return {
        "record": _record_to(member.record),
        "files": [_file_to(file) for file in member.files],
        "level": member.level,
        "similarity": float(member.similarity),
        "how": member.how,
        "stays": member.stays,
        "differs_at": [
            [[int(value) for value in box] for box in (one.in_keeper, one.in_member)] for one in member.differs_at
        ],
        "transform": None if member.transform is None else member.transform.tolist(),
    }


def _member_from(values: Mapping[str, Any], roots: Roots) -> GroupMember:
    transform = values["transform"]
    return GroupMember(
        record=_record_from(values["record"]),
        files=tuple(_file_from(file, roots) for file in values["files"]),
        level=values["level"],
        similarity=float(values["similarity"]),
        how=str(values["how"]),
        stays=str(values["stays"]),
        differs_at=tuple(Difference(tuple(one), tuple(other)) for one, other in values["differs_at"]),
        transform=None if transform is None else np.array(transform, np.float64),  # (2, 3)
    )
