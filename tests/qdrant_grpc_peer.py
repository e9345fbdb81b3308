"""Qdrant's gRPC for exactly what `QdrantStore` calls, in front of a `QdrantPeer`, which does the work.

The services are the ones that qdrant-client generates from Qdrant's published protocol. Each request is translated by
qdrant-client into the REST request of the same meaning. Each entry of `faults` spoils one request, in order.

    "drop"            ends before anything is done, with the status that a lost connection gives the client
    "drop after"      the work is done, then likewise
    "stall"           no answer for the peer's `stall_s`
    "half"            the first half of a batch is done, then INTERNAL, as of a node that dies at it
    grpc.StatusCode   that status, nothing is done
    None              it is served as it should be
    GrpcRefusal       likewise, with words and trailing metadata of its own
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from pydantic import BaseModel
from qdrant_client import grpc as protocol
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc
from qdrant_client.http import models
from qdrant_peer import QdrantPeer, half_of

_CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND, 409: grpc.StatusCode.ALREADY_EXISTS}


@dataclass(frozen=True)
class GrpcRefusal:
    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str], ...] = ()


class QdrantGrpcPeer:
    """`with QdrantGrpcPeer(peer) as grpc_peer:` serves the peer's collections at `grpc_peer.port` too."""

    def __init__(self, peer: QdrantPeer) -> None:
        self.peer = peer
        self.faults: list[str | grpc.StatusCode | GrpcRefusal | None] = []
        self.calls: list[str] = []  # "METHOD path" of the REST request that each call means, spoiled ones too
        self.port = self._bind(0)

    def __enter__(self) -> "QdrantGrpcPeer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _bind(self, port: int) -> int:
        self._server = grpc.server(ThreadPoolExecutor(4))
        collections_service_pb2_grpc.add_CollectionsServicer_to_server(_Collections(self), self._server)
        points_service_pb2_grpc.add_PointsServicer_to_server(_Points(self), self._server)
        return self._server.add_insecure_port(f"127.0.0.1:{port}")

    def go_away(self) -> None:
        """End the connections and refuse new ones."""
        self._server.stop(None).wait()

    def come_back(self) -> None:
        """Serve again what was held before, at the same port."""
        self._bind(self.port)
        self._server.start()

    def ask(self, context: grpc.ServicerContext, method: str, path: str, body: BaseModel | None = None) -> Any:
        """The result of a REST request; a failure ends the call with the status of the same meaning."""
        self.calls.append(f"{method} {path}")
        fault = self.faults.pop(0) if self.faults else None
        if fault == "stall":
            self.peer.stall()
        if isinstance(fault, grpc.StatusCode):
            fault = GrpcRefusal(fault, "told to fail")
        if isinstance(fault, GrpcRefusal):
            context.set_trailing_metadata(fault.trailing)
            context.abort(fault.code, fault.details)
        if fault in ("drop", "stall"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        key = dict(context.invocation_metadata()).get("api-key")
        if self.peer.api_key is not None and key != self.peer.api_key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key or an Authorization bearer token")
        data = b"" if body is None else body.model_dump_json(exclude_none=True).encode()
        status, answer = self.peer.answer(method, f"/collections/{path}", half_of(data) if fault == "half" else data)
        if status != 200:
            context.abort(_CODES[status], answer["status"]["error"])
        if fault == "half":
            context.abort(grpc.StatusCode.INTERNAL, "Service internal error: the node went away")
        if fault == "drop after":
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return answer["result"]


class _Collections(collections_service_pb2_grpc.CollectionsServicer):
    def __init__(self, peer: QdrantGrpcPeer) -> None:
        self._peer = peer

    def CollectionExists(self, request: Any, context: Any) -> Any:
        result = self._peer.ask(context, "GET", f"{request.collection_name}/exists")
        return protocol.CollectionExistsResponse(result=protocol.CollectionExists(**result))

    def Create(self, request: Any, context: Any) -> Any:
        vectors = (
            GrpcToRest.convert_vectors_config(request.vectors_config) if request.HasField("vectors_config") else {}
        )
        body = models.CreateCollection(
            vectors=vectors,
            on_disk_payload=request.on_disk_payload,
            shard_number=request.shard_number if request.HasField("shard_number") else None,
            replication_factor=request.replication_factor if request.HasField("replication_factor") else None,
        )
        self._peer.ask(context, "PUT", request.collection_name, body)
        return protocol.CollectionOperationResponse(result=True)

    def Update(self, request: Any, context: Any) -> Any:
        change = GrpcToRest.convert_optimizers_config_diff(request.optimizers_config)
        body = models.UpdateCollection(optimizers_config=change)
        self._peer.ask(context, "PATCH", request.collection_name, body)
        return protocol.CollectionOperationResponse(result=True)

    def Get(self, request: Any, context: Any) -> Any:
        result = self._peer.ask(context, "GET", request.collection_name)
        info = RestToGrpc.convert_collection_info(models.CollectionInfo.model_validate(result))
        return protocol.GetCollectionInfoResponse(result=info)


class _Points(points_service_pb2_grpc.PointsServicer):
    def __init__(self, peer: QdrantGrpcPeer) -> None:
        self._peer = peer

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        kind = protocol.FieldType.Name(request.field_type).removeprefix("FieldType").lower()
        schema: Any = models.PayloadSchemaType(kind)
        if request.HasField("field_index_params"):
            schema = GrpcToRest.convert_payload_schema_params(request.field_index_params)
        body = models.CreateFieldIndex(field_name=request.field_name, field_schema=schema)
        self._peer.ask(context, "PUT", f"{request.collection_name}/index", body)
        return _updated()

    def Upsert(self, request: Any, context: Any) -> Any:
        points = [
            models.PointStruct(
                id=GrpcToRest.convert_point_id(point.id),
                vector=GrpcToRest.convert_vectors(point.vectors) if point.vectors.WhichOneof("vectors_options") else {},
                payload=GrpcToRest.convert_payload(point.payload),
            )
            for point in request.points
        ]
        self._peer.ask(context, "PUT", f"{request.collection_name}/points", models.PointsList(points=points))
        return _updated()

    def UpdateBatch(self, request: Any, context: Any) -> Any:
        changes = [operation.set_payload for operation in request.operations]
        operations: list[Any] = [
            models.SetPayloadOperation(
                set_payload=models.SetPayload(
                    payload=GrpcToRest.convert_payload(change.payload), points=_ids(change.points_selector.points.ids)
                )
            )
            for change in changes
        ]
        body = models.UpdateOperations(operations=operations)
        self._peer.ask(context, "POST", f"{request.collection_name}/points/batch", body)
        return protocol.UpdateBatchResponse(result=[_updated().result for _ in operations])

    def Delete(self, request: Any, context: Any) -> Any:
        body = models.PointIdsList(points=_ids(request.points.points.ids))
        self._peer.ask(context, "POST", f"{request.collection_name}/points/delete", body)
        return _updated()

    def Get(self, request: Any, context: Any) -> Any:
        body = models.PointRequest(ids=_ids(request.ids), **_wanted(request))
        result = self._peer.ask(context, "POST", f"{request.collection_name}/points", body)
        return protocol.GetResponse(result=[protocol.RetrievedPoint(**_point(point)) for point in result])

    def Scroll(self, request: Any, context: Any) -> Any:
        body = models.ScrollRequest(
            offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
            limit=request.limit,
            filter=_filter(request),
            **_wanted(request),
        )
        result = self._peer.ask(context, "POST", f"{request.collection_name}/points/scroll", body)
        following = result["next_page_offset"]
        return protocol.ScrollResponse(
            result=[protocol.RetrievedPoint(**_point(point)) for point in result["points"]],
            next_page_offset=following and protocol.PointId(uuid=following),
        )

    def Count(self, request: Any, context: Any) -> Any:
        body = models.CountRequest(exact=request.exact, filter=_filter(request))
        result = self._peer.ask(context, "POST", f"{request.collection_name}/points/count", body)
        return protocol.CountResponse(result=protocol.CountResult(**result))

    def QueryBatch(self, request: Any, context: Any) -> Any:
        body = models.QueryRequestBatch(
            searches=[GrpcToRest.convert_query_points(query) for query in request.query_points]
        )
        result = self._peer.ask(context, "POST", f"{request.collection_name}/points/query/batch", body)
        answers = [
            protocol.BatchResult(
                result=[
                    protocol.ScoredPoint(**_point(point), score=point["score"], version=point["version"])
                    for point in answer["points"]
                ]
            )
            for answer in result
        ]
        return protocol.QueryBatchResponse(result=answers)


def _updated() -> Any:
    return protocol.PointsOperationResponse(
        result=protocol.UpdateResult(operation_id=0, status=protocol.UpdateStatus.Completed)
    )


def _ids(ids: Any) -> list[Any]:
    return [GrpcToRest.convert_point_id(id) for id in ids]


def _filter(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def _wanted(request: Any) -> dict[str, Any]:
    return {
        "with_payload": GrpcToRest.convert_with_payload_selector(request.with_payload),
        "with_vector": GrpcToRest.convert_with_vectors_selector(request.with_vectors),
    }


def _point(point: dict[str, Any]) -> dict[str, Any]:
    vectors = RestToGrpc.convert_vector_struct_output(point["vector"]) if point["vector"] else None
    return {
        "id": protocol.PointId(uuid=point["id"]),
        "payload": RestToGrpc.convert_payload(point["payload"] or {}),
        "vectors": vectors,
    }
