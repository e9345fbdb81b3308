"""A small HTTP server that speaks Qdrant's REST for exactly what `QdrantStore` calls, with Qdrant Edge behind it.

Every request body is parsed with the models that qdrant-client generates from Qdrant's published OpenAPI description,
which refuse unknown fields, and is answered in that description's shapes. It can be told to misbehave: each entry of
`faults` spoils one request, in order.

    "drop"         the connection closes before anything is done
    "drop after"   the work is done, then the connection closes without an answer
    "stall"        no answer for `stall_s`
    "drip"         the work is done, the answer comes a piece at a time, within `drip_s` in all
    "half"         the first half of a batch is done, then 500, as of a node that dies at it
    500, 503, ...  that status, nothing is done
    None           it is served as it should be
    Refusal        likewise, with words and headers of its own
"""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

import qdrant_edge as edge
from pydantic import TypeAdapter, ValidationError
from qdrant_client.http import models

NO_SPACE = "Service internal error: No space left on device: WAL buffer size exceeds available disk space"
DRIPS = 20  # pieces of an answer that comes slowly
SERVERS_THRESHOLD = 20_000  # kB; what the peer links from by itself
_INDEX_PARAMS = (
    models.KeywordIndexParams,
    models.DatetimeIndexParams,
    models.GeoIndexParams,
    models.IntegerIndexParams,
)


@dataclass(frozen=True)
class Refusal:
    status: int
    error: str
    headers: dict[str, str] = field(default_factory=dict)


class QdrantPeer:
    """`with QdrantPeer() as peer:` serves at `peer.url` until the block ends."""

    def __init__(self, api_key: str | None = None) -> None:
        self.api_key = api_key
        self.faults: list[str | int | Refusal | None] = []
        self.refuse: dict[str, int] = {}  # the status that requests with a method are refused with, always
        self.full = False  # whether writes find no room
        self.stall_s = 5.0
        self.drip_s = 2.0
        self.requests: list[str] = []  # "METHOD path" of each request, spoiled ones too
        self.largest_body = 0
        self.collections: dict[str, _Collection] = {}
        shared_memory = (
            "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        )  # quicker than a disk, where there is one
        self._folder = Path(tempfile.mkdtemp(prefix="qdrant_peer.", dir=shared_memory))
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.away = False
        self._bind(0)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.go_away()
        for collection in self.collections.values():
            collection.shard.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _bind(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True

    def _serve(self) -> None:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def go_away(self) -> None:
        """Refuse connections from now on, and end those that are open with their next request."""
        if not self.away:
            self.away = True
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def come_back(self) -> None:
        """Serve again what was held before, at the same port."""
        self.away = False
        self._bind(self._server.server_address[1])
        self._serve()

    def stall(self) -> None:
        self._stopping.wait(self.stall_s)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        if (asked := asked_of(method, path)) is None:
            return NOT_FOUND
        name, action = asked
        with self._lock:
            try:
                if action == "GET exists":
                    return _ok({"exists": name in self.collections})
                if action == "PUT ":
                    return self._create(name, models.CreateCollection.model_validate_json(body))
                if name not in self.collections:
                    return 404, {"status": {"error": f"Not found: Collection `{name}` doesn't exist!"}}
                if action not in _ACTIONS:
                    return 404, {"status": {"error": f"the peer does not know {action}"}}
                return _ok(_ACTIONS[action](self.collections[name], body))
            except ValidationError as error:
                return 400, {"status": {"error": f"Format error in JSON body: {error}"}}
            except Exception as error:  # Edge raises bare Exceptions; a server answers them with 400
                return 400, {"status": {"error": f"Wrong input: {error}"}}

    def _create(self, name: str, request: models.CreateCollection) -> tuple[int, Any]:
        if name in self.collections:
            return 409, {"status": {"error": f"Wrong input: Collection `{name}` already exists!"}}
        self.collections[name] = _Collection(self._folder / name, request)
        return _ok(True)


def _handler(peer: QdrantPeer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            peer.requests.append(f"{self.command} {self.path}")
            peer.largest_body = max(peer.largest_body, len(body))
            if peer.away:
                self.close_connection = True
                return
            fault: str | int | Refusal | None = peer.faults.pop(0) if peer.faults else peer.refuse.get(self.command)
            if fault == "stall":
                peer.stall()
            if fault in ("drop", "stall"):
                self.close_connection = True
                return
            if isinstance(fault, int):
                fault = Refusal(fault, f"told to answer {fault}")
            if isinstance(fault, Refusal):
                self._send(fault.status, {"status": {"error": fault.error}}, fault.headers)
                return
            if peer.full and (self.command == "PUT" or self.path.partition("?")[0].endswith("/points/batch")):
                self._send(500, {"status": {"error": NO_SPACE}})
                return
            if peer.api_key is not None and self.headers.get("api-key") != peer.api_key:
                self._send(401, {"status": {"error": "Must provide an API key or an Authorization bearer token"}})
                return
            answer = peer.answer(self.command, self.path, half_of(body) if fault == "half" else body)
            if fault == "half" and answer[0] == 200:
                answer = 500, {"status": {"error": "Service internal error: the node went away"}}
            if fault == "drop after":
                self.close_connection = True
                return
            self._send(*answer, drip_s=peer.drip_s if fault == "drip" else 0.0)

        def _send(
            self, status: int, answer: Any, headers: Mapping[str, str] = MappingProxyType({}), drip_s: float = 0.0
        ) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            pieces = DRIPS if drip_s else 1
            with suppress(BrokenPipeError):  # who asked waits no longer
                for piece in range(pieces):
                    time.sleep(drip_s / pieces)
                    self.wfile.write(data[len(data) * piece // pieces : len(data) * (piece + 1) // pieces])

        do_GET = do_PUT = do_POST = do_PATCH = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def half_of(body: bytes) -> bytes:
    """The request with the first half of its points or operations."""
    request = json.loads(body)
    (name,) = {"points", "operations"} & set(request)
    return json.dumps({**request, name: request[name][: len(request[name]) // 2]}).encode()


NOT_FOUND = 404, {"status": {"error": "not found"}}


def asked_of(method: str, path: str) -> tuple[str, str] | None:
    """The collection that a request is about, and what it asks, such as "POST points"; None for any other path."""
    parts = urlsplit(path).path.strip("/").split("/")
    if parts[0] != "collections" or len(parts) < 2:
        return None
    return parts[1], f"{method} {'/'.join(parts[2:])}"


def _ok(result: Any) -> tuple[int, Any]:
    return 200, {"result": result, "status": "ok", "time": 0.0}


class _Collection:
    def __init__(self, path: Path, request: models.CreateCollection) -> None:
        self.request = request
        vectors = request.vectors or {}
        assert isinstance(vectors, dict), "the peer knows named vectors only"
        self.vectors = vectors
        self.optimizers = request.optimizers_config or models.OptimizersConfigDiff()
        self.indexes: dict[str, models.PayloadIndexInfo] = {}
        self._path = path
        self.shard = edge.EdgeShard.create(str(path), self._config())

    def change_optimizers(self, change: models.OptimizersConfigDiff) -> None:
        """As a server does, and the work that a server does in the background is done at once."""
        self.optimizers = self.optimizers.model_copy(update=change.model_dump(exclude_none=True))
        self.shard.close()
        self.shard = edge.EdgeShard.load(str(self._path), self._config())
        if self.threshold_kb < 10**9:
            self.shard.optimize()

    @property
    def threshold_kb(self) -> int:
        threshold = self.optimizers.indexing_threshold
        return SERVERS_THRESHOLD if threshold is None else threshold

    def _config(self) -> edge.EdgeConfig:
        optimizers = edge.EdgeOptimizersConfig(indexing_threshold=self.threshold_kb)
        if not self.vectors:  # Edge wants some vector; a collection without any gets a sparse one that no point uses
            return edge.EdgeConfig(sparse_vectors={"none": edge.EdgeSparseVectorParams()}, optimizers=optimizers)
        vectors = {name: _vector_params(vector) for name, vector in self.vectors.items()}
        return edge.EdgeConfig(vectors=vectors, on_disk_payload=self.request.on_disk_payload, optimizers=optimizers)


def _vector_params(vector: models.VectorParams) -> edge.EdgeVectorParams:
    hnsw = vector.hnsw_config
    datatypes = {None: "Float32", "float32": "Float32", "float16": "Float16"}
    return edge.EdgeVectorParams(
        vector.size,
        edge.Distance.Cosine,
        on_disk=vector.on_disk,
        datatype=getattr(edge.VectorStorageDatatype, datatypes[vector.datatype and vector.datatype.value]),
        quantization_config=_quantization(vector.quantization_config) if vector.quantization_config else None,
        hnsw_config=edge.HnswIndexConfig(16 if hnsw.m is None else hnsw.m, hnsw.ef_construct or 100, 10_000)
        if hnsw
        else None,
    )


def _quantization(config: Any) -> edge.ScalarQuantizationConfig:
    assert isinstance(config, models.ScalarQuantization), "the peer knows int8 only"
    return edge.ScalarQuantizationConfig(
        edge.ScalarType.Int8, quantile=config.scalar.quantile, always_ram=config.scalar.always_ram
    )


# What is done for each request


def _describe(collection: _Collection, body: bytes) -> Any:
    asked = collection.request
    params = models.CollectionParams(
        vectors=collection.vectors,
        shard_number=asked.shard_number,
        replication_factor=asked.replication_factor,
        on_disk_payload=asked.on_disk_payload,
    )
    info = models.CollectionInfo(
        status=models.CollectionStatus.GREEN,
        optimizer_status=models.OptimizersStatusOneOf.OK,
        points_count=collection.shard.count(edge.CountRequest()),
        indexed_vectors_count=collection.shard.info().indexed_vectors_count,
        segments_count=1,
        config=models.CollectionConfig(
            params=params,
            hnsw_config=models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
            wal_config=models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0),
            optimizer_config=models.OptimizersConfig(
                deleted_threshold=0.2,
                vacuum_min_vector_number=1000,
                default_segment_number=0,
                flush_interval_sec=5,
                indexing_threshold=collection.threshold_kb,
            ),
        ),
        payload_schema=collection.indexes,
    )
    return json.loads(info.model_dump_json())


def _change(collection: _Collection, body: bytes) -> Any:
    request = models.UpdateCollection.model_validate_json(body)
    assert request.optimizers_config is not None, "the peer knows changes of the optimizers only"
    collection.change_optimizers(request.optimizers_config)
    return True


def _index_field(collection: _Collection, body: bytes) -> Any:
    request = models.CreateFieldIndex.model_validate_json(body)
    asked = request.field_schema
    if isinstance(asked, models.PayloadSchemaType):
        kind, schema = asked.value, getattr(edge.PayloadSchemaType, asked.value.capitalize())
    else:
        assert asked is not None and isinstance(asked, _INDEX_PARAMS), "the peer knows four kinds of indexes"
        kind = asked.type.value
        given = asked.model_dump(exclude_none=True, exclude={"type"})
        schema = getattr(edge, f"{kind.capitalize()}IndexParams")(**given)
    collection.shard.update(edge.UpdateOperation.create_field_index(request.field_name, schema))
    of_kind = models.PayloadSchemaType(kind)
    params = None if isinstance(asked, models.PayloadSchemaType) else asked
    collection.indexes[request.field_name] = models.PayloadIndexInfo(data_type=of_kind, params=params, points=0)
    return _done()


def _upsert(collection: _Collection, body: bytes) -> Any:
    points: Any = models.PointsList.model_validate_json(body).points
    collection.shard.update(
        edge.UpdateOperation.upsert_points([edge.Point(str(p.id), p.vector, p.payload or {}) for p in points])
    )
    return _done()


def _update_batch(collection: _Collection, body: bytes) -> Any:
    operations = models.UpdateOperations.model_validate_json(body).operations
    for operation in operations:
        assert isinstance(operation, models.SetPayloadOperation), "the peer knows set_payload only"
        change = operation.set_payload
        ids: list[Any] = [str(id) for id in change.points or []]
        collection.shard.update(edge.UpdateOperation.set_payload(ids, change.payload))
    return [_done() for _ in operations]


def _delete(collection: _Collection, body: bytes) -> Any:
    ids: list[Any] = [str(id) for id in models.PointIdsList.model_validate_json(body).points]
    collection.shard.update(edge.UpdateOperation.delete_points(ids))
    return _done()


def _retrieve(collection: _Collection, body: bytes) -> Any:
    request: Any = models.PointRequest.model_validate_json(body)
    ids: list[Any] = [str(id) for id in request.ids]
    payload = _payload(request.with_payload)
    return [_point(p) for p in collection.shard.retrieve(ids, payload, request.with_vector or False)]


def _scroll(collection: _Collection, body: bytes) -> Any:
    request: Any = models.ScrollRequest.model_validate_json(body)
    points, following = collection.shard.scroll(
        edge.ScrollRequest(
            offset=request.offset,
            limit=request.limit or 10,
            filter=_filter(request.filter),
            with_payload=_payload(request.with_payload),
            with_vector=request.with_vector or False,
        )
    )
    return {"points": [_point(p) for p in points], "next_page_offset": following and str(following)}


def _query_batch(collection: _Collection, body: bytes) -> Any:
    requests = models.QueryRequestBatch.model_validate_json(body).searches
    answers = collection.shard.query_batch(edge.QueryBatchRequest([_query(request) for request in requests]))
    return [{"points": [{**_point(p), "score": p.score, "version": p.version} for p in answer]} for answer in answers]


def _query(request: Any) -> edge.QueryRequest:
    params = request.params
    assert isinstance(request.query, models.NearestQuery), "the peer knows nearest only"
    vector: Any = request.query.nearest
    return edge.QueryRequest(
        limit=request.limit or 10,
        query=edge.Query.Nearest(vector, using=request.using),
        filter=_filter(request.filter),
        params=params and _search_params(params),
        with_payload=_payload(request.with_payload),
        with_vector=request.with_vector or False,
    )


def _search_params(params: models.SearchParams) -> edge.SearchParams:
    quantization = params.quantization
    return edge.SearchParams(
        hnsw_ef=params.hnsw_ef,
        exact=bool(params.exact),
        quantization=edge.QuantizationSearchParams(
            bool(quantization.ignore), quantization.rescore, quantization.oversampling
        )
        if quantization
        else None,
    )


def _count(collection: _Collection, body: bytes) -> Any:
    request: Any = models.CountRequest.model_validate_json(body)
    return {"count": collection.shard.count(edge.CountRequest(exact=request.exact, filter=_filter(request.filter)))}


_ACTIONS: dict[str, Callable[[_Collection, bytes], Any]] = {
    "GET ": _describe,
    "PATCH ": _change,
    "PUT index": _index_field,
    "PUT points": _upsert,
    "POST points": _retrieve,
    "POST points/batch": _update_batch,
    "POST points/delete": _delete,
    "POST points/scroll": _scroll,
    "POST points/query/batch": _query_batch,
    "POST points/count": _count,
}


def _done() -> dict[str, Any]:
    return {"operation_id": time.monotonic_ns(), "status": "completed"}


def _payload(asked: Any) -> Any:
    """All or none of it, these fields, or all but these."""
    return edge.PayloadSelector.Exclude(asked.exclude) if isinstance(asked, models.PayloadSelectorExclude) else asked


def _point(point: Any) -> dict[str, Any]:
    return {"id": str(point.id), "payload": point.payload, "vector": point.vector}


# Filters: the JSON of a filter and Edge's classes have the same names


def _filter(condition: models.Filter | None) -> edge.Filter | None:
    if condition is None:
        return None
    assert not condition.should and not condition.min_should, "the peer knows must and must_not only"
    return edge.Filter(must=_conditions(condition.must), must_not=_conditions(condition.must_not))


def _conditions(conditions: Any) -> list[Any] | None:
    if conditions is None:
        return None
    return [_condition(condition) for condition in TypeAdapter(list[models.Condition]).validate_python(conditions)]


def _condition(condition: Any) -> Any:
    if isinstance(condition, models.Filter):
        return _filter(condition)
    if isinstance(condition, models.HasIdCondition):
        return edge.HasIdCondition({str(id) for id in condition.has_id})
    assert isinstance(condition, models.FieldCondition), condition
    if condition.geo_radius is not None:
        circle = condition.geo_radius
        centre = edge.GeoPoint(lon=circle.center.lon, lat=circle.center.lat)
        return edge.FieldCondition(condition.key, geo_radius=edge.GeoRadius(centre, circle.radius))
    if condition.range is not None:
        bounds = condition.range.model_dump(mode="json", exclude_none=True)
        of_numbers = isinstance(condition.range, models.Range)
        kind = edge.RangeFloat if of_numbers else edge.RangeDateTime
        return edge.FieldCondition(condition.key, range=kind(**bounds))
    if isinstance(condition.match, models.MatchAny):
        return edge.FieldCondition(condition.key, match=edge.MatchAny([str(value) for value in condition.match.any]))
    assert isinstance(condition.match, models.MatchValue), condition
    return edge.FieldCondition(condition.key, match=edge.MatchValue(condition.match.value))
