"""How a collection is made for a large index, and how a large load is told to the server."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_grpc_peer import QdrantGrpcPeer
from qdrant_peer import SERVERS_THRESHOLD, QdrantPeer
from store_kinds import run_code
from stored_records import RECORDS, SCHEMA, make_record, unit

from indexer.errors import SeenitError, StoreError
from indexer.index.copy import copy_index
from indexer.index.manifest import Manifest, write_manifest
from indexer.store import qdrant_connection, qdrant_store
from indexer.store.open import open_store
from indexer.store.payload import INDEXED_FIELDS
from indexer.store.protocol import Schema
from indexer.store.qdrant_address import Address
from indexer.store.qdrant_collection import RAISED_BY, Layout, lowered, raised


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


@pytest.fixture(params=["http", "grpc"])
def address(request: pytest.FixtureRequest, peer: QdrantPeer) -> Iterator[str]:
    """Of a collection on the peer, with something after the `?`."""
    if request.param == "http":
        yield f"{peer.url}/photos?"
        return
    with QdrantGrpcPeer(peer) as grpc_peer:
        yield f"{peer.url}/photos?grpc={grpc_peer.port}&"


def described(peer: QdrantPeer, collection: str = "photos") -> models.CollectionInfo:
    client = QdrantClient(peer.url, check_compatibility=False)
    info = client.get_collection(collection)
    client.close()
    return info


def threshold(peer: QdrantPeer) -> int:
    return described(peer).config.optimizer_config.indexing_threshold or 0


@pytest.mark.slow
def test_a_collection_is_made_as_a_large_one_needs_it(peer: QdrantPeer, address: str) -> None:
    store = open_store(f"{address}shards=6&replicas=2", write=True)
    store.write_blob("manifest.json", b"{}")
    store.ensure(SCHEMA)
    store.close()
    info = described(peer)
    vectors = info.config.params.vectors
    assert isinstance(vectors, dict)
    vector = vectors["global"]
    assert (info.config.params.shard_number, info.config.params.replication_factor) == (6, 2)
    assert info.config.params.on_disk_payload and vector.on_disk and vector.datatype == models.Datatype.FLOAT16
    assert isinstance(vector.quantization_config, models.ScalarQuantization)
    scalar = vector.quantization_config.scalar
    assert scalar.quantile == pytest.approx(0.99) and scalar.type == models.ScalarType.INT8 and scalar.always_ram
    assert {field: index.data_type.value for field, index in info.payload_schema.items()} == dict(INDEXED_FIELDS)
    assert all(index.params is not None and index.params.on_disk for index in info.payload_schema.values())
    blobs = described(peer, "photos.seenit").config.params
    assert (blobs.shard_number, blobs.replication_factor) == (1, 2), "a node that is lost must not take the manifest"


@pytest.mark.slow
def test_without_a_word_the_server_decides_on_shards_and_replicas(peer: QdrantPeer, address: str) -> None:
    store = open_store(address.rstrip("?&"), write=True)
    store.ensure(SCHEMA)
    store.close()
    params = described(peer).config.params
    assert params.shard_number in (None, 1) and params.replication_factor in (None, 1)


@pytest.mark.slow
def test_what_is_there_is_kept_as_it_is(peer: QdrantPeer, address: str) -> None:
    """A collection made by hand keeps its settings, an index of a field its parameters; what lacks is added."""
    dense = models.VectorParams(size=SCHEMA.global_dim, distance=models.Distance.COSINE)
    client = QdrantClient(peer.url, check_compatibility=False)
    client.create_collection("photos", {"global": dense}, shard_number=3)
    client.create_payload_index("photos", "tags", models.PayloadSchemaType.KEYWORD)
    client.close()
    for _ in range(2):
        store = open_store(f"{address}shards=6", write=True)
        store.ensure(SCHEMA)
        store.upsert(RECORDS)
        assert store.search(np.asarray(RECORDS[3].global_vector)[None], 1)[0][0].id == RECORDS[3].id
        store.close()
    info = described(peer)
    assert info.config.params.shard_number == 3 and info.payload_schema["tags"].params is None
    made = [request for request in peer.requests if request.startswith("PUT") and "/photos/index" in request]
    if "grpc" not in address:
        assert len(made) == len(INDEXED_FIELDS), "one by hand, and each of the others once"
    assert set(info.payload_schema) == set(INDEXED_FIELDS)


@pytest.mark.slow
def test_int8_with_rescoring_finds_what_comparing_finds(
    peer: QdrantPeer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the server has linked the vectors and made one byte of each number; scores are those of float16."""
    monkeypatch.setattr(qdrant_connection, "TIMEOUT_S", 30)  # for what is a lot to the peer on a busy machine
    rng = np.random.default_rng(0)
    centres = unit(rng, 60, 32)
    vectors = unit(rng, 600, 32) * 0.5 + np.repeat(centres, 10, 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = open_store(address.rstrip("?&"), write=True)
    store.ensure(Schema(32))
    records = [replace(make_record(n), global_vector=vectors[n], patches=None) for n in range(600)]
    store.upsert(records)
    peer.collections["photos"].change_optimizers(models.OptimizersConfigDiff(indexing_threshold=10))
    assert described(peer).indexed_vectors_count == 600
    queries = vectors[::20]
    for found, exact in zip(store.search(queries, 10), store.search(queries, 10, exact=True), strict=True):
        assert len({hit.id for hit in found} & {hit.id for hit in exact}) >= 9
        np.testing.assert_allclose(found[0].score, exact[0].score, atol=1e-4)  # int8 alone errs by 1e-2
    store.close()


@pytest.mark.slow
def test_the_threshold_is_raised_while_much_is_loaded_and_lowered_after(
    peer: QdrantPeer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_store, "BULK_RECORDS", 20)
    store = open_store(address.rstrip("?&"), write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS[:10])
    assert threshold(peer) == SERVERS_THRESHOLD, "a small change is linked as it comes"
    store.upsert(RECORDS[10:20])
    assert threshold(peer) == SERVERS_THRESHOLD + RAISED_BY
    store.upsert(RECORDS[20:])
    store.optimize()
    assert threshold(peer) == SERVERS_THRESHOLD
    changes = peer.collections["photos"].optimizers
    store.optimize()
    store.close()
    assert peer.collections["photos"].optimizers is changes, "what is as it should be is not set again"


@pytest.mark.slow
def test_closing_lowers_it_and_a_reader_does_not(peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_store, "BULK_RECORDS", 20)
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    reader = open_store(f"{peer.url}/photos")
    reader.close()
    assert threshold(peer) > RAISED_BY
    store.close()
    assert threshold(peer) == SERVERS_THRESHOLD


LOAD = """
import os, sys
from indexer.store import qdrant_store
from indexer.store.open import open_store
from stored_records import RECORDS, SCHEMA
qdrant_store.BULK_RECORDS = 20
store = open_store(sys.argv[1], write=True)
store.ensure(SCHEMA)
store.upsert(RECORDS)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_after_a_kill_in_mid_load_the_next_writer_lowers_it(peer: QdrantPeer) -> None:
    killed = run_code(LOAD, f"{peer.url}/photos")
    assert killed.wait(60) == -signal.SIGKILL
    assert killed.stdout is not None
    killed.stdout.close()
    assert threshold(peer) == SERVERS_THRESHOLD + RAISED_BY
    store = open_store(f"{peer.url}/photos", write=True)  # that changes a tag, and loads nothing
    store.set_tags({RECORDS[0].id: ("a",)})
    store.close()
    assert threshold(peer) == SERVERS_THRESHOLD


@pytest.mark.parametrize("own", [0, 123, RAISED_BY - 1])
def test_a_threshold_of_the_users_own_comes_back(own: int) -> None:
    assert lowered(raised(own)) == own == lowered(own)
    assert raised(raised(own)) == raised(own)
    assert raised(0) == 0, "a server that never links is left so"


def test_a_key_that_may_not_change_collections_may_load(peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_store, "BULK_RECORDS", 20)
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    peer.refuse = {"PATCH": 403}
    store.upsert(RECORDS)
    assert store.count() == 30
    store.close()


@pytest.mark.slow
def test_lowering_is_tried_again_where_it_fails(peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_store, "BULK_RECORDS", 20)
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    peer.faults[:] = ["drop after", 503, "drop"]
    store.optimize()
    assert threshold(peer) == SERVERS_THRESHOLD and peer.faults == []
    store.upsert(RECORDS)
    assert threshold(peer) > RAISED_BY
    store._connection.retry_s = 0.2  # type: ignore[attr-defined]
    peer.refuse = {"PATCH": 500}
    with pytest.raises(StoreError, match=r"cannot set when the server links vectors at .*: the server failed"):
        store.optimize()
    peer.refuse = {}
    store.close()
    open_store(f"{peer.url}/photos", write=True).close()
    assert threshold(peer) == SERVERS_THRESHOLD


@pytest.mark.slow
def test_raising_that_is_answered_too_late_is_lowered(peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_store, "BULK_RECORDS", 20)
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    peer.faults[:] = [None, "drop after"]  # the records, then the threshold
    store.upsert(RECORDS)
    assert threshold(peer) == SERVERS_THRESHOLD + RAISED_BY and peer.faults == []
    store.optimize()
    assert threshold(peer) == SERVERS_THRESHOLD
    store.close()


@pytest.mark.slow
def test_lowering_that_is_answered_too_late_is_done(peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_store, "BULK_RECORDS", 20)
    store = open_store(f"{peer.url}/photos", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    store._connection.retry_s = 0.0  # type: ignore[attr-defined]
    peer.faults[:] = ["drop after"]
    store.optimize()
    assert threshold(peer) == SERVERS_THRESHOLD and peer.faults == []
    store.close()


@pytest.mark.slow
def test_a_copy_to_a_server_loads_it_like_that(
    peer: QdrantPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_store, "BULK_RECORDS", 20)
    source = open_store(tmp_path / "index", write=True)
    source.ensure(SCHEMA)
    source.upsert(RECORDS)
    write_manifest(source, Manifest("tiny", "00", 224, {"token_bits": 2}, "fit-a", 30, {"0": str(tmp_path)}))
    source.close()
    assert copy_index(tmp_path / "index", f"{peer.url}/photos?shards=4&replicas=3") == 30
    assert sum(request.startswith("PATCH") for request in peer.requests) == 2 and threshold(peer) == SERVERS_THRESHOLD
    params = described(peer).config.params
    assert (params.shard_number, params.replication_factor) == (4, 3)


@pytest.mark.slow
def test_a_copy_is_a_backup_of_a_collection(peer: QdrantPeer, tmp_path: Path) -> None:
    """Out into a folder and back into another collection: what the server holds is the same, to the bit."""
    with_attributes = [replace(record, attributes={"sku": f"a-{n}"}) for n, record in enumerate(RECORDS)]
    source = open_store(f"{peer.url}/photos?shards=2", write=True)
    source.ensure(SCHEMA)
    source.upsert(with_attributes)
    source.write_blob("descriptor.safetensors", b"fit")
    source.write_blob("calibration.json", b"{}")
    write_manifest(source, Manifest("tiny", "00", 224, {"token_bits": 2}, "fit-a", 30, {"0": str(tmp_path)}))
    source.close()
    assert copy_index(f"{peer.url}/photos", tmp_path / "backup") == 30
    assert copy_index(tmp_path / "backup", f"{peer.url}/restored?shards=2") == 30
    before = held(peer, "photos")
    assert len(before) == 30 and held(peer, "restored") == before
    assert described(peer, "restored").config == described(peer).config
    stores = [open_store(f"{peer.url}/{name}") for name in ("photos", "restored")]
    names = stores[0].blob_names()
    assert len(names) == 3 and stores[1].blob_names() == names
    assert [stores[1].read_blob(name) for name in names] == [stores[0].read_blob(name) for name in names]
    for store in stores:
        store.close()


def held(peer: QdrantPeer, collection: str) -> dict[object, tuple[object, object]]:
    """Every point's payload and vectors, as the server gives them."""
    client = QdrantClient(peer.url, check_compatibility=False)
    points, _ = client.scroll(collection, limit=1000, with_payload=True, with_vectors=True)
    client.close()
    return {point.id: (point.payload, point.vector) for point in points}


def test_what_follows_an_address() -> None:
    assert Address.parse("http://h/photos?shards=6&replicas=2").layout == Layout(6, 2)
    assert Address.parse("http://h/photos?grpc=6334&shards=1").layout == Layout(1, None)
    for wrong in ("shards=0", "shards=x", "replicas=-1", "shard=3", "shards=1&shards=2", "shards", "grpc=0"):
        with pytest.raises(SeenitError, match=r"expected http\(s\)://host:port/collection\[\?grpc=N&shards=N&replicas"):
            Address.parse(f"http://h/photos?{wrong}")
