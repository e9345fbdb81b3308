"""What holds for the embedded engine alone: its files, its damage, its need of room."""

import os
import shutil
from pathlib import Path

import pytest
import qdrant_edge as edge
from store_kinds import ids
from stored_records import RECORDS, SCHEMA

from indexer.errors import LockedError, StoreError
from indexer.store import open_store


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


@pytest.mark.parametrize("text", ["AAA", "A A=", "é===", 5, ["AAAA"]])
def test_patches_that_are_no_base64_are_told(tmp_path: Path, text: object) -> None:
    store = open_store(tmp_path / "index", write=True)
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


def test_a_reader_waits_for_the_writer_too(tmp_path: Path) -> None:
    writer = open_store(tmp_path / "index", write=True)
    writer.ensure(SCHEMA)
    with pytest.raises(LockedError, match=rf"in use by .*process {os.getpid()}"):
        open_store(tmp_path / "index", wait_s=0.1)
    writer.close()


def test_a_creation_that_was_broken_off_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "index" / "shard.new" / "segments").mkdir(parents=True)
    (tmp_path / "index" / "lock").touch()
    store = open_store(tmp_path / "index", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS[:2])
    store.close()
    assert not (tmp_path / "index" / "shard.new").exists()


def damaged(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "index", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    store.optimize()
    store.close()
    return tmp_path / "index" / "shard"


@pytest.mark.parametrize("name", ["edge_config.json", "segment.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_damaged_files_are_told_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    shard = damaged(tmp_path)
    for path in shard.rglob(name):
        path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged") as caught:
        open_store(tmp_path / "index").count()
    assert "\n" not in str(caught.value) and str(tmp_path / "index") in str(caught.value)


def test_an_index_of_another_version_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    """Once an index held its patch tokens as a second vector."""
    shard = tmp_path / "index" / "shard"
    shard.parent.mkdir()
    dense = edge.EdgeVectorParams(16, edge.Distance.Cosine)
    edge.EdgeShard.create(str(shard), edge.EdgeConfig(vectors={"global": dense, "patches": dense})).close()
    before = {path: path.read_bytes() for path in shard.rglob("*") if path.is_file()}
    for write in (True, False):
        with pytest.raises(StoreError, match=r"index was made by another version of seenit; remove it and index anew"):
            open_store(tmp_path / "index", write=write)
    assert {path: path.read_bytes() for path in shard.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_told_before_the_engine_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "index", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS[:3])
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=100 << 20))
    for write in (
        lambda: store.upsert(RECORDS),
        lambda: store.set_tags({RECORDS[0].id: ("x",)}),
        store.optimize,
    ):
        with pytest.raises(StoreError, match=r"100 MB are free on its disk, \d+ MB are needed; make room"):
            write()
    assert ids(list(store.scroll())) == ids(RECORDS[:3])  # reading goes on
    store.delete([RECORDS[2].id])  # and so does making room
    assert store.count() == 2
    store.close()
