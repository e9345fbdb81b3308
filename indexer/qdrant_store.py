"""The store on a Qdrant server or cluster, through qdrant-client.

    COLLECTION           the records, in the same schema as the embedded store
    COLLECTION.seenit    the blobs, as points without vectors, in pieces

What is surprising: every request may be sent twice. A connection that drops after the server has done its work looks
the same as one that drops before, so all writes are idempotent and are repeated, with growing pauses, until
`retry_s` is over. What a repetition cannot mend (a wrong key, a missing collection) is reported at once.

One writer at a time holds per machine only: the lock is a file in this user's cache. Two machines that write the same
collection do each other no harm in the vectors (ids come from content), but their lists of files may overwrite each
other; let one machine index a collection.
"""

import base64
import hashlib
import ipaddress
import os
import random
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import filelock
import grpc
import httpx
import numpy as np
import platformdirs
import pydantic
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from .errors import LockedError, SeenitError, StoreError
from .payload import (
    INDEXED_FIELDS,
    as_rfc3339,
    batches,
    camera_words,
    checked_vectors,
    files_payload,
    record_from,
    record_payload,
    tags_payload,
    to_engine,
)
from .store import Hit, Record, Schema, StoredFile, StoreSize, Where

KEY_VARIABLES = ("SEENIT_API_KEY", "QDRANT_API_KEY")
REQUEST_NUMBERS = 500_000  # vector elements per request: at most 12 MB as JSON, a server takes 32 MB by default
BLOB_PIECE = 1 << 20  # bytes of a blob per point
POINTS_PER_REQUEST = 500
TIMEOUT_S = 60.0  # of one request
RETRY_S = 120.0  # of one request with all its repetitions
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 15.0
HNSW_EF_SEARCH = 256
_BLOB_IDS = uuid.UUID("6b0d2f3c-8f0e-4c6e-9d57-0b1d5d2a7c11")  # namespace of the blobs' point ids

V = TypeVar("V")


@dataclass(frozen=True)
class Address:
    """Where a collection is: `http(s)://host[:port][/prefix]/collection[?grpc=PORT]`."""

    url: str  # of the server
    prefix: str | None  # path before the collection, of a server behind a proxy
    collection: str
    grpc_port: int | None  # vectors travel by gRPC where given

    @classmethod
    def parse(cls, location: str) -> "Address":
        """SeenitError where the location is not of that form or holds a password."""
        expected = "expected http(s)://host:port/collection"
        try:
            parts = urlsplit(location)
            port = parts.port or (443 if parts.scheme == "https" else 6333)
            grpc_ports = parse_qs(parts.query, strict_parsing=bool(parts.query)).pop("grpc", [])
            grpc_port = int(grpc_ports[0]) if grpc_ports else None
        except ValueError:
            raise SeenitError(f"cannot read the index's address; {expected}") from None
        if "@" in parts.netloc:
            raise SeenitError(f"an index's address holds no password; put the key into ${KEY_VARIABLES[0]}")
        *prefix, collection = parts.path.strip("/").split("/")
        if not parts.hostname or not re.fullmatch(r"[\w.-]{1,200}", collection):
            raise SeenitError(f"{location} names no collection; {expected}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{parts.scheme}://{host}:{port}", "/".join(prefix) or None, collection, grpc_port)


class QdrantStore:
    """See `store.Store`."""

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        location: str,
        *,
        lock: filelock.BaseFileLock | None = None,
        secret: str | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        """client: any QdrantClient, also `:memory:`; secret: a text that no message may show."""
        self.location = location
        self._client = client
        self._collection = collection
        self._blobs = f"{collection}.seenit"
        self._lock = lock
        self._secret = secret
        self._retry_s = retry_s
        self._schema: Schema | None = None
        self._exists = False

    @classmethod
    def open(cls, location: str, *, write: bool = False, wait_s: float = 5.0) -> "QdrantStore":
        """Open the collection at `location`; the server is asked at once, so a wrong address or key shows here.

        The API key is taken from $SEENIT_API_KEY or $QDRANT_API_KEY.
        """
        address = Address.parse(location)
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        if key and address.url.startswith("http://") and not _is_near(urlsplit(address.url).hostname or ""):
            raise StoreError(f"{address.url} would get the API key unencrypted; use https:// or unset the key")
        location = location.partition("?")[0]
        lock = _locked(address, location, wait_s) if write else None
        store = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a key over http, which was looked at above
                client = QdrantClient(
                    url=address.url,
                    prefix=address.prefix,
                    api_key=key,
                    prefer_grpc=address.grpc_port is not None,
                    grpc_port=address.grpc_port or 6334,
                    timeout=int(TIMEOUT_S),
                    check_compatibility=False,
                )
            store = cls(client, address.collection, location, lock=lock, secret=key, retry_s=wait_s)
            if not store._is_there(store._collection) and not store._is_there(store._blobs) and not write:
                raise SeenitError(f"no index at {location}; create one with: seenit index FOLDER --index {location}")
            store._retry_s = RETRY_S
            return store
        except BaseException:
            if store is not None:
                store.close()
            elif lock is not None:
                lock.release()
            raise

    def __repr__(self) -> str:
        return f"QdrantStore({self.location!r})"

    def close(self) -> None:
        """Let go of the index; safe to call twice."""
        self._client.close()
        if self._lock is not None:
            self._lock.release()

    # Blobs: a head point names the content's hash and its pieces' number; it is written after the pieces.

    def read_blob(self, name: str) -> bytes | None:
        for _ in range(3):  # another process may replace the blob between our two reads
            head = self._blob_points([_blob_id(name)])
            if not head:
                return None
            digest, num_pieces = str(head[0].payload["digest"]), int(head[0].payload["pieces"])
            ids = [_blob_id(name, digest, number) for number in range(num_pieces)]
            pieces = {str(p.id): p.payload["data"] for some in _chunks(ids, 8) for p in self._blob_points(some)}
            data = b"".join(base64.b64decode(pieces[id]) for id in ids if id in pieces)
            if _digest(data) == digest:
                return data
        raise StoreError(f"{name} of the index at {self.location} is damaged; index anew")

    def write_blob(self, name: str, data: bytes) -> None:
        if not self._is_there(self._blobs):
            self._create(self._blobs, vectors_config={}, on_disk_payload=True)
        before = self._blob_points([_blob_id(name)])
        digest = _digest(data)
        pieces = [data[start : start + BLOB_PIECE] for start in range(0, len(data), BLOB_PIECE)]
        for number, piece in enumerate(pieces):
            content = {"name": name, "data": base64.b64encode(piece).decode()}
            self._write_blob_point(_blob_id(name, digest, number), content)
        self._write_blob_point(_blob_id(name), {"name": name, "digest": digest, "pieces": len(pieces)})
        if before and before[0].payload["digest"] != digest:
            old, num_pieces = str(before[0].payload["digest"]), int(before[0].payload["pieces"])
            self._delete(self._blobs, [_blob_id(name, old, number) for number in range(num_pieces)])

    def blob_names(self) -> list[str]:
        if not self._is_there(self._blobs):
            return []
        names: list[str] = []
        offset = None
        while True:
            heads, offset = self._page(self._blobs, None, 100, offset, payload=["name", "pieces"])
            names += [str(point.payload["name"]) for point in heads if "pieces" in point.payload]
            if offset is None:
                return sorted(names)

    def _blob_points(self, ids: list[str]) -> list[Any]:
        if not self._is_there(self._blobs):
            return []
        return self._call("read the index's description", lambda: self._client.retrieve(self._blobs, ids, True, False))

    def _write_blob_point(self, id: str, payload: dict[str, Any]) -> None:
        point = models.PointStruct(id=id, vector={}, payload=payload)
        self._call("write the index's description", lambda: self._client.upsert(self._blobs, [point], wait=True))

    # Records

    def schema(self) -> Schema | None:
        return self._read_schema() if self._is_there(self._collection) else None

    def ensure(self, schema: Schema) -> None:
        if not self._is_there(self._collection):
            self._create(
                self._collection,
                vectors_config={
                    "global": models.VectorParams(
                        size=schema.global_dim,
                        distance=models.Distance.COSINE,
                        datatype=models.Datatype.FLOAT16,
                        hnsw_config=models.HnswConfigDiff(m=16, ef_construct=128),
                    ),
                    "patches": models.VectorParams(
                        size=schema.token_dim,
                        distance=models.Distance.COSINE,
                        datatype=models.Datatype.FLOAT16,
                        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
                        hnsw_config=models.HnswConfigDiff(m=0),  # compared only with candidates, so no graph
                        on_disk=True,
                    ),
                },
                on_disk_payload=True,
            )
        there = self._read_schema()
        if there != schema:
            raise StoreError(
                f"the index at {self.location} holds vectors of {there}, not of {schema}; "
                "index into another collection with this backbone"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `:memory:` says that it has no payload indexes
            for field, kind in INDEXED_FIELDS.items():
                self._create_index(field, models.PayloadSchemaType(kind))
        self._schema = schema

    def _create_index(self, field: str, kind: models.PayloadSchemaType) -> None:
        self._call(
            "make an index of a payload field",
            lambda: self._client.create_payload_index(self._collection, field, kind, wait=True),
        )

    def _create(self, collection: str, **config: Any) -> None:
        try:
            self._call("create the collection", lambda: self._client.create_collection(collection, **config))
        except StoreError:
            if not self._is_there(collection):  # else the first try had done it before its connection dropped
                raise

    def _is_there(self, collection: str) -> bool:
        if collection == self._collection and self._exists:
            return True
        there = self._call("open the collection", lambda: self._client.collection_exists(collection))
        if collection == self._collection:
            self._exists = there
        return there

    def _read_schema(self) -> Schema:
        info = self._call("read the collection's description", lambda: self._client.get_collection(self._collection))
        vectors = info.config.params.vectors
        if (
            not isinstance(vectors, dict)
            or {"global", "patches"} - set(vectors)
            or vectors["patches"].multivector_config is None
            or any(vectors[name].distance != models.Distance.COSINE for name in ("global", "patches"))
        ):
            raise StoreError(f"the collection at {self.location} was not made by seenit; name another one")
        return Schema(vectors["global"].size, vectors["patches"].size)

    def upsert(self, records: Sequence[Record]) -> None:
        assert self._schema is not None, "ensure comes before the first write"
        for batch in batches(records, REQUEST_NUMBERS):
            self._upsert_batch(
                [
                    models.PointStruct(
                        id=record.id, vector=checked_vectors(record, self._schema), payload=record_payload(record)
                    )
                    for record in batch
                ]
            )

    def _upsert_batch(self, points: list[models.PointStruct]) -> None:
        self._call("write records", lambda: self._client.upsert(self._collection, points, wait=True))

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        self._set_payload({id: files_payload(of_record) for id, of_record in files.items()})

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        self._set_payload({id: tags_payload(of_record) for id, of_record in tags.items()})

    def _set_payload(self, payloads: dict[str, dict[str, Any]]) -> None:
        for ids in _chunks(payloads, POINTS_PER_REQUEST):
            known = {str(point.id) for point in self._points(ids, payload=False, vectors=False)}
            self._update(
                [
                    models.SetPayloadOperation(set_payload=models.SetPayload(payload=payloads[id], points=[id]))
                    for id in ids
                    if id in known  # a server refuses ids that it does not hold
                ]
            )

    def _update(self, operations: list[models.SetPayloadOperation]) -> None:
        if operations:
            self._call(
                "update records",
                lambda: self._client.batch_update_points(self._collection, operations, wait=True),
            )

    def delete(self, ids: Sequence[str]) -> None:
        if ids and self._is_there(self._collection):
            self._delete(self._collection, ids)

    def _delete(self, collection: str, ids: Sequence[str]) -> None:
        for some in _chunks(ids, POINTS_PER_REQUEST):
            self._delete_points(collection, models.PointIdsList(points=list(some)))

    def _delete_points(self, collection: str, points: models.PointIdsList) -> None:
        self._call("delete records", lambda: self._client.delete(collection, points, wait=True))

    def scroll(self, where: Where = Where(), *, vectors: bool = False, batch: int = 2000) -> Iterator[Record]:
        if not self._is_there(self._collection):
            return
        limit = min(batch, 100 if vectors else 1000)  # keeps an answer to a few MB
        condition, offset = _filter(where), None
        while True:
            points, offset = self._page(self._collection, condition, limit, offset, vectors=vectors)
            for point in points:
                yield record_from(str(point.id), point.payload, point.vector, self.location)
            if offset is None:
                return

    def _page(
        self,
        collection: str,
        condition: models.Filter | None,
        limit: int,
        offset: Any,
        *,
        payload: bool | list[str] = True,
        vectors: bool = False,
    ) -> tuple[list[Any], Any]:
        return self._call(
            "read records",
            lambda: self._client.scroll(
                collection,
                scroll_filter=condition,
                limit=limit,
                offset=offset,
                with_payload=payload,
                with_vectors=vectors,
            ),
        )

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        found: dict[str, Any] = {}
        for some in _chunks(dict.fromkeys(ids), 100 if vectors else POINTS_PER_REQUEST):
            found.update({str(point.id): point for point in self._points(some, payload=True, vectors=vectors)})
        return [record_from(id, found[id].payload, found[id].vector, self.location) for id in ids if id in found]

    def _points(self, ids: list[str], *, payload: bool, vectors: bool) -> list[Any]:
        if not self._is_there(self._collection):
            return []
        return self._call(
            "read records",
            lambda: self._client.retrieve(self._collection, ids, with_payload=payload, with_vectors=vectors),
        )

    def search(
        self, queries: np.ndarray, top: int, where: Where = Where(), *, exact: bool = False, vectors: bool = False
    ) -> list[list[Hit]]:
        if top < 1 or not self._is_there(self._collection):
            return [[] for _ in queries]
        condition = _filter(where)
        requests = (
            models.QueryRequest(
                query=query,
                using="global",
                filter=condition,
                params=models.SearchParams(hnsw_ef=max(HNSW_EF_SEARCH, top), exact=exact),
                limit=top,
                with_payload=True,
                with_vector=vectors,
            )
            for query in queries.tolist()
        )
        return [
            [Hit(record_from(str(p.id), p.payload, p.vector, self.location), p.score) for p in answer.points]
            for some in _chunks(requests, max(1, min(100, REQUEST_NUMBERS // queries.shape[1], 20_000 // top)))
            for answer in self._answers(some)
        ]

    def rescore(self, tokens: Sequence[np.ndarray], ids: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        assert len(tokens) == len(ids)
        scores: list[dict[str, float]] = [{} for _ in tokens]
        if not self._is_there(self._collection):
            return scores
        asked = [q for q in range(len(tokens)) if len(tokens[q]) and ids[q]]
        most = max((tokens[q].size for q in asked), default=1)
        for some in _chunks(asked, max(1, REQUEST_NUMBERS // most)):
            requests = [
                models.QueryRequest(
                    query=tokens[q].tolist(),
                    using="patches",
                    filter=models.Filter(must=[models.HasIdCondition(has_id=list(ids[q]))]),
                    limit=len(ids[q]),
                )
                for q in some
            ]
            for q, answer in zip(some, self._answers(requests), strict=True):
                scores[q] = {str(point.id): point.score / len(tokens[q]) for point in answer.points}
        return scores

    def _answers(self, requests: list[models.QueryRequest]) -> list[Any]:
        return self._call("search", lambda: self._client.query_batch_points(self._collection, requests))

    def count(self, where: Where = Where()) -> int:
        if not self._is_there(self._collection):
            return 0
        condition = _filter(where)
        return self._call(
            "count records", lambda: self._client.count(self._collection, count_filter=condition, exact=True)
        ).count

    def optimize(self) -> None:
        """Nothing to do: a server mends its graph by itself, in the background."""

    def size(self) -> StoreSize:
        return StoreSize()

    # Requests

    def _call(self, doing: str, request: Callable[[], V]) -> V:
        """The request's answer; repeated while that may help, then StoreError in one line."""
        deadline = time.monotonic() + self._retry_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return request()
            except (httpx.HTTPError, ResponseHandlingException, UnexpectedResponse, ResourceExhaustedResponse) as error:
                failure = _failure(error)
            except grpc.RpcError as error:
                failure = _grpc_failure(error)
            except (ValueError, TypeError, KeyError, pydantic.ValidationError) as error:
                failure = _Failure(f"unexpected answer: {_first_line(error)}", "check that it is a Qdrant server")
            wait_s = max(pause_s * random.uniform(0.5, 1.0), failure.wait_s)
            if not failure.passing or time.monotonic() + wait_s > deadline:
                message = f"cannot {doing} at {self.location}: {failure.reason}; {failure.next_step}"
                raise StoreError(message.replace(self._secret, "***") if self._secret else message)
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


@dataclass(frozen=True)
class _Failure:
    reason: str
    next_step: str
    passing: bool = False  # whether repeating may help
    wait_s: float = 0.0  # as the server asks


def _failure(error: Exception) -> _Failure:
    if isinstance(error, ResourceExhaustedResponse):
        return _Failure("the server is busy (429)", "try again later", True, min(error.retry_after_s, LONGEST_PAUSE_S))
    if not isinstance(error, UnexpectedResponse):
        cause = error.source if isinstance(error, ResponseHandlingException) else error
        if isinstance(cause, pydantic.ValidationError):
            return _Failure("it does not answer like a Qdrant server", "check the address")
        what = "no answer in time" if isinstance(cause, httpx.TimeoutException) else _first_line(cause)
        return _Failure(f"not reachable ({what})", "check the address and that the server runs", True)
    status = error.status_code or 0
    if status in (401, 403):
        return _Failure(f"the server refuses the API key ({status})", f"set ${KEY_VARIABLES[0]} to a valid one")
    if status == 404:
        return _Failure("the collection is gone (404)", "check the address, or index anew")
    said = _first_line(error.content.decode("utf-8", "replace")) or error.reason_phrase
    if status == 429 or status >= 500:
        return _Failure(f"the server failed ({status}: {said})", "look into the server's log", True)
    return _Failure(f"the server refused the request ({status}: {said})", "check the versions of server and seenit")


def _grpc_failure(error: grpc.RpcError) -> _Failure:
    code, said = error.code(), _first_line(error.details() or "")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return _Failure("the server refuses the API key", f"set ${KEY_VARIABLES[0]} to a valid one")
    passing = code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    )
    return _Failure(
        f"{code.name.lower().replace('_', ' ')} ({said})", "check the address and the server's log", passing
    )


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__ if isinstance(error, Exception) else ""


def _is_near(host: str) -> bool:
    """Whether a host is this machine or in its private network, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))


def _locked(address: Address, location: str, wait_s: float) -> filelock.BaseFileLock:
    place = f"{address.url}/{address.prefix or ''}/{address.collection}"
    try:
        folder = Path(platformdirs.user_cache_dir("seenit", appauthor=False)) / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{_digest(place.encode())[:16]}.lock", timeout=wait_s, is_singleton=False)
        lock.acquire(poll_interval=0.02)
    except filelock.Timeout:
        raise LockedError(f"another process here writes to {location}; wait for it to end, or stop it") from None
    except OSError as error:
        raise StoreError(f"cannot make a lock in the cache folder: {error.strerror or error}; check it") from None
    return lock


def _chunks(items: Any, size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _blob_id(name: str, *piece: str | int) -> str:
    return str(uuid.uuid5(_BLOB_IDS, "/".join(map(str, (name, *piece)))))


def _filter(where: Where) -> models.Filter | None:
    """The server's filter of the same meaning; None where every record is meant."""
    if not where:
        return None
    must: list[Any] = []
    must_not: list[Any] = []
    if where.under:
        folders = models.MatchAny(any=[to_engine(key) for key in where.under])
        must.append(models.FieldCondition(key="folders", match=folders))
    if where.after is not None or where.before is not None:
        moments = {
            "gte": None if where.after is None else as_rfc3339(where.after),
            "lt": None if where.before is None else as_rfc3339(where.before),
        }
        must.append(models.FieldCondition(key="taken_at", range=models.DatetimeRange.model_validate(moments)))
    for word in camera_words(where.camera or ""):
        must.append(models.FieldCondition(key="camera_words", match=models.MatchValue(value=word)))
    if where.near is not None:
        latitude, longitude, radius_km = where.near
        circle = models.GeoRadius(center=models.GeoPoint(lat=latitude, lon=longitude), radius=radius_km * 1000)
        must.append(models.FieldCondition(key="location", geo_radius=circle))
    for tag in where.tags:
        must.append(models.FieldCondition(key="tags", match=models.MatchValue(value=to_engine(tag))))
    if where.not_fit is not None:
        must_not.append(models.FieldCondition(key="fit", match=models.MatchValue(value=where.not_fit)))
    if where.not_ids:
        must_not.append(models.HasIdCondition(has_id=list(where.not_ids)))
    return models.Filter(must=must or None, must_not=must_not or None)
