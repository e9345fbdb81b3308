"""The requests that a store makes of a Qdrant server, each repeated while that may help.

What is surprising: every request may be sent twice. A connection that drops after the server has done its work looks
the same as one that drops before, so all writes are idempotent and are repeated, with growing pauses, until
`retry_s` is over, the first request like any later one. What a repetition cannot mend (a wrong key, a missing
collection, a full disk) is reported at once. Where nothing has ever answered, a wrong address is likelier than a
server that is away; see `RequestFailure.patience_s`.
"""

import hashlib
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import filelock
import platformdirs
from qdrant_client import QdrantClient, models

from ..errors import StoreError, first_line
from .lock import take_lock
from .qdrant_address import Address
from .qdrant_failures import FAILURES, failure_of

TIMEOUT_S = 60.0  # of one request
RETRY_S = 120.0  # of one request with all its repetitions
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 15.0

# A gRPC channel pauses by itself before it connects again, by default for up to two minutes, and fails every request
# meanwhile; so short, a server that is back is found by the next repetition.
GRPC_OPTIONS = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 2000}

V = TypeVar("V")
WithPayload = bool | list[str] | models.PayloadSelectorExclude  # all or none of it, these fields, all but these


class Connection:
    """A server and, for a writer, the lock on one of its collections. Every method raises StoreError in one line."""

    def __init__(
        self,
        client: QdrantClient,
        location: str,
        *,
        lock: filelock.BaseFileLock | None = None,
        secret: str | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        """client: any QdrantClient, also `:memory:`; secret: a text that no message may show."""
        self.location = location
        self.retry_s = retry_s
        self._client = client
        self._lock = lock
        self._secret = secret
        self._answered = False  # whether a server ever did

    @classmethod
    def open(cls, address: Address, location: str, *, write: bool, wait_s: float) -> "Connection":
        """Nothing is asked of the server yet.

        wait_s  how long a writer waits for another one on this machine to end; LockedError after that
        """
        key = address.api_key()
        lock = _lock(address, location, wait_s) if write else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a key over http, which `api_key` has checked
                client = QdrantClient(
                    url=address.url,
                    prefix=address.prefix,
                    api_key=key,
                    prefer_grpc=address.grpc_port is not None,
                    grpc_port=address.grpc_port or 6334,
                    grpc_options=GRPC_OPTIONS,
                    timeout=int(TIMEOUT_S),
                    check_compatibility=False,
                )
            return cls(client, location, lock=lock, secret=key)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def close(self) -> None:
        """Safe to call twice."""
        self._client.close()
        if self._lock is not None:
            self._lock.release()

    # Collections

    def exists(self, collection: str) -> bool:
        return self._call("open the collection", lambda: self._client.collection_exists(collection))

    def create(
        self,
        collection: str,
        vectors: dict[str, models.VectorParams],
        *,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> None:
        """shards, replicas: None leaves it to the server."""
        try:
            self._call(
                "create the collection",
                lambda: self._client.create_collection(
                    collection,
                    vectors_config=vectors,
                    shard_number=shards,
                    replication_factor=replicas,
                    on_disk_payload=True,
                ),
            )
        except StoreError:
            if not self.exists(collection):  # else the first try had done it before its connection dropped
                raise

    def describe(self, collection: str) -> models.CollectionInfo:
        return self._call("read the collection's description", lambda: self._client.get_collection(collection))

    def set_indexing_threshold(self, collection: str, threshold_kb: int, *, patient: bool) -> None:
        """patient: whether a failure is worth repeating."""
        change = models.OptimizersConfigDiff(indexing_threshold=threshold_kb)
        self._call(
            "set when the server links vectors",
            lambda: self._client.update_collection(collection, optimizers_config=change),
            None if patient else 0.0,
        )

    def index_field(self, collection: str, field: str, params: Any) -> None:
        """params: one of models' classes of index parameters."""
        self._call(
            "make an index of a payload field",
            lambda: self._client.create_payload_index(collection, field, params, wait=True),
        )

    # Writes

    def upsert(self, collection: str, points: list[models.PointStruct]) -> None:
        self._call("write records", lambda: self._client.upsert(collection, points, wait=True))

    def set_payloads(self, collection: str, payloads: dict[str, dict[str, Any]]) -> None:
        """Replace fields of points that are there, by id."""
        operations = [
            models.SetPayloadOperation(set_payload=models.SetPayload(payload=payload, points=[id]))
            for id, payload in payloads.items()
        ]
        if operations:
            self._call("update records", lambda: self._client.batch_update_points(collection, operations, wait=True))

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        if ids:  # an empty request is refused
            points = models.PointIdsList(points=list(ids))
            self._call("delete records", lambda: self._client.delete(collection, points, wait=True))

    # Reads

    def retrieve(
        self, collection: str, ids: Sequence[str], *, payload: WithPayload = True, vectors: bool = False
    ) -> list[Any]:
        return self._call(
            "read records",
            lambda: self._client.retrieve(collection, ids, with_payload=payload, with_vectors=vectors),
        )

    def page(
        self,
        collection: str,
        offset: Any,
        limit: int,
        *,
        condition: models.Filter | None = None,
        payload: WithPayload = True,
        vectors: bool = False,
    ) -> tuple[list[Any], Any]:
        """So many points from `offset` on (None is the start), and the next page's offset (None after the last)."""
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

    def query(self, collection: str, requests: list[models.QueryRequest]) -> list[list[Any]]:
        answers = self._call("search", lambda: self._client.query_batch_points(collection, requests))
        return [answer.points for answer in answers]

    def count(self, collection: str, condition: models.Filter | None) -> int:
        return self._call(
            "count records", lambda: self._client.count(collection, count_filter=condition, exact=True)
        ).count

    def _call(self, doing: str, request: Callable[[], V], retry_s: float | None = None) -> V:
        """The request's answer; repeated while that may help, then StoreError in one line.

        retry_s  for so long at most; None: as for every request
        """
        started = time.monotonic()
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                answer = request()
                self._answered = True
                return answer
            except FAILURES as error:
                failure = failure_of(error)
            self._answered = self._answered or failure.answered
            limit_s = self.retry_s if retry_s is None else retry_s
            limit_s = limit_s if self._answered else min(limit_s, failure.patience_s)
            wait_s = max(pause_s * random.uniform(0.5, 1.0), failure.wait_s)
            if not failure.passing or time.monotonic() + wait_s > started + limit_s:
                message = f"cannot {doing} at {self.location}: {failure.reason}; {failure.next_step}"
                raise StoreError(message.replace(self._secret, "***") if self._secret else message)
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _lock(address: Address, location: str, wait_s: float) -> filelock.BaseFileLock:
    """One writer of a collection at a time on this machine: the lock lies in this user's cache."""
    place = f"{address.url}/{address.prefix or ''}/{address.collection}"
    name = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
    try:
        folder = Path(platformdirs.user_cache_dir("seenit", appauthor=False)) / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return take_lock(folder / f"{name}.lock", location, wait_s)
    except OSError as error:
        raise StoreError(f"cannot make a lock in the cache folder: {first_line(error)}; check it") from None
