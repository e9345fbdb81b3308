"""The store on a Qdrant server or cluster.

    COLLECTION           the records, in the same schema as the embedded store
    COLLECTION.seenit    the blobs, see qdrant_blobs

What is surprising: one writer at a time holds per machine only, the lock is a file in this user's cache. Two machines
that write the same collection do each other no harm in the vectors (ids come from content), but their lists of files
may overwrite each other; let one machine index a collection.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from qdrant_client import models

from ..errors import SeenitError, StoreError
from ..printable import pasted
from .attributes import Attributes
from .payload import (
    ATTRIBUTES_FIELD,
    LISTED_FIELDS,
    PATCHES_FIELD,
    as_rfc3339,
    attributes_from,
    attributes_payload,
    batches,
    checked_vectors,
    files_payload,
    listed_from,
    patches_from,
    record_from,
    record_payload,
    tags_payload,
)
from .protocol import SERVING, Filter, Hit, Listed, Record, Schema, StoredFeatures, StoredFile, StoreSize
from .qdrant_address import Address
from .qdrant_blobs import QdrantBlobs
from .qdrant_collection import (
    BULK_RECORDS,
    SERVERS_OWN,
    Layout,
    lowered,
    missing_indexes,
    raised,
    search_params,
    threshold_of,
    vector_params,
)
from .qdrant_connection import Connection, WithPayload
from .qdrant_filter import qdrant_filter

# Of records per request: at most 12 MB as JSON, where a number of a vector takes 20 bytes; a server takes 32 MB.
REQUEST_BYTES = 2_400_000
QUERY_NUMBERS = 500_000  # of the queries' vectors per request, likewise
QUERIES, HITS = 256, 40_000  # per request; a batch of the command line is 128 queries with 100 candidates each
# Points per request, so that requests and answers keep to a few MB.
POINTS_WITH_VECTORS, POINTS_WITHOUT, POINTS_PER_PAGE = 100, 500, 1000
POINTS_WITH_PATCHES = 400  # 1.7 MB of balanced patches, 26 MB of full ones; see server_speed.py

V = TypeVar("V")


class QdrantStore:
    """See `protocol.Store`."""

    def __init__(
        self, connection: Connection, collection: str, layout: Layout = SERVERS_OWN, *, write: bool = True
    ) -> None:
        """Use `open`. layout: of a collection that is made."""
        self.location = connection.location
        self._connection = connection
        self._collection = collection
        self._layout = layout
        self._write = write
        self._blobs = QdrantBlobs(connection, f"{collection}.seenit", layout.replicas)
        self._schema: Schema | None = None
        self._seen = False  # once it is there it stays
        self._threshold = 0  # of the collection, as last read or set; see qdrant_collection
        self._loaded = 0  # records since the graph was last left to the server

    @classmethod
    def open(cls, location: str, *, write: bool = False, wait_s: float = 10.0) -> "QdrantStore":
        """Open the collection at `location`; the server is asked at once, so a wrong address or key shows here.

        wait_s  how long a writer waits for another one on this machine; LockedError after that
        A server that fails, or does not answer in time, is asked again for RETRY_S as with every later request. Where
        nothing has ever answered, a refused connection is tried again for UNANSWERED_S, for then a wrong port is as
        likely as a server that is being restarted, and a user should soon read of it; a host's name that is not known
        is answered at once. The API key is taken from $SEENIT_API_KEY or $QDRANT_API_KEY.
        """
        address = Address.parse(location)
        location = location.partition("?")[0]
        connection = Connection.open(address, location, write=write, wait_s=wait_s)
        try:
            store = cls(connection, address.collection, address.layout, write=write)
            if store._exists():
                store._read_schema()  # says at once that the collection is not ours
            elif not store._blobs.exist() and not write:
                raise SeenitError(
                    f"no index at {location}; create one with: seenit index FOLDER --index {pasted(location)}"
                )
        except BaseException:
            connection.close()
            raise
        return store

    def __repr__(self) -> str:
        return f"QdrantStore({self.location!r})"

    def close(self) -> None:
        """Close the index; safe to call twice."""
        with suppress(StoreError):  # whoever writes next does it
            self._leave_graph_to_server(patient=False)
        self._connection.close()

    # Blobs

    def read_blob(self, name: str) -> bytes | None:
        return self._blobs.read(name)

    def write_blob(self, name: str, data: bytes) -> None:
        self._blobs.write(name, data)
        if not name.startswith(SERVING):
            self._blobs.revise()

    def delete_blob(self, name: str) -> None:
        self._blobs.delete(name)
        if not name.startswith(SERVING):
            self._blobs.revise()

    def revision(self) -> object:
        return self._blobs.revision()

    def blob_names(self) -> list[str]:
        return self._blobs.names()

    # Records

    def _exists(self) -> bool:
        self._seen = self._seen or self._connection.exists(self._collection)
        return self._seen

    def schema(self) -> Schema | None:
        return self._read_schema() if self._exists() else None

    def ensure(self, schema: Schema) -> None:
        if not self._exists():
            self._connection.create(
                self._collection,
                vector_params(schema),
                shards=self._layout.shards,
                replicas=self._layout.replicas,
            )
        there = self._read_schema()
        if there != schema:
            raise StoreError(
                f"the index at {self.location} holds vectors of {there}, not of {schema}; "
                "index into another collection with this backbone"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `:memory:` says that it has no payload indexes
            for field, params in missing_indexes(self._connection.describe(self._collection)).items():
                self._connection.index_field(self._collection, field, params)
        self._schema = schema

    def _read_schema(self) -> Schema:
        info = self._connection.describe(self._collection)
        vectors = info.config.params.vectors
        if isinstance(vectors, dict) and set(vectors) == {"global", "patches"}:
            raise StoreError(
                f"the index at {self.location} was made by another version of seenit; remove it and index again"
            )
        if (
            not isinstance(vectors, dict)
            or set(vectors) != {"global"}
            or vectors["global"].distance != models.Distance.COSINE
        ):
            raise StoreError(f"the collection at {self.location} was not made by seenit; name another one")
        self._threshold = threshold_of(info)
        return Schema(vectors["global"].size)

    def upsert(self, records: Sequence[Record]) -> None:
        assert self._schema is not None, "ensure comes before the first write"
        for batch in batches(records, REQUEST_BYTES):
            points = [
                models.PointStruct(
                    id=record.id, vector=checked_vectors(record, self._schema), payload=record_payload(record)
                )
                for record in batch
            ]
            self._connection.upsert(self._collection, points)
            self._count_load(len(points))
        if records:
            self._blobs.revise()

    def _count_load(self, count: int) -> None:
        """Once much is loaded, the server links it at the end."""
        before, self._loaded = self._loaded, self._loaded + count
        wanted = raised(self._threshold)
        if before < BULK_RECORDS <= self._loaded and wanted != self._threshold:
            self._threshold = wanted
            try:
                self._connection.set_indexing_threshold(self._collection, wanted, patient=False)
            except StoreError:  # a key may forbid it, loading then takes longer; or it was done, and answered too late
                with suppress(StoreError):
                    self._threshold = threshold_of(self._connection.describe(self._collection))

    def _leave_graph_to_server(self, *, patient: bool) -> None:
        """Undo what `_count_load` did, here or in a process that was killed."""
        before, self._threshold, self._loaded = self._threshold, lowered(self._threshold), 0
        if not self._write or self._threshold == before:
            return
        try:
            self._connection.set_indexing_threshold(self._collection, self._threshold, patient=patient)
        except StoreError:  # a server answers when it has ended what it is at, which may be later than anybody waits
            if not patient or threshold_of(self._connection.describe(self._collection)) != self._threshold:
                raise

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        self._set_payload({id: files_payload(of_record) for id, of_record in files.items()})

    def set_dates(self, dates: dict[str, tuple[datetime | None, str | None]]) -> None:
        self._set_payload(
            {
                id: {"taken_at": None if taken_at is None else as_rfc3339(taken_at), "date_source": source}
                for id, (taken_at, source) in dates.items()
            }
        )

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        self._set_payload({id: tags_payload(of_record) for id, of_record in tags.items()})

    def set_attributes(self, attributes: dict[str, Attributes]) -> None:
        self._set_payload({id: attributes_payload(of_record) for id, of_record in attributes.items()})

    def attributes_of(self, ids: Sequence[str]) -> dict[str, Attributes]:
        found: dict[str, Attributes] = {}
        for some in _chunks(dict.fromkeys(ids), POINTS_WITHOUT):
            for id, point in self._points(some, payload=[ATTRIBUTES_FIELD]).items():
                if of_record := attributes_from(id, point.payload, self.location):
                    found[id] = of_record
        return found

    def _set_payload(self, payloads: dict[str, dict[str, Any]]) -> None:
        for some in _chunks(payloads, POINTS_WITHOUT):
            known = self._points(some, payload=False)  # a server refuses ids that it does not hold
            self._connection.set_payloads(self._collection, {id: payloads[id] for id in some if id in known})
        if payloads:
            self._blobs.revise()

    def delete(self, ids: Sequence[str]) -> None:
        if self._exists():
            for some in _chunks(ids, POINTS_WITHOUT):
                self._connection.delete(self._collection, some)
            if ids:
                self._blobs.revise()

    def scroll(self, where: Filter = Filter(), *, vectors: bool = False, batch: int = 2000) -> Iterator[Record]:
        limit = min(batch, POINTS_WITH_VECTORS if vectors else POINTS_PER_PAGE)
        condition = qdrant_filter(where)
        offset, more = None, self._exists()
        while more:
            points, offset = self._connection.page(
                self._collection, offset, limit, condition=condition, payload=_payload(vectors), vectors=vectors
            )
            yield from map(self._record, points)
            more = offset is not None

    def list_files(self) -> Iterator[Listed]:
        offset, more = None, self._exists()
        while more:
            points, offset = self._connection.page(self._collection, offset, POINTS_PER_PAGE, payload=LISTED_FIELDS)
            for point in points:
                yield listed_from(str(point.id), point.payload, self.location)
            more = offset is not None

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        found: dict[str, Any] = {}
        for some in _chunks(dict.fromkeys(ids), POINTS_WITH_VECTORS if vectors else POINTS_WITHOUT):
            found |= self._points(some, payload=_payload(vectors), vectors=vectors)
        return [self._record(found[id]) for id in ids if id in found]

    def _points(self, ids: list[str], *, payload: WithPayload, vectors: bool = False) -> dict[str, Any]:
        if not self._exists():
            return {}
        points = self._connection.retrieve(self._collection, ids, payload=payload, vectors=vectors)
        return {str(point.id): point for point in points}

    def _record(self, point: Any) -> Record:
        return record_from(str(point.id), point.payload, point.vector, self.location)

    def search(
        self, queries: np.ndarray, top: int, where: Filter = Filter(), *, exact: bool = False
    ) -> list[list[Hit]]:
        if top < 1 or not self._exists():
            return [[] for _ in queries]
        condition = qdrant_filter(where)
        requests = (
            models.QueryRequest(
                query=query,
                using="global",
                filter=condition,
                params=search_params(top, exact),
                limit=top,
                with_payload=False,
                with_vector=False,
            )
            for query in queries.tolist()
        )
        return [
            [Hit(str(point.id), point.score) for point in points]
            for some in _chunks(requests, max(1, min(QUERIES, QUERY_NUMBERS // queries.shape[1], HITS // top)))
            for points in self._connection.query(self._collection, some)
        ]

    def patches(self, ids: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for some in _chunks(dict.fromkeys(ids), POINTS_WITH_PATCHES):
            for id, point in self._points(some, payload=[PATCHES_FIELD]).items():
                packed = patches_from(id, point.payload, self.location)
                if packed is not None:
                    found[id] = packed
        return found

    def features(self, ids: Sequence[str]) -> dict[str, StoredFeatures]:
        found: dict[str, StoredFeatures] = {}
        for some in _chunks(dict.fromkeys(ids), POINTS_WITH_VECTORS):
            for id, point in self._points(some, payload=[PATCHES_FIELD], vectors=True).items():
                vector = np.asarray(point.vector["global"], np.float32)
                found[id] = StoredFeatures(vector, patches_from(id, point.payload, self.location))
        return found

    def count(self, where: Filter = Filter()) -> int:
        return self._connection.count(self._collection, qdrant_filter(where)) if self._exists() else 0

    def tags_of(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        return {record.id: record.tags for record in self.retrieve(ids)}

    def remembered_tags(self) -> dict[str, tuple[str, ...]]:
        return {}

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A server offers none: each request sees its own state."""
        yield

    def optimize(
        self,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """A server mends its graph by itself, in the background, once it is told that a load is over."""
        self._leave_graph_to_server(patient=True)

    def size(self) -> StoreSize:
        return StoreSize()


def _payload(vectors: bool) -> WithPayload:
    """Which payload is read: all of it with the vectors, without them all but the patches."""
    return True if vectors else models.PayloadSelectorExclude(exclude=[PATCHES_FIELD])


def _chunks(items: Iterable[V], size: int) -> Iterator[list[V]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
