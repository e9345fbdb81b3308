"""Vectors as shards: the index that is made of them is the plain one; they are brought in line; no shard is trusted."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_photo
from stored_records import RECORDS
from typer.testing import CliRunner

import cli
from indexer import SyncOptions, copy_index, embed_into_shards, sync_folder
from indexer.errors import LockedError, SeenitError, StoreError, UnusableError
from indexer.index.index import Index
from indexer.store import shard_file, shard_store
from indexer.store.open import open_store
from indexer.store.protocol import Filter, Record, Schema, StoredFile
from indexer.store.shard_store import ShardStore, make_shard_place
from indexer.store.sqlite_check import check_index, repair_index

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")
OPTIONS = SyncOptions(resolution=56, workers=1)
DIM = len(np.asarray(RECORDS[0].global_vector))


@pytest.fixture
def embed(photos: Path, tmp_path: Path, tiny_backbone: Path) -> Callable[..., Any]:
    def run(**more: Any) -> Any:
        return embed_into_shards(
            photos, tmp_path / "shards", **{"options": OPTIONS, "backbone": str(tiny_backbone), **more}
        )

    return run


def everything(index: Path) -> dict[str, Record]:
    with Index.open(index) as opened:
        return {record.id: record for record in opened.store.scroll(vectors=True)}


def assert_same(one: dict[str, Record], other: dict[str, Record]) -> None:
    assert one.keys() == other.keys() and one
    for id, record in one.items():
        twin = other[id]
        assert record.global_vector is not None and twin.global_vector is not None
        assert np.array_equal(record.global_vector, twin.global_vector)
        assert (record.files, record.metadata, record.whitening_id, record.tags, record.patches, record.attributes) == (
            twin.files,
            twin.metadata,
            twin.whitening_id,
            twin.tags,
            twin.patches,
            twin.attributes,
        )


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


@pytest.mark.slow
def test_an_index_made_of_shards_is_the_plain_one(
    photos: Path, tmp_path: Path, tiny_backbone: Path, embed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_store, "SHARD_RECORDS", 3)
    done = embed()
    assert done.embedded == 8 and len(shards_of(tmp_path / "shards")) > 1
    assert copy_index(tmp_path / "shards", tmp_path / "copied") == 8
    sync_folder(photos, tmp_path / "plain", options=OPTIONS, backbone=str(tiny_backbone))
    plain, copied = everything(tmp_path / "plain"), everything(tmp_path / "copied")
    assert_same(plain, copied)
    queries = np.stack([np.asarray(record.global_vector) for record in plain.values()])
    with Index.open(tmp_path / "plain") as one, Index.open(tmp_path / "copied") as other:
        assert one.store.search(queries, 5) == other.store.search(queries, 5)
        for name in ("backbone_hash", "descriptor", "whitening_id", "fitted_on", "roots", "fixed", "precision"):
            assert getattr(one.manifest, name) == getattr(other.manifest, name), name
    again = sync_folder(photos, tmp_path / "copied", options=OPTIONS)
    assert again.embedded == 0 and again.changes.unchanged == 8


@pytest.mark.slow
def test_a_second_run_embeds_what_is_new_and_follows_the_files(
    photos: Path, tmp_path: Path, embed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_store, "SHARD_RECORDS", 3)
    embed()
    before = everything(tmp_path / "shards")
    draw_photo(photos / "a" / "new.jpg", 99)
    (photos / "a" / "0.jpg").rename(photos / "b" / "renamed.jpg")
    (photos / "b" / "7.jpg").unlink()
    shutil.copy(photos / "a" / "1.jpg", photos / "copy.jpg")
    done = embed()
    assert (done.embedded, done.images, done.changes.renamed, done.changes.removed, done.changes.copies) == (
        1,
        8,
        1,
        1,
        1,
    )
    after = everything(tmp_path / "shards")
    assert len(before.keys() & after.keys()) == 7
    names = {Path(file.key).name for record in after.values() for file in record.files}
    assert names == {"renamed.jpg", "copy.jpg", "new.jpg", *(f"{n}.jpg" for n in range(1, 7))}
    assert embed().embedded == 0
    (photos / "a" / "0.jpg").write_bytes(b"no image")
    assert embed().images == 8


def embedding_by_eights(photos: Path, place: Path | str, backbone: Path) -> "subprocess.Popen[bytes]":
    """A process that writes shards of eight records, to be killed."""
    code = (
        "import sys; from indexer import *; from indexer.store import shard_store; from indexer.sync import writer\n"
        "shard_store.SHARD_RECORDS, writer.FIT_SAMPLE, writer.WRITE_EVERY = 8, 8, 8\n"
        "options = SyncOptions(resolution=56, workers=1)\n"
        "embed_into_shards(sys.argv[1], sys.argv[2], options=options, backbone=sys.argv[3])"
    )
    command = [sys.executable, "-c", code, *map(str, (photos, place, backbone))]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.mark.long
def test_a_killed_run_loses_what_was_not_written_and_goes_on(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(60):
        draw_photo(tmp_path / "photos" / f"{n:02d}.jpg", n)
    process = embedding_by_eights(tmp_path / "photos", tmp_path / "shards", tiny_backbone)
    deadline = time.monotonic() + 60
    while len(shards_of(tmp_path / "shards")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = len(everything(tmp_path / "shards"))
    assert kept >= 16 and kept % 8 == 0
    done = embed_into_shards(tmp_path / "photos", tmp_path / "shards", options=OPTIONS, backbone=str(tiny_backbone))
    assert done.embedded == (60 if done.refitted else 60 - kept) and len(everything(tmp_path / "shards")) == 60


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    make_shard_place(tmp_path)
    store = open_store(tmp_path, write=True)
    assert isinstance(store, ShardStore) and store.schema() is None
    store.ensure(Schema(DIM))
    store.upsert(RECORDS)
    store.write_blob("manifest.json", b"{}")
    with pytest.raises(LockedError, match="another process"):
        ShardStore.open(tmp_path, write=True, wait_s=0)
    store.close()
    store.close()
    opened = open_store(tmp_path)
    assert opened.count() == len(RECORDS) and opened.schema() == Schema(DIM)
    assert opened.blob_names() == ["manifest.json"] and opened.read_blob("manifest.json") == b"{}"
    for record, twin in zip(RECORDS, opened.retrieve([record.id for record in RECORDS], vectors=True), strict=True):
        assert (record.files, record.metadata, record.tags, record.patches) == (
            twin.files,
            twin.metadata,
            twin.tags,
            twin.patches,
        )
        assert dict(record.attributes) == dict(twin.attributes)
        assert np.allclose(np.asarray(record.global_vector), np.asarray(twin.global_vector), atol=2e-3)
    assert {listed.id: listed.files for listed in opened.list_files()} == {r.id: r.files for r in RECORDS}
    assert opened.count(Filter(not_whitening_id=RECORDS[0].whitening_id)) == sum(
        record.whitening_id != RECORDS[0].whitening_id for record in RECORDS
    )
    with pytest.raises(StoreError, match=r"not searched; make an index of them with: seenit copy .* INDEX"):
        opened.search(np.zeros((1, DIM), np.float32), 3)
    with pytest.raises(StoreError, match="know no filters"):
        opened.count(Filter(tags=("x",)))


def test_a_record_that_is_written_again_counts_once_also_after_a_kill(tmp_path: Path) -> None:
    make_shard_place(tmp_path)
    store = ShardStore.open(tmp_path, write=True)
    store.ensure(Schema(DIM))
    store.upsert(RECORDS[:4])
    store.optimize()
    moved = tuple(StoredFile("0/elsewhere.jpg", 1, 2) for _ in range(1))
    store.upsert([Record(**{**vars(RECORDS[1]), "files": moved})])
    store.optimize()
    killed = open_store(tmp_path)  # as a process that was killed here leaves it
    assert killed.count() == 4 and len(list(killed.scroll())) == 4
    assert killed.retrieve([RECORDS[1].id])[0].files == moved
    store.close()
    assert [len(pq.read_table(path)) for path in shards_of(tmp_path)] == [3, 1]
    store = ShardStore.open(tmp_path, write=True)
    store.set_tags({RECORDS[0].id: ("a", "b"), "00000000-0000-0000-0000-000000000000": ("x",)})
    store.set_attributes({RECORDS[0].id: {"lens": 35}})
    store.delete([RECORDS[1].id, RECORDS[2].id])
    store.close()
    left = open_store(tmp_path)
    assert left.count() == 2 and len(shards_of(tmp_path)) == 1
    assert left.tags_of([RECORDS[0].id]) == {RECORDS[0].id: ("a", "b")}
    assert left.attributes_of([RECORDS[0].id]) == {RECORDS[0].id: {"lens": 35}}


@pytest.mark.slow
def test_without_patches_no_index_is_made(tmp_path: Path, embed: Callable[..., Any]) -> None:
    embed(patches=False)
    assert all(record.patches is None for record in everything(tmp_path / "shards").values())
    with pytest.raises(SeenitError, match="hold no patches"):
        copy_index(tmp_path / "shards", tmp_path / "copied")
    assert not (tmp_path / "copied").exists()
    with pytest.raises(SeenitError, match="were made without patches"):
        embed()


def test_nothing_of_others_is_written_over(tmp_path: Path, tiny_backbone: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text.txt").write_text("mine")
    (tmp_path / "photos" / "2023").mkdir(parents=True)
    for place in ("mine", "photos"):
        with pytest.raises(SeenitError, match="holds other files"):
            make_shard_place(tmp_path / place)
        assert not (tmp_path / place / "shards.json").exists()
    with pytest.raises(SeenitError):
        embed_into_shards(tmp_path / "nothing", tmp_path / "shards", backbone=str(tiny_backbone))
    assert not (tmp_path / "shards").exists()


# ---- hostile shards ----


def table_of(**columns: Any) -> Any:
    """A shard's table of two records, with other columns in place of its own."""
    wanted = shard_file.columns(4)
    vectors = columns.pop("vector", np.eye(2, 4))
    usual = {
        "id": [RECORDS[0].id, RECORDS[1].id],
        "files": [[{"key": "0/a.jpg", "size": 1, "mtime_ns": 2}]] * 2,
        "whitening": ["w"] * 2,
        "patches": [None] * 2,
        "about": [json.dumps({"width": 1, "height": 1, "format": "PNG", "tags": []})] * 2,
    }
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors, np.float16).ravel()), 4)
        if field.name == "vector"
        else pa.array(columns.get(field.name, usual[field.name]), field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)


def shard_with(folder: Path, table: Any, **options: Any) -> Path:
    (folder / "shards.json").write_text(json.dumps({"format": 1, "dim": 4, "patches": True}))
    pq.write_table(table, folder / "000000.parquet", **{"compression": "none", "use_dictionary": False, **options})
    return folder


def read_all(folder: Path) -> list[Record]:
    return list(open_store(folder).scroll(vectors=True))


def test_a_sound_shard_is_read(tmp_path: Path) -> None:
    found = read_all(shard_with(tmp_path, table_of()))
    assert [record.id for record in found] == [RECORDS[0].id, RECORDS[1].id]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"id": ["no id", RECORDS[1].id]}, "content id"),
        ({"vector": [[1, 0, 0, 0], [float("nan"), 0, 0, 0]]}, "not finite"),
        ({"vector": [[1, 0, 0, 0], [9, 0, 0, 0]]}, "not of length 1"),
        ({"about": ["{", "{}"]}, "Expecting"),
        ({"about": ['{"width": "x"}', "[]"]}, "not one that seenit wrote"),
        ({"whitening": [None, "w"]}, "a text is missing"),
        ({"files": [None, []]}, "iterable"),
        ({"files": [[{"key": "0/a", "size": None, "mtime_ns": 2}], []]}, "a file is none"),
    ],
)
def test_rows_that_make_no_sense_are_refused_in_one_line(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    folder = shard_with(tmp_path, table_of(**changed))
    with pytest.raises(StoreError, match=why) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"compression": "zstd"}, "compressed"), ({"use_dictionary": True}, "dictionaries")],
)
def test_what_could_stand_for_more_than_its_size_is_refused(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UnusableError, match=why):
        read_all(shard_with(tmp_path, table_of(), **options))


def test_other_columns_sizes_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shard_with(tmp_path, table_of().drop_columns(["vector"]))
    with pytest.raises(UnusableError, match="no column vector"):
        read_all(folder)
    (folder / "shards.json").write_text(json.dumps({"format": 1, "dim": 5, "patches": True}))
    pq.write_table(table_of(), folder / "000000.parquet", compression="none", use_dictionary=False)
    with pytest.raises(UnusableError, match="its column vector is"):
        read_all(folder)
    monkeypatch.setattr(shard_file, "MAX_ROWS", 1)
    with pytest.raises(UnusableError, match="2 rows, more than 1"):
        read_all(shard_with(tmp_path, table_of()))
    monkeypatch.undo()
    shard = folder / "000000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnusableError, match="cannot be used"):
        read_all(folder)
    (tmp_path / "outside").write_bytes(whole)
    shard.unlink()
    shard.symlink_to(tmp_path / "outside")
    with pytest.raises(UnusableError, match="cannot be used"):
        read_all(folder)


def test_flipped_bytes_end_in_one_line(tmp_path: Path) -> None:
    folder = shard_with(tmp_path, table_of(), write_page_checksum=True)
    shard, rng = folder / "000000.parquet", np.random.default_rng(0)
    whole = shard.read_bytes()
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
            data[at] ^= int(rng.integers(1, 256))
        shard.write_bytes(bytes(data))
        try:
            read_all(folder)
        except StoreError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 1}',
        '{"format": 1, "dim": -3, "patches": true}',
        '{"format": 9, "dim": 4, "patches": true}',
    ],
)
def test_a_marker_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    shard_with(tmp_path, table_of())
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(UnusableError):
        open_store(tmp_path)


# ---- the commands ----


@pytest.mark.slow
def test_the_commands(photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, [str(one) for one in arguments])

    usual = ("--backbone", tiny_backbone, "--resolution", 56, "--workers", 1)
    done = call("embed", photos, "--shards", tmp_path / "shards", *usual)
    assert done.exit_code == 0 and "8 images, 8 embedded now" in done.output
    assert call("embed", photos, *usual).exit_code == 2
    for only in (
        "--tokens=full",
        "--ray=local",
        "--actors=1",
        "--gpus-per-actor=.5",
        "--allow-private",
        "--no-patches",
    ):
        refused = call("embed", photos, "--out", tmp_path / "x.npy", only, *usual)
        assert refused.exit_code == 2 and f"{only.split('=')[0]} goes with --shards" in refused.output, only
    for target in (("--out", tmp_path / "x.npy"), ("--shards", tmp_path / "other")):
        refused = call("embed", photos, *target, "--resolution", 5)
        assert refused.exit_code == 1 and "a resolution of 5 pixels makes no sense" in str(refused.exception)
    assert "copied 8 images" in call("copy", tmp_path / "shards", tmp_path / "index").output
    assert call("info", "--index", tmp_path / "shards").exit_code == 0
    (tmp_path / "link").symlink_to(tmp_path / "index")
    for twin in (tmp_path / "index", tmp_path / "link", f"{tmp_path}/./index/"):
        with pytest.raises(SeenitError, match="are the same index"):
            copy_index(tmp_path / "index", twin)
    with pytest.raises(SeenitError, match="are the same index"):
        copy_index("http://Host:6333/photos?shards=2", "http://host/photos/")


def test_embed_and_index_share_their_options() -> None:
    from typer.main import get_command

    def options_of(name: str) -> dict[str, Any]:
        command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
        return {option: one for one in command.params for option in one.opts if option.startswith("--")}

    index, embed = options_of("index"), options_of("embed")
    shared = index.keys() & embed.keys() - {"--backbone", "--help"}
    assert shared >= {
        "--tokens",
        "--ray",
        "--actors",
        "--path-column",
        "--key-column",
        "--allow-private",
        "--resolution",
    }
    for name in shared:
        assert (index[name].help, index[name].default) == (embed[name].help, embed[name].default), name


# ---- where an index is needed ----


def test_shards_are_checked_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    make_shard_place(folder)
    with closing(ShardStore.open(folder, write=True)) as store:
        store.ensure(Schema(DIM))
        for record in RECORDS[:3]:
            store.upsert([record])
            store.optimize()
    names = [path.name for path in shards_of(folder)]
    assert len(names) == 3
    without = check_index(folder)
    assert without.images == 3 and [*without.problems] == [f"the manifest of the shards in {folder} is missing"]
    whole = (folder / names[1]).read_bytes()
    (folder / names[1]).write_bytes(whole[:-40])
    (folder / names[2]).write_bytes(b"PAR1")
    found = check_index(folder)
    assert found.images == 1 and len(found.problems) == 2
    for name, problem in zip(names[1:], found.problems, strict=True):
        assert str(folder / name) in problem and "remove it, and embed again" in problem
    assert found.in_words.endswith("run the same seenit embed --shards again")
    with pytest.raises(SeenitError, match="shards, which are not repaired"):
        repair_index(folder)


@pytest.mark.slow
def test_commands_that_need_an_index_say_what_shards_are(
    photos: Path, tmp_path: Path, embed: Callable[..., Any]
) -> None:
    embed()
    folder = tmp_path / "shards"

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, [str(one) for one in arguments])

    sound = call("check", "--index", folder)
    assert sound.exit_code == 0 and "is whole: 8 images" in sound.output
    photo = next(photos.rglob("*.jpg"))
    for arguments in (("duplicates", folder), ("serve", folder), ("search", photo, "--index", folder)):
        done = call(*arguments)
        assert done.exit_code == 1 and f"seenit copy {folder} INDEX" in str(done.exception), arguments
    shard = shards_of(folder)[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    broken = call("check", "--index", folder)
    assert broken.exit_code == 1 and str(shard) in broken.output and "embed --shards again" in broken.output
