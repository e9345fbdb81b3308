"""What holds for a server's store alone: failures, repetitions, the key, addresses, locks."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode
from qdrant_client import QdrantClient, models
from qdrant_grpc_peer import QdrantGrpcPeer
from qdrant_peer import QdrantPeer
from store_kinds import GALLERY, ids
from stored_records import RECORDS, SCHEMA, make_record, unit

from indexer.errors import LockedError, SeenitError, StoreError
from indexer.qdrant_address import Address
from indexer.store import Schema, open_store


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


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


def test_a_server_that_stays_away_is_given_up_in_bounded_time(peer: QdrantPeer) -> None:
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store._connection.retry_s = 0.5  # type: ignore[attr-defined]
    peer.faults[:] = [503] * 1000
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot write records at .*photos: the server failed .503.*log") as caught:
        store.upsert(RECORDS)
    assert time.monotonic() - start < 1.5 and "\n" not in str(caught.value)
    assert 3 < 1000 - len(peer.faults) < 100  # it was tried again, with pauses
    peer.faults.clear()
    store.close()
    with pytest.raises(StoreError, match="not reachable"):
        open_store("http://127.0.0.1:1/photos", wait_s=0.1)


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
        with pytest.raises(StoreError, match=r"photos was made by another version of seenit; remove it and index anew"):
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
