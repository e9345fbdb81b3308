"""Vectors as shards in an object store: as in a folder, with one writer, whatever the network does."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from conftest import draw_photo
from cutting_proxy import CuttingProxy
from stored_records import RECORDS
from test_vector_shards import DIM, OPTIONS, assert_same, embedding_by_eights, everything
from typer.testing import CliRunner

import cli
from indexer import copy_index, embed_into_shards, sync_folder
from indexer.errors import LockedError, SeenitError, StoreError, UnusableError
from indexer.store import remote_place, shard_file, shard_store
from indexer.store.open import is_made, open_store
from indexer.store.protocol import Schema
from indexer.store.remote_place import RemotePlace
from indexer.store.shard_place import FolderPlace, ShardPlace, place_at
from indexer.store.shard_store import ShardStore, make_shard_place
from indexer.store.sqlite_check import check_index

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
S3 = "s3://photos/vectors"


@pytest.fixture
def memory() -> Iterator[str]:
    """An address in fsspec's store in memory."""
    yield "memory://bucket/vectors"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> ShardPlace:
    return FolderPlace(tmp_path / "place") if request.param == "folder" else RemotePlace(memory)


def fill(location: str, count: int = 3) -> None:
    """Shards of one record each."""
    make_shard_place(location)
    with closing(ShardStore.open(location, write=True)) as store:
        store.ensure(Schema(DIM))
        for record in RECORDS[:count]:
            store.upsert([record])
            store.optimize()


# ---- places ----


def test_a_place_holds_whole_files(place: ShardPlace) -> None:
    place.make()
    assert place.sizes() == {} and not place.is_there("a") and place.read("a", 10) is None
    place.put("a", b"one")
    place.put("blobs/b", b"")
    place.put("a", b"other")
    assert place.sizes() == {"a": 5} and place.sizes("blobs") == {"b": 0}
    assert place.is_there("a") and place.read("a", 5) == b"other" and place.read("blobs/b", 0) == b""
    with pytest.raises(UnusableError) as told:
        place.read("a", 4)
    assert "\n" not in str(told.value)
    file, size = place.open("a")
    with file:
        assert size == 5 and file.seek(2) == 2 and file.read(9) == b"her"
    with pytest.raises(FileNotFoundError):
        place.open("c")
    place.delete("a")
    place.delete("a")
    assert place.sizes() == {}


ELSEWHERE = ["http://host/vectors", "https://host/v", "file:///tmp/v", "nothing://x/y", "ftp://host/x"]


@pytest.mark.parametrize("address", [*ELSEWHERE, "zip://x::s3://b/a.zip", "s3://a::file://b"])
def test_what_takes_no_shards(address: str) -> None:
    with pytest.raises(SeenitError, match=r"takes no shards|is chained"):
        place_at(address).sizes()
    with pytest.raises(SeenitError):
        make_shard_place(address)


def test_records_come_back_from_an_address(memory: str) -> None:
    fill(memory)
    opened = open_store(memory)
    assert is_made(memory) and opened.count() == 3 and opened.location == memory
    for record, twin in zip(RECORDS[:3], opened.retrieve([r.id for r in RECORDS[:3]], vectors=True), strict=True):
        assert (record.files, record.metadata, record.patches) == (twin.files, twin.metadata, twin.patches)
    with closing(ShardStore.open(memory, write=True)) as store:
        store.set_tags({RECORDS[0].id: ("a",)})
        store.delete([RECORDS[1].id])
        store.upsert([RECORDS[2]])
    left = open_store(memory)
    assert left.count() == 2 and left.tags_of([RECORDS[0].id]) == {RECORDS[0].id: ("a",)}
    names = RemotePlace(memory).sizes()
    assert sorted(names) == ["000000.parquet", "000003.parquet", "shards.json"]
    assert left.size().parts == {"shards": sum(size for name, size in names.items() if name != "shards.json")}
    with pytest.raises(StoreError, match=f"not searched; make an index of them with: seenit copy {memory} INDEX"):
        left.search([], 3)  # type: ignore[arg-type]


def test_an_address_without_shards_or_with_other_objects(memory: str) -> None:
    with pytest.raises(SeenitError, match="holds no shards of vectors"):
        open_store(memory, write=True)
    for mine in ("mine.txt", "sub/mine.txt"):
        RemotePlace(memory).put(mine, b"mine")
        with pytest.raises(SeenitError, match="holds other files"):
            make_shard_place(memory)
        assert not RemotePlace(memory).is_there("shards.json")
        RemotePlace(memory).delete(mine)
    make_shard_place(memory)


def test_what_is_too_large_is_not_read(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(memory)
    place = RemotePlace(memory)
    place.put("blobs/manifest.json", b"x" * 100)
    monkeypatch.setattr(shard_store, "MAX_BLOB", 99)
    monkeypatch.setattr(shard_file, "MAX_BYTES", 50)
    monkeypatch.setattr(RemotePlace, "_asked", no_reading(RemotePlace._asked))
    with pytest.raises(UnusableError, match="100 bytes, more than 99"):
        ShardStore.read_blob(reader(place), "manifest.json")
    with pytest.raises(UnusableError, match=r"000000.parquet cannot be used: it has .* bytes"):
        open_store(memory)


def no_reading(asked: Any) -> Any:
    def only_sizes(self: RemotePlace, doing: str, right: str, ask: Any) -> Any:
        found = asked(self, doing, right, ask)
        assert not isinstance(found, bytes) or len(found) < 99, "a body was read"
        return found

    return only_sizes


def reader(place: ShardPlace) -> ShardStore:
    """A store whose shards were not looked at."""
    store = ShardStore.__new__(ShardStore)
    store._place = place
    return store


def test_a_damaged_shard_is_named(memory: str) -> None:
    fill(memory)
    place = RemotePlace(memory)
    whole = place.read("000001.parquet", 1 << 20)
    assert whole is not None
    place.put("000001.parquet", whole[:-9])
    found = check_index(memory)
    assert found.images == 2 and [f"{memory}/000001.parquet" in problem for problem in found.problems] == [True]


# ---- one writer ----


def test_a_second_writer_waits_and_a_dead_one_is_followed(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_place, "POLL_S", 0.02)
    make_shard_place(memory)
    first = ShardStore.open(memory, write=True)
    first.ensure(Schema(DIM))
    with pytest.raises(LockedError, match=rf"process {os.getpid()} on .*; wait for it .* --wait \d+$"):
        ShardStore.open(memory, write=True, wait_s=0.1)
    monkeypatch.setattr(remote_place, "DEAD_S", 0.2)  # the first one gives its next sign of life in ten seconds
    second = ShardStore.open(memory, write=True, wait_s=5)
    first.upsert([RECORDS[0]])
    with pytest.raises(LockedError, match="another process writes to"):
        first.optimize()
    second.upsert([RECORDS[1]])
    second.close()
    with closing(ShardStore.open(memory, write=True)):  # with the number that the first one had
        assert list(RemotePlace(memory).sizes("locks")) == ["000001.json"]
        with pytest.raises(LockedError):
            first.close()
        assert list(RemotePlace(memory).sizes("locks")) == ["000001.json"]
    assert RemotePlace(memory).sizes("locks") == {}
    assert open_store(memory).count() == 1


def test_a_sign_of_life_keeps_the_lock(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("POLL_S", 0.02), ("RENEW_S", 0.05), ("DEAD_S", 0.4)):
        monkeypatch.setattr(remote_place, name, value)
    make_shard_place(memory)
    with closing(ShardStore.open(memory, write=True)), pytest.raises(LockedError):
        ShardStore.open(memory, write=True, wait_s=1.2)
    ShardStore.open(memory, write=True, wait_s=0).close()


@pytest.mark.parametrize("note", [b"", b"[]", b'{"pid": "x", "machine": 3}', b"\xff", b'{"pid": -1, "since": 1e999}'])
def test_a_lock_that_is_no_note_ages_like_others(memory: str, note: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_place, "POLL_S", 0.02)
    monkeypatch.setattr(remote_place, "DEAD_S", 0.2)
    make_shard_place(memory)
    RemotePlace(memory).put("locks/000007.json", note)
    with pytest.raises(LockedError):
        ShardStore.open(memory, write=True, wait_s=0)
    ShardStore.open(memory, write=True, wait_s=5).close()
    assert RemotePlace(memory).sizes("locks") == {}


# ---- S3 ----


@pytest.mark.long
def test_shards_in_a_bucket_make_the_plain_index(
    bucket: Any, photos: Path, tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_store, "SHARD_RECORDS", 3)
    usual: dict[str, Any] = {"options": OPTIONS, "backbone": str(tiny_backbone)}
    assert embed_into_shards(photos, S3, **usual).embedded == 8
    listed = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="photos", Prefix="vectors/")["Contents"]]
    assert sum(key.endswith(".parquet") for key in listed) > 1 and not any("lock" in key for key in listed)
    sync_folder(photos, tmp_path / "plain", **usual)
    assert copy_index(S3, tmp_path / "copied") == 8
    assert_same(everything(tmp_path / "plain"), everything(tmp_path / "copied"))
    draw_photo(photos / "a" / "new.jpg", 99)
    (photos / "b" / "7.jpg").unlink()
    done = embed_into_shards(photos, S3, **usual)
    assert (done.embedded, done.images, done.changes.removed) == (1, 8, 1)

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, [str(one) for one in arguments])

    sound = call("check", "--index", S3)
    assert sound.exit_code == 0 and "is whole: 8 images" in sound.output
    assert "images          8" in call("info", "--index", S3).output
    photo = next(photos.rglob("*.jpg"))
    for command in (("duplicates", S3), ("search", photo, "--index", S3), ("serve", S3)):
        told = call(*command)
        assert told.exit_code == 1 and f"seenit copy {S3} INDEX" in str(told.exception), command
    again = call("embed", photos, "--shards", S3, "--backbone", tiny_backbone, "--resolution", 56, "--workers", 1)
    assert again.exit_code == 0 and "8 images, 0 embedded now" in again.output
    from trainer.curation.inputs import read_inputs

    inputs = read_inputs([S3], [], [], tmp_path / "work")
    assert sorted(Path(one.path).name for one in inputs.pool.places) == sorted(p.name for p in photos.rglob("*.jpg"))


@pytest.mark.long
def test_a_killed_run_goes_on(bucket: Any, tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(60):
        draw_photo(tmp_path / "photos" / f"{n:02d}.jpg", n)
    process = embedding_by_eights(tmp_path / "photos", S3, tiny_backbone)
    place = RemotePlace(S3)
    deadline = time.monotonic() + 60
    while sum(name.endswith(".parquet") for name in place.sizes()) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(place.sizes("locks")) == 1, "it was not killed on the way"
    kept = len(everything(S3))  # type: ignore[arg-type]
    assert kept >= 16 and kept % 8 == 0
    done = embed_into_shards(tmp_path / "photos", S3, options=OPTIONS, backbone=str(tiny_backbone))
    assert done.embedded == (60 if done.refitted else 60 - kept)
    assert len(everything(S3)) == 60 and place.sizes("locks") == {}  # type: ignore[arg-type]


@pytest.mark.long
def test_cut_connections(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with CuttingProxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        fsspec.filesystem("s3").clear_instance_cache()
        proxy.cut_request = 9000  # in the middle of what follows; asked again by s3fs
        fill(S3)
        assert proxy.cuts == 1
        proxy.cut_answer = 3000
        assert len(list(open_store(S3).scroll(vectors=True))) == 3 and proxy.cuts == 2
    monkeypatch.setattr(remote_place, "TIMEOUT_S", 5)
    with pytest.raises(StoreError, match=f"cannot read {S3}: .*; check the address") as told:
        open_store(S3)
    assert "\n" not in str(told.value)


@pytest.mark.long
def test_no_bucket_and_no_rights(
    bucket: Any, photos: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: dict[str, Any] = {"options": OPTIONS, "backbone": str(tiny_backbone)}
    with pytest.raises(StoreError, match="cannot write to s3://nobody/x: there is no such bucket"):
        embed_into_shards(photos, "s3://nobody/x", **usual)
    with pytest.raises(SeenitError, match="holds no shards of vectors"):
        open_store("s3://nobody/x")
    fill(S3)
    import boto3

    iam = boto3.client("iam")
    iam.create_user(UserName="reader")
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    rights = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*", "s3:Head*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    check_rights(b"0")
    try:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        fsspec.filesystem("s3").clear_instance_cache()
        assert open_store(S3).count() == 3
        with pytest.raises(StoreError, match=r"cannot write to s3://photos/vectors: .*[Aa]ccess.* and whether they"):
            embed_into_shards(photos, S3, **usual)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(StoreError, match=r"cannot read s3://photos/vectors: .* check the address, the cred"):
            open_store(S3)
    finally:
        check_rights(b"1000000")


def check_rights(after: bytes) -> None:
    """Have the server hold requests against rights once so many were answered."""
    address = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    urlopen(Request(address, data=after, headers={"Content-Type": "text/plain"})).close()
