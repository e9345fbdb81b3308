"""A cluster of two nodes of which one goes away in the middle of things: nothing is lost, doubled or left out."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from qdrant_cluster import QdrantCluster, node_of
from store_kinds import GALLERY, ids
from stored_records import RECORDS, SCHEMA

from indexer.errors import StoreError
from indexer.store import qdrant_connection
from indexer.store.open import open_store
from indexer.store.protocol import Store
from indexer.store.qdrant_store import QdrantStore

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(memory_path / "cache"))
    monkeypatch.setattr(qdrant_connection, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(qdrant_connection, "LONGEST_PAUSE_S", 0.05)


@contextmanager
def filled(cluster: QdrantCluster, **settings: int) -> Iterator[Store]:
    address = "&".join(f"{name}={number}" for name, number in settings.items())
    store = open_store(f"{cluster.url}/photos?{address}", write=True)
    store.write_blob("manifest.json", b"{}")
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    try:
        yield store
    finally:
        store.close()


def soon(change: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.3, change)
    timer.start()
    return timer


@pytest.mark.parametrize("node", [0, 1])
def test_with_two_replicas_a_scroll_goes_on_without_a_node(node: int) -> None:
    with QdrantCluster() as cluster, filled(cluster, replicas=2, shards=2) as store:
        pages = store.scroll(batch=5)
        seen = [next(pages) for _ in range(7)]
        cluster.lose(node)
        seen += [next(pages) for _ in range(9)]
        cluster.bring_back(node)
        seen += list(pages)
        assert [record.id for record in seen] == sorted(ids(RECORDS))
        assert store.search(GALLERY[3:4], 1)[0][0].id == RECORDS[3].id


def test_a_node_that_missed_writes_is_not_read_until_it_has_them() -> None:
    with QdrantCluster() as cluster, filled(cluster, replicas=2) as store:
        cluster.lose(0)
        store.set_tags({RECORDS[0].id: ("while it was away",)})
        store.delete([RECORDS[1].id])
        cluster.bring_back(0, up_to_date=False)
        assert store.tags_of([RECORDS[0].id])[RECORDS[0].id] == ("while it was away",)
        assert ids(list(store.scroll())) == ids(RECORDS) - {RECORDS[1].id}
        assert set(cluster.read_from[-3:]) == {1}
        cluster.bring_back(0)
        cluster.lose(1)
        assert store.tags_of([RECORDS[0].id])[RECORDS[0].id] == ("while it was away",)
        assert ids(list(store.scroll(batch=7))) == ids(RECORDS) - {RECORDS[1].id}


def test_with_one_replica_a_scroll_waits_for_the_node() -> None:
    with QdrantCluster() as cluster, filled(cluster, shards=2) as store:
        pages = store.scroll(batch=5, vectors=True)
        seen = [next(pages) for _ in range(7)]
        cluster.lose(1)
        timer = soon(lambda: cluster.bring_back(1))
        seen += list(pages)
        timer.join()
        assert [record.id for record in seen] == sorted(ids(RECORDS))
        assert store.count() == len(RECORDS)
        (hits,) = store.search(GALLERY[3:4], 5)
        best = np.argsort(-GALLERY @ GALLERY[3])[:5]
        assert [hit.id for hit in hits] == [RECORDS[number].id for number in best]


def test_with_one_replica_writes_wait_and_a_node_that_stays_away_is_said() -> None:
    with QdrantCluster() as cluster, filled(cluster, shards=2) as store:
        cluster.lose(0)
        timer = soon(lambda: cluster.bring_back(0))
        store.delete([record.id for record in RECORDS[:10]])
        timer.join()
        assert ids(list(store.scroll())) == ids(RECORDS[10:])
    with QdrantCluster() as cluster, filled(cluster, shards=2) as store:
        assert isinstance(store, QdrantStore)
        store._connection.retry_s = 0.3
        cluster.lose(1)
        here = [record.id for record in RECORDS if node_of(record.id) == 0]
        with pytest.raises(StoreError, match="no active replica") as caught:
            store.upsert(RECORDS)
        assert "\n" not in str(caught.value)
        cluster.bring_back(1)
        assert here and ids(list(store.scroll())) == ids(RECORDS)
