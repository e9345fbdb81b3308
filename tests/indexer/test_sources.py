"""Sources that are no folders: lists, tables, tar shards and addresses, indexed and brought in line again."""

import csv
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_photo
from http_files import HttpFiles

from indexer import http_files
from indexer.errors import AwayError, SeenitError
from indexer.index.copy import copy_index
from indexer.index.index import Index
from indexer.index.keys import Roots
from indexer.sources.entry import UNKNOWN_NS, Entry, UnreadableEntry, stamp
from indexer.sources.named import key_of_location, located_line, location_of_key
from indexer.sources.open import SourceSpec, open_spec, settled, spec_of
from indexer.sync.options import SyncOptions
from indexer.sync.summary import Summary
from indexer.sync.sync import default_index, sync_folder
from trainer.data.sources import open_source


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_files, "PAUSE_S", 0.01)


@pytest.fixture
def run(tmp_path: Path, tiny_backbone: Path) -> Any:
    def run(*sources: str | Path, **options: Any) -> Summary:
        chosen = SyncOptions(resolution=56, workers=1, allow_private=True, **options)
        return sync_folder(list(sources), tmp_path / "index", options=chosen, backbone=str(tiny_backbone))

    return run


@pytest.fixture
def web(photos: Path) -> Iterator[HttpFiles]:
    with HttpFiles({f"{n}.jpg": next(photos.rglob(f"{n}.jpg")).read_bytes() for n in range(4)}) as web:
        yield web


def paths(index: Path) -> list[str]:
    with Index.open(index) as opened:
        return sorted(opened.roots.path(file.key) for record in opened.store.scroll() for file in record.files)


def add_member(shard: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(data), 1_600_000_000
    for field, value in fields.items():
        setattr(entry, field, value)
    shard.addfile(entry, io.BytesIO(data))


def make_tar(path: Path, photos: Path, names: str = "*") -> Path:
    with tarfile.open(path, "w") as shard:
        for photo in sorted(photos.rglob(f"{names}.jpg")):
            add_member(shard, f"{photo.stem}.jpg", photo.read_bytes())
            add_member(shard, f"{photo.stem}.json", b"{}")
    return path


# Keys and stamps


@pytest.mark.parametrize(
    "location",
    ["/data/a b/c.jpg", "/%/x.jpg", "/%a/..b/x.jpg", "/https:/x.jpg", "s3://bucket/a//b/../c.jpg", "https://h/%?x=1/"],
)
def test_a_path_or_address_is_its_key_and_back(location: str) -> None:
    key = key_of_location(location)
    assert location_of_key(key) == location
    assert not {"", ".", ".."} & set(key.split("/"))
    roots = Roots("/index", {}, {"0": SourceSpec("list", "/list.txt")})
    assert roots.path(f"0/{key}") == location and roots.keys(location) == [f"0/{key}"]


def test_a_stamp_tells_time_and_state() -> None:
    assert stamp(None) is None and stamp(12.7) == 12_000_000_000
    one, other = stamp(12, "a"), stamp(12, "b")
    assert one is not None and other is not None and one != other
    assert one // 10**9 == other // 10**9 == 12
    assert (stamp(None, "a") or 0) < UNKNOWN_NS + 10**9
    assert (stamp(1e30, "a") or 0) < 2**63 and (stamp(-1e30, "a") or 0) >= UNKNOWN_NS


@pytest.mark.parametrize(
    "line, base",
    [
        ("file:///etc/passwd", "/lists"),
        ("zip://x::http://h/a", "/lists"),
        ("https://user:secret@host/a.jpg", "/lists"),
        ("/etc/passwd", "s3://bucket/lists"),
        ("~/x.jpg", "https://h"),
        ("../../x.jpg", "s3://bucket/lists"),
        ("a\0b.jpg", "/lists"),
    ],
)
def test_what_a_list_may_not_name(line: str, base: str) -> None:
    with pytest.raises(ValueError) as told:
        located_line(line, base)
    assert "secret" not in str(told.value)


def test_what_words_mean(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert spec_of(tmp_path / "folder.txt") is None and spec_of(tmp_path / "x.jpg") is None
    kinds = {
        "a.txt": "list",
        "a.CSV": "table",
        "s-{00..03}.tar": "tar",
        "s3://b/x": "remote",
        "https://h/l.txt": "list",
    }
    for name, kind in kinds.items():
        spec = spec_of(name)
        assert spec is not None and spec.kind == kind
        assert SourceSpec.from_json(spec.as_json()) == spec
    for wrong in ({"kind": "shell", "address": "x"}, {"kind": "list", "address": ""}, {"kind": "list"}):
        with pytest.raises((ValueError, TypeError)):
            SourceSpec.from_json(wrong)
    with pytest.raises(SeenitError, match="--index"):
        default_index(["s3://bucket/photos"])
    with pytest.raises(SeenitError, match="list no folders"):
        open_spec(SourceSpec("remote", "https://host/photos"))
    with pytest.raises(SeenitError, match="no addresses of the kind"):
        list(open_spec(SourceSpec("remote", "nothing://host/photos")).entries())


# Lists and tables


@pytest.mark.slow
def test_a_list_is_brought_in_line(photos: Path, tmp_path: Path, run: Any) -> None:
    listed = tmp_path / "list.txt"
    names = [f"photos/{photo.relative_to(photos)}" for photo in sorted(photos.rglob("*.jpg"))]
    listed.write_text("\n".join([*names[:6], "", "photos/gone.jpg", str(photos / "a" / "0.jpg")]))
    first = run(listed)
    assert (first.images, first.embedded, first.changes.added) == (6, 6, 6)
    assert f"left out 1 row whose image is not there: {photos / 'gone.jpg'}" in first.notes
    assert paths(tmp_path / "index") == [str(tmp_path / name) for name in names[:6]]
    again = run()  # remembered
    assert (again.embedded, again.changes.unchanged) == (0, 6)
    listed.write_text("\n".join(names[1:]))
    draw_photo(photos / "a" / "1.jpg", 50)
    changed = run(listed)
    assert (changed.embedded, changed.changes.updated, changed.changes.added, changed.changes.removed) == (3, 1, 2, 1)
    listed.unlink()
    with pytest.raises(AwayError, match="no file at"):
        run()
    assert len(paths(tmp_path / "index")) == 7  # nothing was lost


@pytest.mark.slow
def test_a_list_beside_a_folder_shares_records_and_is_copied(photos: Path, tmp_path: Path, run: Any) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("photos/a/0.jpg\n")
    done = run(photos, listed)
    assert (done.images, done.changes.copies) == (8, 1)
    copy_index(tmp_path / "index", tmp_path / "other")
    assert paths(tmp_path / "other") == paths(tmp_path / "index")
    assert run(listed).changes.unchanged == 9  # the folder is out of this run's scope and stays


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_gives_keys_and_descriptions(kind: str, photos: Path, tmp_path: Path, run: Any) -> None:
    rows = [
        {"id": f"sku/{n}", "file": f"photos/a/{n}.jpg", "title": f"Thing {n}", "keywords": "red; round", "rating": 3}
        for n in range(3)
    ]
    rows += [{**rows[0], "file": "photos/a/3.jpg"}, {**rows[0], "id": "bad", "file": ""}]

    def write() -> Path:
        if kind == "csv":
            return write_csv(tmp_path / "table.csv", rows)
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
        return tmp_path / "table.parquet"

    table = write()
    first = run(table, key_column="id")
    assert first.embedded == 3 and any("1 row" in note for note in first.notes)
    assert len(first.unreadable) == 1 and "row 5" in first.unreadable[0]
    assert paths(tmp_path / "index") == [f"{table}/sku/{n}" for n in range(3)]
    with Index.open(tmp_path / "index") as index:
        (record,) = [one for one in index.store.scroll() if one.metadata.title == "Thing 1"]
        assert (record.metadata.keywords, record.metadata.rating) == (("red", "round"), 3)
        assert index.roots.keys(f"{table}/sku/1") == [record.files[0].key]
    rows[1]["title"] = "Renamed"
    write()
    again = run()
    assert again.embedded == 1  # the one whose description changed
    with Index.open(tmp_path / "index") as index:
        assert {one.metadata.title for one in index.store.scroll()} == {"Thing 0", "Renamed", "Thing 2"}
    with pytest.raises(SeenitError, match="other columns"):
        run(table, key_column="title")


def test_a_table_without_the_column(tmp_path: Path, run: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "b": [2]}), tmp_path / "t.parquet")
    with pytest.raises(SeenitError, match=r"no column of paths.*a, b.*--path-column"):
        run(tmp_path / "t.parquet")
    with pytest.raises(SeenitError, match=r"no column 'url'.*--path-column"):
        run(tmp_path / "t.parquet", path_column="url")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SeenitError, match="cannot read the table"):
        run(tmp_path / "t.parquet")
    with pytest.raises(SeenitError, match="has no columns"):
        run(tmp_path / "list.txt", key_column="id")
    assert not (tmp_path / "index").exists()


# Tar shards


@pytest.mark.slow
def test_shards_are_read_where_they_lie(photos: Path, tmp_path: Path, run: Any) -> None:
    make_tar(tmp_path / "s-0.tar", photos, "[0-3]")
    make_tar(tmp_path / "s-1.tar", photos, "[4-7]")
    pattern = str(tmp_path / "s-{0..1}.tar")
    first = run(pattern)
    assert (first.embedded, first.skipped, first.unreadable) == (8, {}, ())
    assert paths(tmp_path / "index")[0] == str(tmp_path / "s-0.tar" / "0.jpg")
    assert (run(pattern).embedded, run(pattern).changes.unchanged) == (0, 8)
    with tarfile.open(tmp_path / "s-1.tar", "a") as shard:  # another state of the file: read again, embedded once
        add_member(shard, "new.jpg", draw_photo(tmp_path / "new.jpg", 77).read_bytes())
    grown = run()
    assert (grown.embedded, grown.changes.added) == (1, 1)
    os.rename(tmp_path / "s-1.tar", tmp_path / "away.tar")
    with pytest.raises(AwayError, match=r"nothing at .*s-1\.tar"):
        run()
    assert len(paths(tmp_path / "index")) == 9


@pytest.mark.slow
def test_a_hostile_shard_costs_itself(photos: Path, tmp_path: Path, run: Any) -> None:
    data = (photos / "a" / "0.jpg").read_bytes()
    (tmp_path / "secret.jpg").write_bytes(data)
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        add_member(shard, "../../escape.jpg", data)
        add_member(shard, "/abs.jpg", (photos / "a" / "1.jpg").read_bytes())
        add_member(shard, "link.jpg", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.jpg"))
        add_member(shard, "hard.jpg", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        add_member(shard, "fifo.jpg", b"", type=tarfile.FIFOTYPE)
        add_member(shard, "._mac.jpg", data)
        add_member(shard, "broken.jpg", data[:200])
    done = run(tmp_path / "s.tar")
    assert (done.images, sum(done.skipped.values())) == (2, 1)
    assert paths(tmp_path / "index") == [f"{tmp_path}/s.tar/../../escape.jpg", f"{tmp_path}/s.tar//abs.jpg"]
    assert sorted(os.listdir(tmp_path)) == ["index", "photos", "s.tar", "secret.jpg"]  # nothing was unpacked


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + bytes(6) + b"\xff\xff\xff\xff\0", b"\xff" * 12])
def test_sizes_that_lie_end_in_one_line(size: bytes, photos: Path, tmp_path: Path, run: Any) -> None:
    make_tar(tmp_path / "s.tar", photos)
    raw = bytearray((tmp_path / "s.tar").read_bytes())
    raw[124:136] = size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "s.tar").write_bytes(raw)
    with pytest.raises(SeenitError, match=r"cannot read the shard .*s\.tar") as told:
        run(tmp_path / "s.tar")
    assert "\n" not in str(told.value)


# Addresses


@pytest.mark.slow
def test_addresses_in_a_list(web: HttpFiles, tmp_path: Path, run: Any) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{web.url}/{n}.jpg\n" for n in range(4)))
    first = run(listed)
    assert (first.embedded, first.unreadable) == (4, ())
    assert paths(tmp_path / "index") == [f"{web.url}/{n}.jpg" for n in range(4)]
    gets = web.count("GET")
    assert run(listed).changes.unchanged == 4 and web.count("GET") == gets  # asked by HEAD alone
    web.files["0.jpg"] = draw_photo(tmp_path / "other.jpg", 60).read_bytes()
    del web.files["1.jpg"]
    changed = run()
    assert (changed.embedded, changed.changes.updated, changed.changes.removed) == (1, 1, 1)


@pytest.mark.slow
def test_a_server_with_faults(web: HttpFiles, tmp_path: Path, run: Any) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{web.url}/{n}.jpg\n" for n in range(4)))
    web.faults = {"0.jpg": [503], "1.jpg": [500] * 9, "2.jpg": [403], "3.jpg": [429]}
    first = run(listed)
    assert first.embedded == 2 and len(first.unreadable) == 2 and "403" in " ".join(first.unreadable)
    web.faults = {"1.jpg": [], "0.jpg": ["drop"] * 4}
    web.files["0.jpg"] = draw_photo(tmp_path / "other.jpg", 60).read_bytes()
    second = run(listed)  # asked by HEAD, then the body breaks off three times
    assert second.embedded == 2 and second.changes.removed == 0
    web.faults = {"3.jpg": [500] * 3}
    third = run(listed)
    assert (third.embedded, third.changes.removed, len(third.unreadable)) == (1, 0, 1)
    assert run(listed).changes.unchanged == 4


@pytest.mark.slow
def test_a_server_that_tells_nothing_is_read_again_and_not_embedded(web: HttpFiles, tmp_path: Path, run: Any) -> None:
    web.no_head, web.validators = True, False
    (tmp_path / "list.txt").write_text(f"{web.url}/0.jpg\n{web.url}/1.jpg\n")
    assert run(tmp_path / "list.txt").embedded == 2
    gets = web.count("GET")
    again = run()
    assert (again.embedded, again.changes.unchanged, again.changes.removed) == (0, 2, 0)
    assert web.count("GET") > gets
    with Index.open(tmp_path / "index") as index:
        assert all(record.metadata.taken_at is None for record in index.store.scroll())


def test_private_addresses_are_not_asked(web: HttpFiles, tmp_path: Path, tiny_backbone: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{web.url}/0.jpg\n")
    with pytest.raises(SeenitError):
        sync_folder(
            [tmp_path / "list.txt"], tmp_path / "index", options=SyncOptions(workers=1), backbone=str(tiny_backbone)
        )
    assert not web.asked
    with pytest.raises(SeenitError, match="own network"):
        list(open_spec(SourceSpec("list", f"{web.url}/list.txt")).entries())


@pytest.mark.slow
def test_lists_tables_and_shards_at_addresses(web: HttpFiles, photos: Path, tmp_path: Path, run: Any) -> None:
    web.files["list.txt"] = b"0.jpg\n1.jpg\n/etc/passwd\n"
    web.files["t.csv"] = f"key,url\nx,{web.url}/2.jpg\n".encode()
    web.files["s.tar"] = make_tar(tmp_path / "s.tar", photos, "[67]").read_bytes()
    done = run(f"{web.url}/list.txt", f"{web.url}/t.csv", f"{web.url}/s.tar")
    assert done.embedded == 5 and len(done.unreadable) == 1 and "line 3" in done.unreadable[0]
    assert f"{web.url}/s.tar/6.jpg" in paths(tmp_path / "index") and f"{web.url}/t.csv/x" in paths(tmp_path / "index")
    assert run().embedded == 0
    with pytest.raises(AwayError, match="nothing is at"):
        run(f"{web.url}/nothing.txt")


@pytest.mark.slow
def test_any_file_system_of_fsspec(photos: Path, tmp_path: Path, run: Any) -> None:
    (photos / ".hidden").mkdir()
    draw_photo(photos / ".hidden" / "x.jpg", 90)
    os.symlink("/etc/hostname", photos / "link.jpg")
    first = run(f"file://{photos}", exclude=("b/4.jpg",))
    assert first.embedded == 7 and paths(tmp_path / "index")[0] == f"file://{photos}/a/0.jpg"
    os.utime(photos / "a" / "0.jpg", ns=(1, 1))
    assert (run().embedded, run().changes.unchanged) == (0, 7)
    with pytest.raises(AwayError, match="nothing is at"):
        run(f"file://{photos}/nothing")


@pytest.mark.slow
def test_statistics_are_fitted_again_over_sources_out_of_scope(
    photos: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tar(tmp_path / "s.tar", photos, "0")
    run(tmp_path / "s.tar")
    grown = run(photos)
    assert grown.refitted and grown.embedded == 8
    with Index.open(tmp_path / "index") as index:
        assert index.awaiting_refit() == 0


def test_entries_are_the_images_of_training(web: HttpFiles, photos: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"path": "photos/a/0.jpg"}, {"path": f"{web.url}/1.jpg"}])
    source = open_source([tmp_path / "t.csv", make_tar(tmp_path / "s.tar", photos)], allow_private=True)
    assert len(source) == 10 and source.places[1].private and not web.asked
    entries = list(open_spec(settled(SourceSpec("table", str(tmp_path / "t.csv"))), allow_private=True).entries())
    assert all(isinstance(entry, Entry) for entry in entries) and web.count("HEAD") == 1
    with pytest.raises(SeenitError, match="names no images"):
        open_source(write_csv(tmp_path / "empty.csv", [{"path": ""}]))
    broken = list(open_spec(SourceSpec("table", str(tmp_path / "empty.csv"))).entries())
    assert all(isinstance(entry, UnreadableEntry) for entry in broken)


@pytest.mark.long
def test_a_bucket_is_brought_in_line(bucket: Any, photos: Path, tmp_path: Path, run: Any) -> None:
    for n, photo in enumerate(sorted(photos.rglob("*.jpg"))):
        bucket.put_object(Bucket="photos", Key=f"shop/{n % 2}/{photo.name}", Body=photo.read_bytes())
    bucket.put_object(Bucket="photos", Key="shop/notes.txt", Body=b"no image")
    first = run("s3://photos/shop")
    assert (first.embedded, first.unreadable) == (8, ())
    assert paths(tmp_path / "index")[0] == "s3://photos/shop/0/0.jpg"
    assert run().changes.unchanged == 8
    data = (photos / "a" / "0.jpg").read_bytes()
    same_size = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    bucket.put_object(Bucket="photos", Key="shop/0/0.jpg", Body=same_size)  # told by its ETag alone
    bucket.delete_object(Bucket="photos", Key="shop/1/1.jpg")
    changed = run("s3://photos/shop")
    assert (changed.embedded, changed.changes.updated, changed.changes.removed) == (1, 1, 1)
    bucket.put_object(Bucket="photos", Key="s.tar", Body=make_tar(tmp_path / "s.tar", photos).read_bytes())
    assert run("s3://photos/s.tar").changes.copies == 6
    assert len(open_source("s3://photos/shop")) == 8
    with pytest.raises(SeenitError, match=r"(cannot list|nothing is at) s3://nobody"):
        run("s3://nobody/x")
