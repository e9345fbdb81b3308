"""Two Qdrant nodes behind one address, as behind a balancer, with an engine each: one can go away and come back.

What it keeps of a cluster's rules (see Qdrant's guide to distributed deployment):

    replicas=2   both nodes hold every point. A write reaches the nodes that are up; one that missed any is not read
                 until it has been brought up to date from the other
    replicas=1   each node holds one of two shards, by the point's id. Requests that need a node that is away fail with
                 500, those that do not are answered
    collections and indexes are made by both nodes or not at all
"""

import json
from typing import Any

import qdrant_edge as edge
from pydantic import ValidationError
from qdrant_client.http import models
from qdrant_peer import _ACTIONS, NOT_FOUND, QdrantPeer, _Collection, _done, _ok, asked_of

AWAY = "Service internal error: The replica set for shard {} has no active replica"
NO_CONSENSUS = "Service internal error: Waiting for consensus operation commit failed. Timeout set at: 10 seconds"
NODES = (0, 1)
_OF_ALL = ("PUT ", "PATCH ", "PUT index")
_WRITES = ("PUT points", "POST points/batch", "POST points/delete")


class NodeAway(Exception):
    """A node that a request needs."""


class QdrantCluster(QdrantPeer):
    """`with QdrantCluster() as cluster:` serves at `cluster.url`; `replicas` is what collections get that name none."""

    def __init__(self, replicas: int = 1) -> None:
        super().__init__()
        self.replicas = replicas
        self.up = {0, 1}
        self.read_from: list[int] = []  # the node of each read of a collection that both hold
        self._behind = set[int]()  # nodes that missed a write
        self._held: tuple[dict[str, _Collection], dict[str, _Collection]] = ({}, {})

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for node in NODES:
            for collection in self._held[node].values():
                collection.shard.close()

    def lose(self, node: int) -> None:
        """The node is gone from the next request on."""
        with self._lock:
            self.up.discard(node)

    def bring_back(self, node: int, *, up_to_date: bool = True) -> None:
        """The node is there again; with what it missed, unless that is still under way."""
        with self._lock:
            self.up.add(node)
            if up_to_date and node in self._behind:
                for name, collection in self._held[node].items():
                    if self._copies(collection) == 2:
                        _make_equal(collection, self._held[1 - node][name])
                self._behind.discard(node)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if (asked := asked_of(method, path)) is None:
            return NOT_FOUND
        name, action = asked
        with self._lock:
            try:
                return self._answer(name, action, body)
            except NodeAway as error:
                return 500, {"status": {"error": str(error)}}
            except ValidationError as error:
                return 400, {"status": {"error": f"Format error in JSON body: {error}"}}
            except Exception as error:  # Edge raises bare Exceptions; a server answers them with 400
                return 400, {"status": {"error": f"Wrong input: {error}"}}

    def _answer(self, name: str, action: str, body: bytes) -> tuple[int, Any]:
        there = name in self._held[0]
        if action == "GET exists":
            return _ok({"exists": there})
        if action in _OF_ALL and len(self.up) < len(NODES):
            raise NodeAway(NO_CONSENSUS)
        if action == "PUT ":
            if there:
                return 409, {"status": {"error": f"Wrong input: Collection `{name}` already exists!"}}
            request = models.CreateCollection.model_validate_json(body)
            for node in NODES:
                self._held[node][name] = _Collection(self._folder / f"node {node} {name}", request)
            return _ok(True)
        if not there:
            return 404, {"status": {"error": f"Not found: Collection `{name}` doesn't exist!"}}
        held = [self._held[node][name] for node in NODES]
        if action in _OF_ALL:
            answers = [_ACTIONS[action](collection, body) for collection in held]
            return _ok(answers[0])
        if self._copies(held[0]) == 2:
            return _ok(self._of_copies(held, action, body))
        return _ok(self._of_shards(held, action, body))

    def _copies(self, collection: _Collection) -> int:
        return collection.request.replication_factor or self.replicas

    def _of_copies(self, held: list[_Collection], action: str, body: bytes) -> Any:
        current = self.up - self._behind
        if not current:
            raise NodeAway(AWAY.format(0))
        if action not in _WRITES:
            self.read_from.append(min(current))
            return _ACTIONS[action](held[min(current)], body)
        self._behind |= set(NODES) - self.up
        answers = [_ACTIONS[action](held[node], body) for node in sorted(current)]
        return answers[0]

    def _of_shards(self, held: list[_Collection], action: str, body: bytes) -> Any:
        if action in _WRITES:
            parts = [part_of(body, node) for node in NODES]
            self._need(*(node for node in NODES if parts[node] is not None))
            for node, part in zip(NODES, parts, strict=True):
                if part is not None:
                    _ACTIONS[action](held[node], part)
            return [_done()] * len(json.loads(body).get("operations", [])) or _done()
        self._need(*NODES)
        answers = [_ACTIONS[action](collection, body) for collection in held]
        return _MERGED[action](answers, json.loads(body) if body else {})

    def _need(self, *nodes: int) -> None:
        for node in nodes:
            if node not in self.up:
                raise NodeAway(AWAY.format(node))


def node_of(id: str) -> int:
    """The node of a point in a collection of two shards."""
    return int(id[-1], 16) % 2


def part_of(body: bytes, node: int) -> bytes | None:
    """A write as far as it concerns one of two shards; None where it does not."""
    request = json.loads(body)
    if "operations" in request:
        kept = []
        for operation in request["operations"]:
            change = operation["set_payload"]
            ids = [id for id in change["points"] if node_of(str(id)) == node]
            if ids:
                kept.append({"set_payload": {**change, "points": ids}})
        return json.dumps({"operations": kept}).encode() if kept else None
    points = [one for one in request["points"] if node_of(str(one["id"] if isinstance(one, dict) else one)) == node]
    return json.dumps({**request, "points": points}).encode() if points else None


def _make_equal(collection: _Collection, other: _Collection) -> None:
    """All points of `other`, as a transfer of a shard does it."""
    offset: Any = None
    wanted = set[str]()
    while True:
        request = edge.ScrollRequest(offset=offset, limit=100, with_payload=True, with_vector=True)
        points, offset = other.shard.scroll(request)
        wanted |= {str(point.id) for point in points}
        if points:
            made = [edge.Point(str(point.id), point.vector or {}, point.payload) for point in points]
            collection.shard.update(edge.UpdateOperation.upsert_points(made))
        if offset is None:
            break
    there, _ = collection.shard.scroll(edge.ScrollRequest(limit=100_000))
    gone: list[Any] = [str(point.id) for point in there if str(point.id) not in wanted]
    if gone:
        collection.shard.update(edge.UpdateOperation.delete_points(gone))


# ---- answers of two shards as one ----


def _described(answers: list[Any], request: Any) -> Any:
    for count in ("points_count", "indexed_vectors_count"):
        answers[0][count] = sum(answer[count] or 0 for answer in answers)
    return answers[0]


def _scrolled(answers: list[Any], request: Any) -> Any:
    points = sorted((point for answer in answers for point in answer["points"]), key=lambda point: point["id"])
    limit = request.get("limit") or 10
    following = [answer["next_page_offset"] for answer in answers if answer["next_page_offset"] is not None]
    following += [point["id"] for point in points[limit:]]
    return {"points": points[:limit], "next_page_offset": min(following, default=None)}


def _found(answers: list[Any], request: Any) -> Any:
    merged = []
    for search, parts in zip(request["searches"], zip(*answers, strict=True), strict=True):
        points = [point for part in parts for point in part["points"]]
        points.sort(key=lambda point: -point["score"])
        merged.append({"points": points[: search.get("limit") or 10]})
    return merged


_MERGED = {
    "GET ": _described,
    "POST points": lambda answers, request: answers[0] + answers[1],
    "POST points/scroll": _scrolled,
    "POST points/query/batch": _found,
    "POST points/count": lambda answers, request: {"count": sum(answer["count"] for answer in answers)},
}
