"""What holds for a server's store alone: failures, repetitions, the key, addresses, locks."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from cutting_proxy import CuttingProxy
from grpc import StatusCode
from qdrant_client import QdrantClient, models
from qdrant_grpc_peer import GrpcRefusal, QdrantGrpcPeer
from qdrant_peer import NO_SPACE, QdrantPeer, Refusal
from store_kinds import GALLERY, ids
from stored_records import RECORDS, SCHEMA, make_record, unit

from indexer.errors import LockedError, SeenitError, StoreError
from indexer.store import qdrant_connection, qdrant_failures
from indexer.store.open import open_store
from indexer.store.protocol import Schema, Store
from indexer.store.qdrant_address import Address


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


@pytest.mark.slow
def test_passing_failures_are_repeated(peer: QdrantPeer) -> None:
    """Every write and every read, each first spoiled in another way, ends as if nothing had happened."""
    peer.stall_s = 1.5
    store = open_store(f"{peer.url}/photos", write=True)
    peer.faults[:] = ["drop after", 500, "drop", 503]
    store.write_blob("manifest.json", b"{}")
    peer.faults[:] = ["drop", "drop after", 500, "drop after"]
    store.ensure(SCHEMA)
    peer.faults[:] = ["drop after", 429, "stall", 502]
    store.upsert(RECORDS)
    peer.faults[:] = ["drop", 503]
    store.set_tags({RECORDS[0].id: ("a",)})
    peer.faults[:] = ["drop after"]
    store.delete([RECORDS[1].id])
    peer.faults[:] = [500, "drop"]
    assert ids(list(store.scroll())) == ids(RECORDS) - {RECORDS[1].id}
    peer.faults[:] = ["drop"]
    assert store.search(GALLERY[2:3], 1)[0][0].id == RECORDS[2].id
    peer.faults[:] = ["drop"]
    assert store.read_blob("manifest.json") == b"{}"
    assert peer.faults == []
    store.close()


@pytest.mark.slow
def test_a_server_that_stays_away_is_given_up_in_bounded_time(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store._connection.retry_s = 0.5  # type: ignore[attr-defined]
    peer.faults[:] = [503] * 1000
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot write records at .*photos: the server failed .503.*log") as caught:
        store.upsert(RECORDS)
    assert time.monotonic() - start < 30 and "\n" not in str(caught.value)
    assert 3 < 1000 - len(peer.faults) < 100  # it was tried again, with pauses
    peer.faults.clear()
    store.close()


@pytest.mark.long
@pytest.mark.parametrize("write", [True, False])
def test_opening_is_repeated_like_any_later_request(peer: QdrantPeer, write: bool) -> None:
    """However short a writer's patience with another writer is."""
    store = open_store(f"{peer.url}/photos", write=True)
    store.write_blob("manifest.json", b"{}")
    store.close()
    peer.stall_s = 1.5
    peer.faults[:] = [503, "drop", 500, "stall", 429, 502]
    store = open_store(f"{peer.url}/photos", write=write, wait_s=0)
    assert peer.faults == [] and store.read_blob("manifest.json") == b"{}"
    store.close()


@pytest.mark.slow
def test_a_server_that_is_being_started_is_waited_for(peer: QdrantPeer) -> None:
    peer.go_away()
    later = threading.Timer(0.4, peer.come_back)
    later.start()
    store = open_store(f"{peer.url}/photos", write=True, wait_s=0)
    later.join()
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("query", ["", "?grpc=1"])
def test_where_nothing_ever_answered_a_refusal_is_told_soon(
    peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr(qdrant_failures, "UNANSWERED_S", 0.5)
    pauses: list[float] = []
    sleep = time.sleep

    def counted(pause_s: float) -> None:
        pauses.append(pause_s)
        sleep(pause_s)

    monkeypatch.setattr(time, "sleep", counted)
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"not reachable \(.*refused\); check the address and that the server runs"):
        open_store(f"http://127.0.0.1:1/photos{query}")
    assert pauses and time.monotonic() - start < 30  # it was tried again, and not for as long as a server that answered


def test_a_name_that_is_not_known_is_told_at_once(peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unknown(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    store = open_store(f"{peer.url}/photos", write=True)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(StoreError, match=r"no such host \(.*not known\); check the address"):
        open_store("http://qdrant/photos")
    assert len(asked) == 1
    # A server that has answered before has no wrong address: its name is asked for again.
    monkeypatch.setattr(store._connection, "retry_s", 0.2)  # type: ignore[attr-defined]
    store._connection._client.close()  # type: ignore[attr-defined]
    store._connection._client = QdrantClient("http://qdrant", check_compatibility=False)  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="no such host"):
        store.blob_names()
    assert len(asked) > 3
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [1, 2])
def test_a_server_that_is_restarted_in_mid_scroll(peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """It answers nothing, refuses connections for a while, and comes back: every record is read once."""
    monkeypatch.setattr(qdrant_failures, "UNANSWERED_S", 0.0)  # does not hold once a server has answered
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    records = store.scroll(batch=7)
    read = [next(records) for _ in range(7 * page)]
    peer.go_away()
    later = threading.Timer(0.3, peer.come_back)
    later.start()
    read += records
    later.join()
    assert [record.id for record in read] == sorted(ids(RECORDS))
    store.close()


@pytest.mark.slow
def test_a_server_that_goes_for_good_in_mid_scroll_leaves_no_shorter_answer(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    records = store.scroll(batch=7)
    next(records)
    peer.go_away()
    store._connection.retry_s = 0.3  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"cannot read records at .*: not reachable"):
        list(records)
    with pytest.raises(StoreError, match=r"cannot read records at .*: not reachable"):
        list(store.list_files())
    store.close()


@pytest.mark.slow
def test_a_batch_that_was_half_applied_is_made_whole(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    peer.faults[:] = ["half", "half"]
    store.upsert(RECORDS)
    assert [r.patches for r in store.retrieve([r.id for r in RECORDS], vectors=True)] == [r.patches for r in RECORDS]
    tags: dict[str, tuple[str, ...]] = {record.id: (f"tag {number}",) for number, record in enumerate(RECORDS)}
    store.count()
    peer.faults[:] = [None, "half", "half"]  # first comes the question which records are there
    store.set_tags(tags)
    assert {record.id: record.tags for record in store.scroll()} == tags
    peer.faults[:] = ["half"]
    store.delete([record.id for record in RECORDS[:20]])
    assert ids(list(store.scroll())) == ids(RECORDS[20:]) and peer.faults == []
    store.close()


@pytest.mark.slow
def test_a_batch_that_stays_half_applied_is_an_error_and_the_next_run_mends_it(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store._connection.retry_s = 0.3  # type: ignore[attr-defined]
    peer.faults[:] = ["half"] * 100
    with pytest.raises(StoreError, match=r"cannot write records at .*the node went away"):
        store.upsert(RECORDS)
    peer.faults.clear()
    assert store.count() == 15
    store.upsert(RECORDS)
    assert ids(list(store.scroll(vectors=True))) == ids(RECORDS)
    store.close()


NO_REPLICA = "Service internal error: The replica set for shard 1 on peer 2 has no active replica"


@pytest.mark.slow
def test_a_shard_without_a_live_replica_is_waited_for(peer: QdrantPeer) -> None:
    """A node that goes away in mid-scroll takes its shards with it until another one has taken them over."""
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    records = store.scroll(batch=7)
    read = [next(records) for _ in range(10)]
    peer.faults[:] = [Refusal(500, NO_REPLICA), Refusal(503, "Service Unavailable"), Refusal(500, NO_REPLICA)]
    read += records
    assert [record.id for record in read] == sorted(ids(RECORDS)) and peer.faults == []
    peer.faults[:] = [Refusal(500, NO_REPLICA)] * 2
    assert store.search(GALLERY[2:3], 1)[0][0].id == RECORDS[2].id
    store._connection.retry_s = 0.2  # type: ignore[attr-defined]
    peer.refuse = {"POST": 500}
    with pytest.raises(StoreError, match=r"cannot search at .*: the server failed \(500"):
        store.search(GALLERY[2:3], 1)
    store.close()


@pytest.mark.slow
def test_a_slow_answer_is_waited_for(peer: QdrantPeer) -> None:
    """It takes longer than a request may be without any answer, but something of it keeps coming."""
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    store.count()
    before = len(peer.requests)
    peer.faults[:] = ["drip"]
    assert len(store.patches([record.id for record in RECORDS])) == 30
    assert len(peer.requests) == before + 1, "it was not asked for again"
    store.close()


def test_what_a_server_forbids_is_no_wrong_key(peer: QdrantPeer) -> None:
    limit = "Strict mode error: Max collection vector size limit set to 1000000 bytes"
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    peer.faults[:] = [Refusal(403, limit)]
    with pytest.raises(StoreError, match=r"the server forbids it \(403: .*Max collection.*; set .* raise the server's"):
        store.upsert(RECORDS)
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Refusal(500, NO_SPACE), Refusal(507, "Insufficient Storage")])
def test_a_servers_full_disk_is_told_at_once(peer: QdrantPeer, fault: Refusal) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    for write in (lambda: store.upsert(RECORDS), lambda: store.write_blob("manifest.json", b"{}")):
        before = len(peer.requests)
        peer.faults[:] = [fault] * 10
        with pytest.raises(StoreError, match=r"the server's disk is full \(.*\); make room on it") as caught:
            write()
        assert len(peer.requests) == before + 1 and "\n" not in str(caught.value)
    peer.faults.clear()
    store.upsert(RECORDS)  # once there is room
    assert store.count() == 30
    store.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each repetition was waited for; nobody really waits."""
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(qdrant_connection, "time", clock)
    return pauses


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_is_left_alone_for_as_long_as_it_asks(peer: QdrantPeer, pauses: list[float], status: int) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    peer.faults[:] = [Refusal(status, "busy", {"retry-after": "7"}), Refusal(status, "busy", {"retry-after": "40"})]
    assert store.count() == 0 and pauses == [7.0, 40.0]
    pauses.clear()
    for unreadable in ("Fri, 27 Nov 2026 02:00:00 GMT", "soon", "-5", ""):
        peer.faults[:] = [Refusal(status, "busy", {"retry-after": unreadable})]
        assert store.count() == 0
    assert len(pauses) == 4 and all(0 < pause < 1 for pause in pauses)
    pauses.clear()
    peer.faults[:] = [Refusal(status, "busy", {"retry-after": "3600"})] * 2
    with pytest.raises(StoreError, match=str(status)):  # longer than a request is repeated
        store.count()
    assert pauses == [] and len(peer.faults) == 1
    store.close()


@pytest.fixture
def proxy(peer: QdrantPeer) -> Iterator[CuttingProxy]:
    with CuttingProxy(urlsplit(peer.url).port or 0) as proxy:
        yield proxy


def check_cut_connections(store: Store, proxy: CuttingProxy) -> None:
    """Writes and reads whose connection is cut within the request and within the answer."""
    store.ensure(SCHEMA)
    proxy.cut_request = 20_000  # of 50,000
    store.upsert(RECORDS)
    assert proxy.cuts == 1 and store.count() == 30
    proxy.cut_answer = 0
    store.upsert([replace(RECORDS[0], tags=("new",))])
    assert proxy.cuts == 2 and store.retrieve([RECORDS[0].id])[0].tags == ("new",)
    packed = {record.id: record.patches for record in RECORDS}
    proxy.cut_answer = 20_000
    assert {record.id: record.patches for record in store.scroll(vectors=True)} == packed and proxy.cuts == 3
    proxy.cut_answer = 20_000
    assert store.patches([record.id for record in RECORDS]) == packed and proxy.cuts == 4
    proxy.cut_answer = 100
    assert store.search(GALLERY[2:3], 30)[0][0].id == RECORDS[2].id and proxy.cuts == 5


@pytest.mark.slow
def test_connections_that_are_cut_half_way(proxy: CuttingProxy) -> None:
    store = open_store(f"http://127.0.0.1:{proxy.port}/photos", write=True)
    check_cut_connections(store, proxy)
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 403, 404])
def test_lasting_failures_are_not_repeated(peer: QdrantPeer, status: int) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    before = len(peer.requests)
    peer.faults[:] = [status] * 10
    with pytest.raises(StoreError, match=str(status)):
        store.count()
    assert len(peer.requests) == before + 1
    store.close()


def test_the_key_is_sent_and_never_shown(
    peer: QdrantPeer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    key = "very-secret-key"
    peer.api_key = key
    monkeypatch.setenv("QDRANT_API_KEY", "wrong-" + key)
    with pytest.raises(StoreError, match=r"refuses the API key.*SEENIT_API_KEY") as caught:
        open_store(f"{peer.url}/photos", write=True)
    monkeypatch.setenv("SEENIT_API_KEY", key)
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    peer.faults[:] = [400]
    with pytest.raises(StoreError):
        store.count()
    shown = (
        f"{caught.value} {store!r} {vars(store)['location']} {capfd.readouterr()} {[str(w.message) for w in recwarn]}"
    )
    assert key not in shown
    store.close()
    with pytest.raises(StoreError, match="unencrypted; use https"):
        open_store("http://qdrant.example.com/photos")


@pytest.mark.slow
def test_requests_are_limited_in_bytes(peer: QdrantPeer) -> None:
    rng = np.random.default_rng(0)
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(Schema(8192))
    vectors, packed = unit(rng, 60, 8192), rng.bytes(400_000)
    store.upsert([replace(make_record(n), global_vector=vectors[n], patches=None) for n in range(60)])
    assert store.count() == 60 and 4_000_000 < peer.largest_body < 14_000_000  # numbers are the most of it
    peer.largest_body = 0
    store.upsert([replace(make_record(n), global_vector=vectors[n], patches=packed) for n in range(20)])
    assert 1_000_000 < peer.largest_body < 4_000_000  # text is
    assert store.patches([make_record(n).id for n in range(60)]) == {make_record(n).id: packed for n in range(20)}
    store.close()


def test_patches_of_a_query_are_one_request(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    assert store.count() == 30  # the first read also asks whether the collection is there
    before = len(peer.requests)
    assert len(store.patches([record.id for record in RECORDS])) == 30 and len(peer.requests) == before + 1
    store.close()


@pytest.mark.slow
def test_a_batch_of_searches_is_one_request(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    store.count()
    queries = unit(np.random.default_rng(0), 128, 16)
    before = len(peer.requests)
    together = store.search(queries, 100)
    assert len(peer.requests) == before + 1
    alone = [store.search(query[None], 100)[0] for query in queries[:5]]
    assert [[hit.id for hit in hits] for hits in together[:5]] == [[hit.id for hit in hits] for hits in alone]
    store.close()


@pytest.mark.slow
def test_one_writer_per_server_collection(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    with pytest.raises(LockedError, match=rf"another process .*process {os.getpid()}"):
        open_store(f"{peer.url}/photos?grpc=6334", write=True, wait_s=0.05)
    open_store(f"{peer.url}/others", write=True).close()
    store.ensure(SCHEMA)
    reader = open_store(f"{peer.url}/photos")  # readers do not wait
    reader.close()
    store.close()


def test_no_index_at_a_server_where_there_is_none(peer: QdrantPeer) -> None:
    with pytest.raises(SeenitError, match=r"no index at .*; create one with"):
        open_store(f"{peer.url}/photos")
    client = QdrantClient(peer.url, check_compatibility=False)
    client.create_collection("photos", {"text": models.VectorParams(size=4, distance=models.Distance.COSINE)})
    client.close()
    for write in (True, False):
        with pytest.raises(StoreError, match="not made by seenit"):
            open_store(f"{peer.url}/photos", write=write)


def test_a_collection_of_another_version_is_told(peer: QdrantPeer) -> None:
    dense = models.VectorParams(size=16, distance=models.Distance.COSINE)
    client = QdrantClient(peer.url, check_compatibility=False)
    client.create_collection("photos", {"global": dense, "patches": dense})
    client.close()
    for write in (True, False):
        with pytest.raises(
            StoreError, match=r"photos was made by another version of seenit; remove it and index again"
        ):
            open_store(f"{peer.url}/photos", write=write)


def test_addresses() -> None:
    assert Address.parse("http://h/photos") == Address("http://h:6333", None, "photos", None)
    assert Address.parse("https://h/a/b/photos?grpc=6334") == Address("https://h:443", "a/b", "photos", 6334)
    assert Address.parse("http://[::1]:7000/x") == Address("http://[::1]:7000", None, "x", None)
    for wrong in ("http://h", "http://h/", "http:///x", "http://h:port/x", "http://h/x?grpc=y", "http://h/a b"):
        with pytest.raises(SeenitError):
            Address.parse(wrong)
    with pytest.raises(SeenitError) as caught:
        Address.parse("http://user:hunter2@h/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["AAA", "A A=", "é===", 5, ["AAAA"]])
def test_patches_that_are_no_base64_are_told(peer: QdrantPeer, text: object) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS[:2])
    store._set_payload({RECORDS[0].id: {"patches": text}})  # type: ignore[attr-defined]
    for read in (
        lambda: store.patches([RECORDS[0].id]),
        lambda: store.retrieve([RECORDS[0].id], vectors=True),
        lambda: list(store.scroll(vectors=True)),
    ):
        with pytest.raises(StoreError, match=f"record {RECORDS[0].id} in .* is not one that seenit wrote"):
            read()
    assert store.retrieve([RECORDS[0].id])[0].files == RECORDS[0].files  # what does not need them goes on
    store.close()


# Over gRPC


@pytest.fixture
def grpc_peer(peer: QdrantPeer) -> Iterator[QdrantGrpcPeer]:
    with QdrantGrpcPeer(peer) as grpc_peer:
        yield grpc_peer


@pytest.mark.slow
def test_passing_failures_over_grpc_are_repeated(peer: QdrantPeer, grpc_peer: QdrantGrpcPeer) -> None:
    peer.stall_s = 1.5
    store = open_store(f"{peer.url}/photos?grpc={grpc_peer.port}", write=True)
    grpc_peer.faults[:] = [StatusCode.UNAVAILABLE, "drop after", StatusCode.RESOURCE_EXHAUSTED]
    store.ensure(SCHEMA)
    grpc_peer.faults[:] = ["drop after", "stall", StatusCode.DEADLINE_EXCEEDED]
    store.upsert(RECORDS)
    grpc_peer.faults[:] = ["drop", StatusCode.UNAVAILABLE]
    assert ids(list(store.scroll())) == ids(RECORDS)
    grpc_peer.faults[:] = [StatusCode.RESOURCE_EXHAUSTED]
    assert store.search(GALLERY[2:3], 1)[0][0].id == RECORDS[2].id
    assert grpc_peer.faults == [] and not [call for call in peer.requests if "points" in call]  # none went over HTTP
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("code", [StatusCode.UNAUTHENTICATED, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND])
def test_lasting_failures_over_grpc_are_not_repeated(
    peer: QdrantPeer, grpc_peer: QdrantGrpcPeer, code: StatusCode
) -> None:
    store = open_store(f"{peer.url}/photos?grpc={grpc_peer.port}", write=True)
    store.ensure(SCHEMA)
    before = len(grpc_peer.calls)
    grpc_peer.faults[:] = [code] * 10
    with pytest.raises(StoreError, match=r"^cannot .* at .*photos: ") as caught:
        store.count()
    assert len(grpc_peer.calls) == before + 1 and "\n" not in str(caught.value)
    store.close()


@pytest.mark.slow
def test_grpc_connections_that_are_cut_half_way(peer: QdrantPeer, grpc_peer: QdrantGrpcPeer) -> None:
    with CuttingProxy(grpc_peer.port) as proxy:
        store = open_store(f"{peer.url}/photos?grpc={proxy.port}", write=True)
        check_cut_connections(store, proxy)
        store.close()


def test_a_grpc_server_is_left_alone_for_as_long_as_it_asks(
    peer: QdrantPeer, grpc_peer: QdrantGrpcPeer, pauses: list[float]
) -> None:
    store = open_store(f"{peer.url}/photos?grpc={grpc_peer.port}", write=True)
    store.ensure(SCHEMA)
    grpc_peer.faults[:] = [GrpcRefusal(StatusCode.RESOURCE_EXHAUSTED, "busy", (("retry-after", "7"),))]
    assert store.count() == 0 and pauses == [7.0]
    grpc_peer.faults[:] = [GrpcRefusal(StatusCode.RESOURCE_EXHAUSTED, "busy", (("retry-after", "3600"),))]
    with pytest.raises(StoreError, match=r"is busy .* asks to wait 3600 s; try again later"):
        store.count()
    store.close()


def test_a_grpc_servers_full_disk_is_told_at_once(peer: QdrantPeer, grpc_peer: QdrantGrpcPeer) -> None:
    store = open_store(f"{peer.url}/photos?grpc={grpc_peer.port}", write=True)
    store.ensure(SCHEMA)
    grpc_peer.faults[:] = [GrpcRefusal(StatusCode.INTERNAL, NO_SPACE)] * 10
    with pytest.raises(StoreError, match=r"the server's disk is full \(.*\); make room on it"):
        store.upsert(RECORDS)
    assert len(grpc_peer.faults) == 9
    store.close()


@pytest.mark.parametrize("said", ["errors resolving qdrant:6334: [Domain name not found]", "DNS resolution failed"])
def test_a_name_that_grpc_does_not_know_is_told_at_once(peer: QdrantPeer, grpc_peer: QdrantGrpcPeer, said: str) -> None:
    grpc_peer.faults[:] = [GrpcRefusal(StatusCode.UNAVAILABLE, said)] * 10
    with pytest.raises(StoreError, match="no such host"):
        open_store(f"{peer.url}/photos?grpc={grpc_peer.port}")
    assert len(grpc_peer.faults) == 9


@pytest.mark.slow
def test_a_grpc_server_that_goes_away_in_mid_scroll(peer: QdrantPeer, grpc_peer: QdrantGrpcPeer) -> None:
    store = open_store(f"{peer.url}/photos?grpc={grpc_peer.port}", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    records = store.scroll(batch=7)
    read = [next(records) for _ in range(7)]
    grpc_peer.go_away()
    later = threading.Timer(0.3, grpc_peer.come_back)
    later.start()
    read += records
    later.join()
    assert [record.id for record in read] == sorted(ids(RECORDS))
    records = store.scroll(batch=7)
    next(records)
    grpc_peer.go_away()
    store._connection.retry_s = 0.3  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"cannot read records at .*: not reachable"):
        list(records)
    store.close()


def test_batches_that_grpc_applied_half_are_made_whole(peer: QdrantPeer, grpc_peer: QdrantGrpcPeer) -> None:
    store = open_store(f"{peer.url}/photos?grpc={grpc_peer.port}", write=True)
    store.ensure(SCHEMA)
    grpc_peer.faults[:] = ["half", "half"]
    store.upsert(RECORDS)
    tags: dict[str, tuple[str, ...]] = {record.id: (f"tag {number}",) for number, record in enumerate(RECORDS)}
    store.count()
    grpc_peer.faults[:] = [None, "half", "half"]  # first comes the question which are there
    store.set_tags(tags)
    got = {record.id: record for record in store.scroll(vectors=True)}
    assert {id: record.tags for id, record in got.items()} == tags
    assert {id: record.patches for id, record in got.items()} == {record.id: record.patches for record in RECORDS}
    grpc_peer.faults[:] = ["half"]
    store.delete([record.id for record in RECORDS[:20]])
    assert ids(list(store.scroll())) == ids(RECORDS[20:]) and grpc_peer.faults == []
    store.close()


@pytest.mark.parametrize(
    "code, says",
    [
        (StatusCode.UNAUTHENTICATED, "the server refuses the API key; set .SEENIT_API_KEY to a valid one"),
        (StatusCode.PERMISSION_DENIED, r"the server forbids it \(no\); set .* or raise the server's limits"),
    ],
)
def test_what_grpc_refuses_in_words(peer: QdrantPeer, grpc_peer: QdrantGrpcPeer, code: StatusCode, says: str) -> None:
    grpc_peer.faults[:] = [GrpcRefusal(code, "no")]
    with pytest.raises(StoreError, match=says):
        open_store(f"{peer.url}/photos?grpc={grpc_peer.port}")
