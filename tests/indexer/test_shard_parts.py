"""Shards that actors write, without a cluster: what is repeated, broken off or late loses and doubles nothing."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from stored_records import RECORDS
from test_vector_shards import DIM

from indexer.cluster.shard_parts import ShardParts, ShardTarget
from indexer.errors import StoreError, UnusableError
from indexer.store import shard_store
from indexer.store.protocol import Record, Schema
from indexer.store.shard_place import ShardPlace, place_at
from indexer.store.shard_store import ShardStore, make_shard_place, shard_numbers

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
IDS = [record.id for record in RECORDS]


@pytest.fixture(params=["folder", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(shard_store, "SHARD_RECORDS", 4)
    location = str(tmp_path / "shards") if request.param == "folder" else "memory://bucket/shards"
    make_shard_place(location)
    yield location
    fsspec.filesystem("memory").store.clear()


def driver(location: str) -> ShardStore:
    store = ShardStore.open(location, write=True)
    store.ensure(Schema(DIM))
    return store


def actor(store: ShardStore) -> tuple[ShardTarget, ShardPlace]:
    target = ShardTarget.of(store)
    place = target.place()
    assert place is not None
    return target, place


def ids_in(location: str) -> list[str]:
    """The ids of all rows whose shard counts, each as often as it is there."""
    return sorted(record.id for record in ShardStore.open(location).scroll(vectors=True))


def test_small_shards_become_one(location: str) -> None:
    store = driver(location)
    target, place = actor(store)
    parts = ShardParts(store, also_old=True)
    numbers = []
    for n in range(3):
        numbers.append(parts.next_number())
        assert n == 2 or (parts.due() is None and parts.due(at_end=n < 1) is None)
        target.write(place, numbers[-1], RECORDS[2 * n : 2 * n + 2], DIM)
        parts.wrote(numbers[-1], IDS[2 * n : 2 * n + 2])
    due = parts.due()
    assert due == (numbers[:2], numbers[-1] + 1)
    target.merge(place, *due, DIM)
    parts.merged(*due)
    assert list(shard_numbers(place)) == [numbers[2], due[1]] and parts.due(at_end=True) is None
    store.set_tags({IDS[0]: ("x",), IDS[5]: ("y",)})
    assert store.count() == 6 and store.tags_of([IDS[0]]) == {IDS[0]: ("x",)}
    store.close()
    assert ids_in(location) == sorted(IDS[:6])


@pytest.mark.parametrize("broken_at", range(4))
def test_a_merge_that_breaks_off_is_repeated(location: str, broken_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the large shard is put, and before each of the small ones is deleted."""
    store = driver(location)
    target, place = actor(store)
    parts = ShardParts(store, also_old=True)
    for record in RECORDS[:3]:
        number = parts.next_number()
        target.write(place, number, [record], DIM)
        parts.wrote(number, [record.id])
    due = parts.due(at_end=True)
    assert due is not None
    with monkeypatch.context() as patch:
        left = broken_at

        def breaking(name: str) -> None:
            whole = getattr(type(place), name)

            def call(self: ShardPlace, *args: object) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise StoreError("killed")
                whole(self, *args)

            patch.setattr(type(place), name, call)

        breaking("put")
        breaking("delete")
        with suppress(StoreError):
            target.merge(place, *due, DIM)
        assert left < 0
    assert ids_in(location) == sorted(IDS[:3]), "as a driver that is killed now leaves it"
    target.merge(place, *due, DIM)
    parts.merged(*due)
    store.close()
    assert ids_in(location) == sorted(IDS[:3]) and list(shard_numbers(place)) == [due[1]]


def test_a_call_that_is_repeated_writes_the_same_shard(location: str) -> None:
    store = driver(location)
    target, place = actor(store)
    parts = ShardParts(store, also_old=True)
    number = parts.next_number()
    for _ in range(2):
        target.write(place, number, RECORDS[:2], DIM)
    parts.wrote(number, IDS[:2])
    store.close()
    assert ids_in(location) == sorted(IDS[:2]) and list(shard_numbers(place)) == [number]


def test_what_an_actor_of_a_killed_driver_writes_late(location: str) -> None:
    """The next driver gives other numbers, and finds at the latest when shards are opened again what came late."""
    store = driver(location)
    target, place = actor(store)
    parts = ShardParts(store, also_old=True)
    written, late = parts.next_number(), parts.next_number()
    target.write(place, written, RECORDS[:2], DIM)
    assert store._lock is not None
    store._lock.release()  # as its end does
    after = driver(location)
    assert after.count() == 2
    others = ShardParts(after, also_old=True)
    number = others.next_number()
    assert number > late
    target.write(place, late, RECORDS[2:4], DIM)
    for again in (number, others.next_number()):
        target.write(place, again, RECORDS[2:4], DIM)
        others.wrote(again, IDS[2:4])
    after.close()
    assert ids_in(location) == sorted(IDS[:4])
    ShardStore.open(location, write=True).close()
    assert late not in shard_numbers(place) and ids_in(location) == sorted(IDS[:4])


def test_a_record_that_is_embedded_again_counts_once(location: str) -> None:
    store = driver(location)
    store.upsert(RECORDS[:3])
    store.optimize()
    target, place = actor(store)
    parts = ShardParts(store, also_old=True)
    number = parts.next_number()
    target.write(place, number, [RECORDS[1]], DIM)
    parts.wrote(number, [RECORDS[1].id])
    assert store.count() == 3
    store.close()
    assert ids_in(location) == sorted(IDS[:3])


def test_where_records_are_embedded_again_old_shards_are_left(location: str) -> None:
    store = driver(location)
    store.upsert([RECORDS[0]])
    store.optimize()
    target, place = actor(store)
    parts = ShardParts(store, also_old=False)
    again = replace(RECORDS[0], whitening_id="another")
    for record in (again, RECORDS[1]):
        number = parts.next_number()
        target.write(place, number, [record], DIM)
        parts.wrote(number, [record.id])
    due = parts.due(at_end=True)
    assert due is not None and 0 not in due[0]
    target.merge(place, *due, DIM)
    parts.merged(*due)
    store.close()
    left = ShardStore.open(location)
    assert {record.id: record.whitening_id for record in left.scroll()} == {
        again.id: "another",
        RECORDS[1].id: RECORDS[1].whitening_id,
    }
    assert list(shard_numbers(place)) == [due[1]]


def test_small_shards_of_a_killed_run_are_made_one_too(location: str) -> None:
    store = driver(location)
    store.upsert([RECORDS[0]])
    store.close()
    store = driver(location)
    target, place = actor(store)
    parts = ShardParts(store, also_old=True)
    number = parts.next_number()
    target.write(place, number, [RECORDS[1]], DIM)
    parts.wrote(number, [RECORDS[1].id])
    due = parts.due(at_end=True)
    assert due == ([0, number], number + 1)
    target.merge(place, *due, DIM)
    parts.merged(*due)
    store.close()
    assert ids_in(location) == sorted(IDS[:2]) and list(shard_numbers(place)) == [number + 1]


def test_another_folder_of_the_same_name_is_told(tmp_path: Path) -> None:
    make_shard_place(tmp_path / "here")
    store = driver(str(tmp_path / "here"))
    target = ShardTarget.of(store)
    assert target.place() is not None
    (tmp_path / "here").rename(tmp_path / "away")
    assert target.place() is None
    shutil.copytree(tmp_path / "away", tmp_path / "here")
    (tmp_path / "here" / "lock.json").write_text('{"pid": 1}')
    assert target.place() is None
    store.close()


@pytest.mark.parametrize("number", ["-1", "1.5", "true", '"2"', "999999999", "1e400"])
def test_a_marker_with_a_number_that_is_none(tmp_path: Path, number: str) -> None:
    (tmp_path / "shards.json").write_text(f'{{"format": 1, "dim": 4, "patches": true, "next": {number}}}')
    with pytest.raises(UnusableError, match="not what seenit wrote"):
        ShardStore.open(tmp_path)


def test_many_numbers(tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_text(f'{{"format": 1, "dim": {DIM}, "patches": true, "next": 1000000}}')
    store = driver(str(tmp_path))
    records: list[Record] = list(RECORDS[:2])
    store.upsert(records)
    store.close()
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["1000000.parquet"]
    assert list(shard_numbers(place_at(tmp_path))) == [1_000_000] and ids_in(str(tmp_path)) == sorted(IDS[:2])
