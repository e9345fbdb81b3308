"""The blobs of an index on a server: points without vectors in a collection beside the records.

A blob travels in pieces, each a point, for a server limits its requests. A head point names the content's hash and the
number of its pieces; it is written after them, so a reader finds the old content or the new one and never a mixture.
One more point, the revision, is written anew after every change of the index, so that whoever keeps something in memory
knows when to read again.
"""

import base64
import hashlib
import secrets
import uuid
from typing import Any

from qdrant_client import models

from ..errors import StoreError
from .qdrant_connection import Connection

PIECE_BYTES = 1 << 20
PIECES_PER_READ = 8
_IDS = uuid.UUID("6b0d2f3c-8f0e-4c6e-9d57-0b1d5d2a7c11")  # namespace of the points' ids


class QdrantBlobs:
    """See `protocol.Store` on blobs. The collection is made by the first `write`."""

    def __init__(self, connection: Connection, collection: str, replicas: int | None = None) -> None:
        """replicas: nodes that hold the blobs, where the collection is made; None leaves it to the server."""
        self._connection = connection
        self._collection = collection
        self._replicas = replicas
        self._seen = False  # once it is there it stays

    def exist(self) -> bool:
        self._seen = self._seen or self._connection.exists(self._collection)
        return self._seen

    def _make(self) -> None:
        if not self.exist():
            self._connection.create(self._collection, {}, shards=1, replicas=self._replicas)
            self._seen = True

    def read(self, name: str) -> bytes | None:
        if not self.exist():
            return None
        for _ in range(3):  # another process may replace the blob between our reads of its head and of its pieces
            head = self._head(name)
            if head is None:
                return None
            ids = _piece_ids(name, head)
            pieces: dict[str, str] = {}
            for start in range(0, len(ids), PIECES_PER_READ):
                points = self._connection.retrieve(self._collection, ids[start : start + PIECES_PER_READ])
                pieces.update({str(point.id): point.payload["data"] for point in points})
            data = b"".join(base64.b64decode(pieces[id]) for id in ids if id in pieces)
            if _digest(data) == head["digest"]:
                return data
        raise StoreError(f"{name} of the index at {self._connection.location} is damaged; index again")

    def write(self, name: str, data: bytes) -> None:
        self._make()
        before = self._head(name)
        pieces = [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]
        head = {"name": name, "digest": _digest(data), "pieces": len(pieces)}
        for id, piece in zip(_piece_ids(name, head), pieces, strict=True):
            self._write(id, {"name": name, "data": base64.b64encode(piece).decode()})
        self._write(_id(name), head)
        if before and before["digest"] != head["digest"]:
            self._connection.delete(self._collection, _piece_ids(name, before))

    def delete(self, name: str) -> None:
        head = self._head(name) if self.exist() else None
        if head is not None:
            self._connection.delete(self._collection, [_id(name), *_piece_ids(name, head)])

    def revise(self) -> None:
        """The index was changed."""
        self._make()
        self._write(_REVISION_ID, {"revision": secrets.token_hex(8)})

    def revision(self) -> str:
        """Of the index's last change; empty before the first one."""
        points = self._connection.retrieve(self._collection, [_REVISION_ID]) if self.exist() else []
        return str(points[0].payload["revision"]) if points else ""

    def names(self) -> list[str]:
        names: list[str] = []
        offset, more = None, self.exist()
        while more:
            points, offset = self._connection.page(self._collection, offset, 100, payload=["name", "pieces"])
            names += [str(point.payload["name"]) for point in points if "pieces" in point.payload]  # heads
            more = offset is not None
        return sorted(names)

    def _head(self, name: str) -> dict[str, Any] | None:
        points = self._connection.retrieve(self._collection, [_id(name)])
        return points[0].payload if points else None

    def _write(self, id: str, payload: dict[str, Any]) -> None:
        self._connection.upsert(self._collection, [models.PointStruct(id=id, vector={}, payload=payload)])


def _piece_ids(name: str, head: dict[str, Any]) -> list[str]:
    return [_id(name, head["digest"], number) for number in range(head["pieces"])]


def _id(name: str, *piece: str | int) -> str:
    return str(uuid.uuid5(_IDS, "/".join(map(str, (name, *piece)))))


_REVISION_ID = _id("", "revision")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
