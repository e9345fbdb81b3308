"""The neighbour graph of an embedded index: what it finds, and that it is only a cache."""

import json
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_records import SCHEMA, make_record, unit

from indexer.store import neighbour_cache, neighbours
from indexer.store.neighbour_cache import graph_folder
from indexer.store.open import open_store
from indexer.store.protocol import Filter, Record, Store
from indexer.store.sqlite_schema import connect

DATABASE = "index.sqlite"
POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")


def query(seed: int, count: int = 3) -> np.ndarray:
    return unit(np.random.default_rng(seed), count, SCHEMA.global_dim)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few records have a graph."""
    monkeypatch.setattr(neighbours, "SCANNED", 300)
    monkeypatch.setattr(neighbours, "FEW", 5)
    monkeypatch.setattr(neighbours, "CHUNK", 128)


def plain_record(number: int, seed: int = 0) -> Record:
    record = make_record(number)
    return replace(record, global_vector=query(10_000 * seed + number, 1)[0], patches=b"", tags=(f"t{number % 20}",))


@pytest.fixture
def large(memory_path: Path, graphs: None) -> Path:
    """An index of 500 records with its graph."""
    with closing(open_store(memory_path / "large", write=True)) as store:
        store.ensure(SCHEMA)
        store.upsert([plain_record(number) for number in range(500)])
        store.optimize()
    return memory_path / "large"


def graph_of(folder: Path) -> Path:
    with closing(connect(folder)) as db:
        ((id,),) = db.execute("SELECT value FROM meta WHERE name = 'index'")
    return graph_folder(id.hex())


def recall(store: Store, where: Filter = Filter(), top: int = 10) -> float:
    """Of the exact answer; the scores and the order of what is found must be right."""
    wanted = store.search(query(1, 40), top, where, exact=True)
    found = store.search(query(1, 40), top, where)
    shares = []
    for right, got in zip(wanted, found, strict=True):
        scores = {hit.id: hit.score for hit in right}
        assert len(got) == len(right) and [hit.score for hit in got] == sorted((h.score for h in got), reverse=True)
        assert all(abs(scores[hit.id] - hit.score) < 1e-5 for hit in got if hit.id in scores)
        shares.append(len(scores.keys() & {hit.id for hit in got}) / len(right) if right else 1.0)
    return float(np.mean(shares))


def plainly(vectors: dict[str, np.ndarray], top: int = 10) -> list[list[str]]:
    names = list(vectors)
    cosine = query(1, 40) @ np.stack([vectors[name].astype(np.float16).astype(np.float32) for name in names]).T
    return [[names[n] for n in np.argsort(-row)[:top]] for row in cosine]


def test_the_graph_finds_what_a_plain_comparison_finds(large: Path) -> None:
    assert (graph_of(large) / "about.json").exists()
    with closing(open_store(large)) as store:
        vectors = {record.id: record.global_vector for record in store.scroll(vectors=True)}
        exact = [[hit.id for hit in hits] for hits in store.search(query(1, 40), 10, exact=True)]
        assert exact == plainly({id: vector for id, vector in vectors.items() if vector is not None})
        assert recall(store) > 0.98


def test_what_is_written_after_the_graph_is_scanned(large: Path) -> None:
    with closing(open_store(large, write=True)) as store:
        new = plain_record(600)
        store.upsert([new, plain_record(601)])
        assert new.global_vector is not None
        (hits,) = store.search(new.global_vector[None], 1)
        assert hits[0].id == new.id and hits[0].score > 0.999
        assert recall(store) > 0.98


@pytest.mark.slow
def test_deleted_and_replaced_records_are_not_found_and_do_not_hide_others(large: Path) -> None:
    with closing(open_store(large, write=True)) as store:
        gone = [record.id for record in store.scroll()][:230]
        (near,) = store.search(query(3, 1), 20)
        store.delete([*gone, *(hit.id for hit in near)])
        assert not {hit.id for hit in store.search(query(3, 1), 500)[0]} & {*gone, *(hit.id for hit in near)}
        assert recall(store) > 0.95
        there = next(iter(store.scroll()))
        moved = replace(plain_record(0, seed=1), id=there.id, global_vector=query(4, 1)[0])
        store.upsert([moved])
        (hits,) = store.search(query(4, 1), 500)
        assert hits[0].id == there.id and hits[0].score > 0.999
        assert len(hits) == len({hit.id for hit in hits}) == store.count()


def test_few_that_are_left_of_many_are_all_found(memory_path: Path) -> None:
    """Without a graph, in a process that holds the vectors of those that were deleted."""
    with closing(open_store(memory_path / "index", write=True)) as store:
        store.ensure(SCHEMA)
        store.upsert([plain_record(number) for number in range(400)])
        store.search(query(0), 10)
        ids = [record.id for record in store.scroll()]
        store.delete(ids[:390])
        for hits in store.search(query(0, 20), 10):
            assert {hit.id for hit in hits} == set(ids[390:])


@pytest.mark.slow
@pytest.mark.parametrize("tags", [("t3",), (), ("nobody",)])
def test_filters_narrow_and_wide(large: Path, tags: tuple[str, ...]) -> None:
    with closing(open_store(large)) as store:
        where = Filter(tags=tags, not_ids=(plain_record(3).id,))
        meeting = {record.id for record in store.scroll(where)}
        assert recall(store, where) > 0.98
        assert all(hit.id in meeting for hits in store.search(query(2, 10), 30, where) for hit in hits)
        wide = Filter(under=("0/album1", "0/album2"))
        assert recall(store, wide) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "last number", "missing", "pipe", "link"])
def test_a_cache_that_is_not_sound_is_ignored_and_rebuilt(large: Path, damage: str) -> None:
    if damage in ("pipe", "link") and os.name != "posix":
        pytest.skip("POSIX only")
    cache = graph_of(large)
    with closing(open_store(large)) as store:
        want = store.search(query(5, 20), 10, exact=True)
    for pattern in ("about.json", "graph-*", "numbers-*"):
        (path,) = cache.glob(pattern)
        data = path.read_bytes()
        if damage == "last number":
            about = json.loads((cache / "about.json").read_bytes())
            (cache / "about.json").write_text(json.dumps({**about, "last_number": 9000}))
        elif damage in ("missing", "pipe", "link"):
            path.unlink()
            if damage == "pipe":
                os.mkfifo(path)
            elif damage == "link":
                path.symlink_to("/dev/zero")
        else:
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]
            path.write_bytes({"cut": data[:middle], "flip": flipped, "empty": b"", "text": b"[[1]]"}[damage])
        with closing(open_store(large, write=True)) as store:
            store.upsert([plain_record(900)])
            store.delete([plain_record(900).id])
            assert [[h.id for h in hits] for hits in store.search(query(5, 20), 10)] == [
                [h.id for h in hits] for hits in want
            ] or damage == "flip"
            assert recall(store) > 0.98
            store.optimize()
            assert recall(store) > 0.98


@pytest.mark.slow
def test_copies_that_went_their_own_ways_do_not_share_a_graph(large: Path) -> None:
    other = Path(shutil.copytree(large, large.with_name("other")))
    assert graph_of(other) == graph_of(large)
    for folder, seed in ((large, 1), (other, 2)):
        with closing(open_store(folder, write=True)) as store:
            store.upsert([plain_record(1000 + n, seed) for n in range(400)])
            store.optimize()
    for folder in (large, other):
        with closing(open_store(folder)) as store:
            assert recall(store) > 0.98 and store.count() == 900


def test_a_process_goes_on_over_a_database_that_was_replaced(memory_path: Path) -> None:
    """By a repair, or from a backup."""
    for name, seed in (("one", 1), ("two", 2)):
        with closing(open_store(memory_path / name, write=True)) as store:
            store.ensure(SCHEMA)
            store.upsert([replace(plain_record(n + 100 * seed), whitening_id=name) for n in range(50)])
    with closing(open_store(memory_path / "one")) as store:
        assert len(store.search(query(0), 100)[0]) == 50
        for name in (DATABASE + "-wal", DATABASE + "-shm"):
            (memory_path / "one" / name).unlink(missing_ok=True)
        os.replace(memory_path / "two" / DATABASE, memory_path / "one" / DATABASE)
        want = {plain_record(n + 200).id for n in range(50)}
        assert {hit.id for hit in store.search(query(0, 1), 100)[0]} == want
        assert {record.id for record in store.scroll()} == want
        assert recall(store) == 1


def test_a_build_that_is_stopped_keeps_nothing(memory_path: Path, graphs: None) -> None:
    with closing(open_store(memory_path / "index", write=True)) as store:
        store.ensure(SCHEMA)
        store.upsert([plain_record(number) for number in range(500)])
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            return len(asked) > 2

        store.optimize(stop=stop)
        assert len(asked) == 3 and not graph_of(memory_path / "index").exists()
        done: list[tuple[int, int]] = []
        store.optimize(progress=lambda n, total: done.append((n, total)))
        assert done[-1] == (500, 500) and graph_of(memory_path / "index").exists()


@POSIX
def test_a_read_only_index_gets_a_graph_in_the_users_cache(large: Path) -> None:
    shutil.rmtree(graph_of(large))
    with closing(open_store(large)) as store:
        store.optimize()
        assert graph_of(large).exists() and recall(store) > 0.98


def test_a_graph_of_another_user_is_left_alone(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "getuid"):
        pytest.skip("users are POSIX")
    with closing(open_store(large)) as store:
        args = (graph_of(large).name, SCHEMA.global_dim, store_epochs(large))
        assert neighbour_cache.load_graph(*args) is not None
        theirs = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: theirs)
        assert neighbour_cache.load_graph(*args) is None
        assert recall(store) == 1


def store_epochs(folder: Path) -> list[neighbour_cache.Epoch]:
    with closing(connect(folder)) as db:
        rows = db.execute("SELECT token, first_number FROM epochs ORDER BY epoch")
        return [neighbour_cache.Epoch(token.hex(), first) for token, first in rows]
