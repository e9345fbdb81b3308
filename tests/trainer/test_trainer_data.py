"""Training images: found in folders, lists and shards, streamed the same however the run is cut up."""

import bz2
import gzip
import io
import itertools
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from indexer.errors import SeenitError
from indexer.images.decode import is_image
from indexer.sources import shards
from indexer.sources.place import ImageRef, read_place
from indexer.sources.shards import expand_braces
from trainer.config import Config, make_config
from trainer.data.sources import ImageSource, open_source
from trainer.data.stream import CropBatch, CropStream

CONFIG = replace(make_config("tiny"), batch_size=4, num_local=2, seed=3)


def first_batches(source: ImageSource, config: Config, count: int, **where: Any) -> list[CropBatch]:
    with CropStream(source, config, say=lambda line: None, **where) as stream:
        return list(itertools.islice(stream, count))


def same(a: CropBatch, b: CropBatch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("global_crops", "local_crops", "indices"))


def make_shard(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w") as shard:
        for photo in sorted(folder.rglob("*.jpg")):
            data = photo.read_bytes()
            for name, content in ((photo.stem + ".jpg", data), (photo.stem + ".cls", b"3")):
                entry = tarfile.TarInfo(f"{photo.parent.name}/{name}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    return path


def test_folder_list_and_shard_hold_the_same_images(photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    folder = open_source(photos)
    assert len(folder) == 8
    listed = tmp_path / "list.txt"
    listed.write_text(
        "".join(f"photos/{name}\n" for name in sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg")))
    )
    shard = make_shard(tmp_path / "shard.tar", photos)
    contents = [sorted(read_place(place, 10**9) for place in open_source(p).places) for p in (photos, listed, shard)]
    assert contents[0] == contents[1] == contents[2]
    assert len(open_source([photos, shard])) == 16
    assert len(open_source(tmp_path, exclude_dirs=[photos])) == 8  # the shard in the folder


@pytest.mark.parametrize("engine", ["pillow", "torch"])
def test_shapes_and_order(photos: Path, engine: Literal["pillow", "torch"]) -> None:
    config = replace(CONFIG, engine=engine)
    batches = first_batches(open_source(photos), config, 4)
    for batch in batches:
        assert batch.global_crops.shape == (8, 3, 56, 56) and batch.global_crops.dtype == torch.float32
        assert batch.local_crops.shape == (8, 3, 28, 28)
        assert batch.indices.shape == (4,) and batch.indices.dtype == torch.int64
        assert batch.global_crops.std() > 0.1 and batch.global_crops.abs().max() < 3
    for epoch in (batches[:2], batches[2:]):  # each image once
        assert sorted(torch.cat([batch.indices for batch in epoch]).tolist()) == list(range(8))
    assert (
        batches[0].indices.tolist() + batches[1].indices.tolist()
        != batches[2].indices.tolist() + batches[3].indices.tolist()
    )


def test_views_come_before_images(tmp_path: Path) -> None:
    """With crops of one colour each, view-major order shows."""
    for n in range(4):
        Image.new("RGB", (64, 64), (60 * n + 20,) * 3).save(tmp_path / f"{n}.png")
    config = replace(CONFIG, jitter_probability=0.0, blur_first=0.0, solarise_probability=0.0)
    batch = first_batches(open_source(tmp_path), config, 1)[0]
    levels = batch.global_crops.mean((1, 2, 3)).view(2, 4)
    assert torch.equal(levels[0], levels[1])
    assert levels[0].argsort().argsort().tolist() == batch.indices.argsort().argsort().tolist()
    assert torch.equal(batch.local_crops.mean((1, 2, 3)).view(2, 4)[0].argsort(), levels[0].argsort())


def test_no_local_crops(photos: Path) -> None:
    for engine in ("pillow", "torch"):
        batch = first_batches(open_source(photos), replace(CONFIG, num_local=0, engine=engine), 1)[0]
        assert batch.local_crops.shape == (0, 3, 28, 28) and batch.global_crops.shape == (8, 3, 56, 56)


def test_engines_give_nearly_the_same_crops(photos: Path) -> None:
    config = replace(CONFIG, solarise_probability=0.0)
    by_pillow, by_torch = (
        first_batches(open_source(photos), one, 1)[0] for one in (config, replace(config, engine="torch"))
    )
    assert torch.equal(by_pillow.indices, by_torch.indices)
    assert (by_pillow.global_crops - by_torch.global_crops).abs().mean() < 0.02
    assert (by_pillow.local_crops - by_torch.local_crops).abs().mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pillow", "torch"])
def test_resumed_and_divided_runs_see_the_same(photos: Path, engine: Literal["pillow", "torch"]) -> None:
    source, config = open_source(photos), replace(CONFIG, engine=engine)
    whole = first_batches(source, config, 4)
    resumed = first_batches(source, config, 2, position=2)
    assert all(map(same, whole[2:], resumed))
    halves = [first_batches(source, config, 2, rank=rank, world_size=2) for rank in (0, 1)]
    for number in range(2):
        parts = [half[number] for half in halves]
        assert torch.equal(torch.cat([p.indices for p in parts]), whole[number].indices)
        for name in ("global_crops", "local_crops"):
            views = [getattr(p, name).unflatten(0, (2, 2)) for p in parts]  # (V, B / 2, 3, S, S)
            assert torch.equal(torch.cat(views, 1).flatten(0, 1), getattr(whole[number], name))
    assert not same(whole[0], first_batches(source, replace(config, seed=4), 1)[0])


def test_position_names_the_next_batch(photos: Path) -> None:
    with CropStream(open_source(photos), CONFIG, position=5) as stream:
        batches = iter(stream)
        next(batches)
        assert stream.position == 6
        following = next(batches)
    assert same(following, first_batches(open_source(photos), CONFIG, 1, position=6)[0])


@pytest.mark.slow
def test_workers_give_what_one_process_gives(photos: Path) -> None:
    (photos / "a" / "0.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes()[:400])
    lines: list[str] = []
    source = open_source(photos)
    with CropStream(source, replace(CONFIG, workers=2), say=lines.append) as stream:
        batches = list(itertools.islice(stream, 6))
    assert all(map(same, batches, first_batches(source, CONFIG, 6)))
    assert len(lines) == 1 and "0.jpg" in lines[0] and "\n" not in lines[0]


def test_broken_images_are_reported_once_and_replaced(photos: Path, tmp_path: Path) -> None:
    for name in ("0.jpg", "2.jpg"):
        (photos / "a" / name).write_bytes(b"\xff\xd8\xff" + bytes(100))
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([*(str(p) for p in sorted(photos.rglob("*.jpg"))), "gone.jpg", ""]))
    source = open_source(listed)
    lines: list[str] = []
    with CropStream(source, CONFIG, say=lines.append) as stream:
        batches = list(itertools.islice(stream, 8))
        assert len(stream.broken) == 3
    assert len(lines) == 3 and all(line.count("cannot read") == 1 for line in lines)
    assert sum("gone.jpg" in line for line in lines) == 1
    broken = {index for index, place in enumerate(source.places) if place.name in stream.broken}
    used = torch.cat([batch.indices for batch in batches]).tolist()
    assert not broken & set(used) and len(set(used)) == 6
    assert same(
        first_batches(source, CONFIG, 1, position=7)[0], batches[7]
    )  # also who replaces is a matter of the seed


def test_damaged_members_of_a_shard_are_replaced(photos: Path, tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "shard.tar", photos)
    place = open_source(shard).places[3]
    with open(shard, "r+b") as file:
        file.seek(place.start + 100)
        file.write(bytes(place.size - 200))
    stream = CropStream(open_source(shard), CONFIG, say=lambda line: None)
    list(itertools.islice(stream, 4))
    assert list(stream.broken) == [place.name] and place.member in place.name


def test_only_broken_images_end_the_stream(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    with pytest.raises(SeenitError, match="cannot be read") as caught:
        first_batches(open_source(tmp_path), CONFIG, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["folder", "a.tar", "a.dat", "a.tar.gz", "a.tar.bz2", "a.tar.zst", "{1..3}.tar"])
@pytest.mark.parametrize("content", [None, b"something else"])
def test_no_images_is_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SeenitError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeenitError, match="no images in"):
        open_source(tmp_path / "empty")


@pytest.mark.slow
def test_compressed_shards_are_unpacked_for_the_run(photos: Path, tmp_path: Path) -> None:
    plain = make_shard(tmp_path / "a.tar", photos)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "b.tgz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.tar.bz2").write_bytes(bz2.compress(plain.read_bytes()))
    expected = [read_place(place, 10**9) for place in open_source(plain).places]
    for name in ("b.tar.gz", "b.tgz", "c.tar.bz2"):
        places = open_source(tmp_path / name).places
        assert [read_place(place, 10**9) for place in places] == expected and name in places[0].name
    with CropStream(open_source(tmp_path / "b.tgz"), replace(CONFIG, workers=1), say=lambda line: None) as stream:
        assert same(next(iter(stream)), first_batches(open_source(plain), CONFIG, 1)[0]) and not stream.broken


def test_unpacked_shards_go_when_the_process_ends(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(make_shard(tmp_path / "a.tar", photos).read_bytes()))
    room = tmp_path / "room"
    room.mkdir()
    code = (
        "import os, sys; from trainer.data.sources import open_source\n"
        "assert len(open_source(sys.argv[1])) == 8 and os.listdir(os.environ['TMPDIR'])\n"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(room)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.tar.gz")], env=here, check=True)
    assert not list(room.iterdir())


def test_what_grows_unlike_photos_is_not_unpacked(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SMALL_BYTES", 10_000)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(bytes(10_000_000))
    with pytest.raises(SeenitError, match="unpacks to more than"):
        open_source(tmp_path / "bomb.tar.gz")
    whole = gzip.compress(make_shard(tmp_path / "a.tar", photos).read_bytes())
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SeenitError, match="fetch it again"):
        open_source(tmp_path / "cut.tar.gz")


def test_braces_stand_for_many_shards(photos: Path, tmp_path: Path) -> None:
    for name in ("s-008.tar", "s-009.tar", "s-010.tar"):
        make_shard(tmp_path / name, photos)
    assert len(open_source(tmp_path / "s-{008..010}.tar")) == 24
    with pytest.raises(SeenitError, match=r"nothing at .*s-011.tar"):
        open_source(tmp_path / "s-{010..011}.tar")
    (tmp_path / "s-{1,2}.tar").write_bytes((tmp_path / "s-008.tar").read_bytes())
    assert len(open_source(tmp_path / "s-{1,2}.tar")) == 8  # a file of that very name


def test_braces_are_those_of_shells() -> None:
    assert expand_braces("{9..11}/{a,b}") == ["9/a", "9/b", "10/a", "10/b", "11/a", "11/b"]
    assert expand_braces("{09..11}") == ["09", "10", "11"] and expand_braces("{,x}y") == ["y", "xy"]
    assert expand_braces("{a}{}{1..b}{") == ["{a}{}{1..b}{"] and expand_braces("plain") == ["plain"]
    for many in ("{0..99999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(SeenitError, match="too many names"):
            expand_braces(many)


def test_a_batch_larger_than_the_data_is_refused(photos: Path) -> None:
    with pytest.raises(SeenitError, match="batch_size"):
        CropStream(open_source(photos), replace(CONFIG, batch_size=9))
    with pytest.raises(SeenitError, match="multiple of 3"):
        CropStream(open_source(photos), CONFIG, world_size=3)


def test_a_member_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_place(ImageRef(str(tmp_path / "file"), 3, 4), 100) == b"3456"
    with pytest.raises(SeenitError, match="cut short"):
        read_place(ImageRef(str(tmp_path / "file"), 8, 4), 100)


@pytest.mark.slow
def test_hostile_files_do_not_stop_a_stream(shared: Path) -> None:
    """Files made to crash, hang or fill memory, among photos."""
    hostile = sorted(path for path in (shared / "data" / "hostile").rglob("*") if path.is_file())[::8]
    good = sorted((shared / "data" / "imagenette_probe" / "val").rglob("*.jpg"))[:12]
    source = open_source([*good, *[path for path in hostile if is_image(path)]])
    config = replace(CONFIG, workers=2, batch_size=8)
    with CropStream(source, config, say=lambda line: None) as stream:
        batches = list(itertools.islice(stream, 6))
    assert all(batch.global_crops.isfinite().all() for batch in batches)
    assert stream.broken


@pytest.mark.slow
def test_decoder_processes_do_not_load_torch() -> None:
    code = "import sys, trainer.data.sources, trainer.data.views; sys.exit('torch' in sys.modules)"
    folder = Path(__file__).parents[2]
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}
        ).returncode
        == 0
    )
