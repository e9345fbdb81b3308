"""Bringing an index in line with folders, on real files, a real store and a tiny random backbone."""

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
from conftest import draw_photo, save_tiny
from PIL import Image

from indexer.backbone.backbone import Backbone
from indexer.errors import SeenitError
from indexer.images.jobs import Job
from indexer.index.index import Index
from indexer.index.manifest import read_manifest
from indexer.index.skipped import SkippedFile, read_skipped, write_skipped
from indexer.store.open import open_store
from indexer.store.protocol import Filter, Record
from indexer.sync.options import SyncOptions
from indexer.sync.reading import BATCH_BYTES, BATCH_FILES, _in_batches
from indexer.sync.summary import Summary
from indexer.sync.sync import sync_folder


def run(
    folder: Path,
    backbone: Path,
    index: Path | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Summary:
    chosen = SyncOptions(resolution=56, workers=1, **options)
    return sync_folder(folder, index, options=chosen, backbone=str(backbone), stop=stop)


def records(index: Path) -> list[Record]:
    store = open_store(index)
    try:
        return list(store.scroll(vectors=True))
    finally:
        store.close()


def keys(index: Path) -> set[str]:
    return {file.key for record in records(index) for file in record.files}


@pytest.mark.slow
def test_first_run_indexes_everything_and_the_second_nothing(photos: Path, tiny_backbone: Path) -> None:
    first = run(photos, tiny_backbone)
    assert (first.changes.added, first.images, first.embedded) == (8, 8, 8)
    assert keys(photos / ".seenit") == {f"0/{'a' if n < 4 else 'b'}/{n}.jpg" for n in range(8)}
    second = run(photos, tiny_backbone)
    assert (second.changes.unchanged, second.embedded) == (8, 0)
    assert second.changes.added == second.changes.removed == 0


@pytest.mark.slow
def test_new_changed_renamed_copied_and_deleted_files(photos: Path, tiny_backbone: Path) -> None:
    run(photos, tiny_backbone)
    (photos / "a" / "0.jpg").rename(photos / "b" / "moved.jpg")
    shutil.copy(photos / "a" / "1.jpg", photos / "copy.jpg")
    draw_photo(photos / "a" / "2.jpg", seed=99)
    (photos / "a" / "3.jpg").unlink()
    draw_photo(photos / "new.jpg", seed=100)
    dry = run(photos, tiny_backbone, dry_run=True)
    done = run(photos, tiny_backbone)
    for changes in (dry.changes, done.changes):
        assert (changes.added, changes.updated, changes.renamed, changes.removed) == (2, 1, 1, 1)
        assert changes.unchanged == 5 and changes.copies == 1
    assert dry.embedded == 0 and done.embedded == 2  # the new image and the changed one
    held = {tuple(sorted(file.key for file in record.files)) for record in records(photos / ".seenit")}
    assert ("0/a/1.jpg", "0/copy.jpg") in held and ("0/b/moved.jpg",) in held
    assert len(held) == done.images == 8


def test_a_dry_run_of_a_new_index_leaves_nothing_behind(photos: Path, tiny_backbone: Path) -> None:
    summary = run(photos, tiny_backbone, dry_run=True)
    assert summary.changes.added == 8
    assert not (photos / ".seenit").exists()


@pytest.mark.slow
def test_renames_need_no_backbone(photos: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(photos, tiny_backbone)
    (photos / "a").rename(photos / "z")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(Backbone, "load", refuse)
    summary = sync_folder(photos, options=SyncOptions(workers=1))
    assert (summary.changes.renamed, summary.embedded) == (4, 0)
    assert "0/z/0.jpg" in keys(photos / ".seenit")


def test_renamed_files_are_hashed_in_few_messages() -> None:
    small = [(Job(f"/photos/{n}.jpg", "hash"), 1000) for n in range(2 * BATCH_FILES + 1)]
    large = [(Job("/photos/a.tif", "hash"), BATCH_BYTES), (Job("/photos/b.tif", "hash"), 10 * BATCH_BYTES)]
    batches = list(_in_batches([*small, *large]))
    assert [job for batch in batches for job in batch.jobs] == [job for job, _ in [*small, *large]]
    assert [len(batch.jobs) for batch in batches] == [BATCH_FILES, BATCH_FILES, 2, 1]
    assert list(_in_batches([])) == []


@pytest.mark.slow
def test_odd_files_are_indexed_as_what_they_show(tmp_path: Path, tiny_backbone: Path) -> None:
    """Turned TIFFs, 12 bits in 16, pages, a JPEG without its end, a time after 2262, names of any bytes."""
    folder = tmp_path / "odd"
    draw_photo(folder / "upright.png", 1, (96, 72))
    with Image.open(folder / "upright.png") as upright:
        pixels = upright.convert("RGB")
        pixels.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.tif", tiffinfo={274: 6})
        grey = np.asarray(pixels.convert("L"), np.uint16)
        Image.fromarray(grey.astype(np.uint8)).save(folder / "grey.png")
        Image.fromarray(grey * 16).save(folder / "12_of_16.tif")
        pages = [pixels.rotate(90 * n) for n in range(4)]
        pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    whole = draw_photo(folder / "whole.jpg", 2)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:-10])
    late = draw_photo(folder / "late.png", 3)
    os.utime(late, (10_413_792_000, 10_413_792_000))  # the year 2300
    names = [b"caf\xe9.png", b"new\nline.png", b"x\x1b]0;t\x07.png", b"-dash.png", b"#hash%20?.png", b"<b>html&.png"]
    for n, name in enumerate(names):
        draw_photo(tmp_path / "one.png", 10 + n).rename(folder / os.fsdecode(name))
    summary = run(folder, tiny_backbone)
    assert (summary.images, summary.skipped, summary.unreadable) == (8 + len(names), {}, ())
    held = {file.key[2:]: record for record in records(folder / ".seenit") for file in record.files}
    assert set(held) == {os.fsdecode(name) for name in os.listdir(os.fsencode(folder)) if name != b".seenit"}

    def cosine(one: str, other: str) -> float:
        return float(np.dot(held[one].global_vector, held[other].global_vector))  # type: ignore[arg-type]

    assert cosine("turned.tif", "upright.png") > 0.99 and cosine("pages.tif", "upright.png") > 0.99
    assert cosine("12_of_16.tif", "grey.png") > 0.99
    assert (held["turned.tif"].metadata.width, held["turned.tif"].metadata.height) == (96, 72)
    assert held["pages.tif"].metadata.frames == 4 and held["late.png"].metadata.taken_at is None
    assert "last bytes" in (held["cut.jpg"].metadata.note or "") and held["whole.jpg"].metadata.note is None
    assert run(folder, tiny_backbone).changes.unchanged == summary.images


@pytest.mark.slow
def test_an_index_moves_with_its_folder(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    run(photos, tiny_backbone)
    elsewhere = tmp_path / "elsewhere"
    photos.rename(elsewhere)
    summary = run(elsewhere, tiny_backbone)
    assert (summary.changes.unchanged, summary.embedded) == (8, 0)


@pytest.mark.slow
def test_broken_files_are_named_remembered_and_tried_again_once_mended(photos: Path, tiny_backbone: Path) -> None:
    whole = (photos / "a" / "0.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "note.jpg").write_text("no image at all")
    first = run(photos, tiny_backbone)
    assert first.changes.added == 8 and sum(first.skipped.values()) == 1
    store = open_store(photos / ".seenit")
    assert [file.key for file in read_skipped(store) if file.reason] == ["0/cut.jpg"]
    store.close()
    again = run(photos, tiny_backbone)
    assert again.embedded == 0 and sum(again.skipped.values()) == 1
    draw_photo(photos / "cut.jpg", seed=50)
    assert run(photos, tiny_backbone).changes.added == 1


@pytest.mark.slow
def test_what_is_excluded_stays_out_until_it_is_taken_back(photos: Path, tiny_backbone: Path) -> None:
    draw_photo(photos / "b" / "raw" / "9.jpg", 9)
    draw_photo(photos / "b" / "raw" / "deep" / "10.png", 10)
    first = run(photos, tiny_backbone, exclude=("raw/", "*.png"))
    assert first.images == 8
    draw_photo(photos / "a" / "11.png", 11)
    draw_photo(photos / "b" / "raw" / "12.jpg", 12)
    assert run(photos, tiny_backbone).images == 8
    more = run(photos, tiny_backbone, exclude="/a/0.jpg")  # what is indexed and then excluded goes
    assert (more.images, more.changes.removed) == (7, 1)
    with Index.open(photos / ".seenit") as index:
        assert index.facts().exclude == ("raw/", "*.png", "/a/0.jpg")
    with pytest.raises(SeenitError, match=r"'png'.*raw/, \*\.png, /a/0\.jpg"):
        run(photos, tiny_backbone, no_exclude=("png",))
    for pattern in ("", " ", "# a comment", "[z-a]"):
        with pytest.raises(SeenitError, match=r"as in a \.gitignore"):
            run(photos, tiny_backbone, exclude=(pattern,))
    back = run(photos, tiny_backbone, no_exclude=("raw/", "/a/0.jpg"))
    assert back.images == 10 and not [key for key in keys(photos / ".seenit") if key.endswith(".png")]


@pytest.mark.slow
def test_patterns_hold_for_the_indexed_folder_also_where_a_part_of_it_is_named(
    photos: Path, tiny_backbone: Path
) -> None:
    draw_photo(photos / "b" / "raw" / "9.jpg", 9)
    (photos / ".seenitignore").write_text("/b/7.jpg\n")
    run(photos, tiny_backbone, exclude=("/b/raw", "/b/6.jpg"))
    again = sync_folder(photos / "b", photos / ".seenit", options=SyncOptions(workers=1))
    assert (again.changes.added, again.changes.removed, again.images) == (0, 0, 6)
    with pytest.raises(SeenitError, match=r"raw is left out .*--no-exclude"):
        sync_folder(photos / "b" / "raw", photos / ".seenit", options=SyncOptions(workers=1))


@pytest.mark.slow
def test_a_refit_keeps_what_is_excluded(photos: Path, tiny_backbone: Path) -> None:
    (photos / "b").rename(photos.parent / "b")
    for n in (1, 2, 3):
        (photos / "a" / f"{n}.jpg").rename(photos.parent / f"{n}.jpg")
    run(photos, tiny_backbone, exclude=("*.png",))
    (photos.parent / "b").rename(photos / "b")
    for n in (1, 2, 3):
        (photos.parent / f"{n}.jpg").rename(photos / "a" / f"{n}.jpg")
    assert run(photos, tiny_backbone).refitted
    with Index.open(photos / ".seenit") as index:
        assert index.manifest.exclude == ("*.png",)


@pytest.mark.slow
def test_retry_reads_again_what_was_remembered_as_broken(
    photos: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tiny_backbone)
    draw_photo(photos / "a" / "later.jpg", 40)
    (photos / "note.txt").write_text("no image")
    status = (photos / "a" / "later.jpg").stat()
    note = (photos / "note.txt").stat()
    with closing(open_store(photos / ".seenit", write=True)) as store:  # as if it had exhausted an older decoder
        broken = SkippedFile("0/a/later.jpg", status.st_size, status.st_mtime_ns, "needs more memory than it may take")
        elsewhere = SkippedFile("9/x.jpg", 1, 1, "damaged")
        write_skipped(store, [broken, elsewhere, SkippedFile("0/note.txt", note.st_size, note.st_mtime_ns, None)])
    assert run(photos, tiny_backbone).images == 8
    again = run(photos, tiny_backbone, retry=True)
    assert (again.images, again.embedded) == (9, 1)
    with closing(open_store(photos / ".seenit")) as store:  # outside of the folders, and what is no image: as it was
        assert {file.key for file in read_skipped(store)} == {"9/x.jpg", "0/note.txt"}


@pytest.mark.slow
def test_verify_finds_what_changed_behind_its_size_and_time(photos: Path, tiny_backbone: Path) -> None:
    shutil.copy(photos / "a" / "1.jpg", photos / "copy.jpg")
    run(photos, tiny_backbone)
    changed, damaged = photos / "a" / "0.jpg", photos / "b" / "5.jpg"
    for path, change in ((changed, b"\xff\xd9 "), (damaged, b"")):
        data, status = path.read_bytes(), path.stat()
        path.write_bytes(data[: -len(change)] + change if change else b"\xff\xd8\xff" + b"\0" * (len(data) - 3))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size
    assert run(photos, tiny_backbone).changes.unchanged == 9
    assert "2 of 9" in run(photos, tiny_backbone, verify=True).notes[0]
    stopped = run(photos, tiny_backbone, verify=True, stop=lambda: True)
    assert stopped.interrupted
    held = {tuple(file.key for file in record.files) for record in records(photos / ".seenit")}
    assert ("0/a/1.jpg", "0/copy.jpg") in held  # what was not read yet has not lost a name
    good = run(photos, tiny_backbone, verify=True)
    assert (good.embedded, good.changes.unchanged, good.images) == (0, 8, 7)
    assert good.notes == ("8 files of unchanged size and time were read again; all hold what was indexed",)


@pytest.mark.slow
def test_several_folders_nested_folders_and_a_containing_one(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    with pytest.raises(SeenitError, match="--index"):
        sync_folder([photos / "a", photos / "b"], backbone=str(tiny_backbone))
    sync_folder(
        [photos / "a", photos / "b"], index, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone)
    )
    assert {key.split("/")[0] for key in keys(index)} == {"0", "1"}
    draw_photo(photos / "a" / "deep" / "x.jpg", seed=60)
    draw_photo(photos / "b" / "y.jpg", seed=61)
    only_deep = run(photos / "a" / "deep", tiny_backbone, index)  # part of a known folder: the rest stays as it is
    assert only_deep.changes.added == 1 and "1/y.jpg" not in keys(index)
    outer = run(photos, tiny_backbone, index)  # contains both: takes them over without embedding them again
    assert outer.embedded == 1
    assert {key.split("/")[0] for key in keys(index)} == {"2"}
    store = open_store(index)
    manifest = read_manifest(store)
    store.close()
    assert manifest is not None and list(manifest.roots) == ["2"]
    everything = sync_folder([], index, options=SyncOptions(workers=1))
    assert everything.changes.unchanged == 10


@pytest.mark.slow
def test_an_emptied_folder_is_not_taken_for_a_wish(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run(photos, tiny_backbone, index)
    for folder in ("a", "b"):
        shutil.rmtree(photos / folder)
    with pytest.raises(SeenitError, match="allow-empty"):
        run(photos, tiny_backbone, index)
    assert len(records(index)) == 8
    assert run(photos, tiny_backbone, index, allow_empty=True).changes.removed == 8
    shutil.rmtree(photos)
    with pytest.raises(SeenitError, match="not there"):
        run(photos, tiny_backbone, index)


@pytest.mark.slow
def test_refuses_another_backbone_and_another_resolution(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    run(photos, tiny_backbone)
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(SeenitError, match=r"tiny0?.*was made by|made by backbone"):
        run(photos, other)
    with pytest.raises(SeenitError, match="--resolution 56"):
        sync_folder(photos, options=SyncOptions(resolution=112))


@pytest.mark.slow
def test_stops_after_the_batch_in_hand_and_goes_on(photos: Path, tiny_backbone: Path) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked >= 3

    first = run(photos, tiny_backbone, stop=stop)
    assert first.interrupted and 3 <= first.images < 8
    second = run(photos, tiny_backbone)
    assert not second.interrupted and second.images == 8


@pytest.mark.slow
def test_a_date_that_only_the_file_tells_follows_the_file(tmp_path: Path, tiny_backbone: Path) -> None:
    """Renamed, touched, copied, deleted: the name decides, else the earliest time; what the image says stays."""
    folder, moment = tmp_path / "photos", 1_000_000_000  # 2001-09-09
    plain, touched = draw_photo(folder / "plain.png", 1), draw_photo(folder / "touched.png", 2)
    exif = Image.Exif()
    exif[0x9003] = exif[0x0132] = "2015:05:06 07:08:09"
    with Image.open(draw_photo(tmp_path / "own.png", 3)) as image:
        image.save(folder / "own.jpg", exif=exif)
    for path in folder.iterdir():
        os.utime(path, (moment, moment))

    def dates() -> dict[str, tuple[str, str | None]]:
        run(folder, tiny_backbone)
        held = records(folder / ".seenit")
        return {
            record.files[0].key.split("/")[-1].split(".")[0]: (
                f"{record.metadata.taken_at:%F}",
                record.metadata.date_source,
            )
            for record in held
        }

    at_first = dates()
    assert at_first["plain"] == at_first["touched"] == ("2001-09-09", "file")
    own = at_first["own"]
    assert own[1] == "exif"
    plain.rename(folder / "IMG_20190704_101112.png")
    os.utime(touched, (moment + 86_400, moment + 86_400))
    os.utime(folder / "own.jpg", (moment, moment + 86_400))
    (folder / "own.jpg").rename(folder / "own.20180101_000000.jpg")
    assert dates() == {
        "IMG_20190704_101112": ("2019-07-04", "name"),
        "touched": ("2001-09-10", "file"),
        "own": own,
    }
    shutil.copy(touched, folder / "zz_later.png")  # a copy's time is later
    assert dates()["touched"] == ("2001-09-10", "file")
    shutil.copy(touched, folder / "zz_20200102_030405.png")
    assert dates()["touched"] == ("2020-01-02", "name")
    (folder / "zz_20200102_030405.png").unlink()
    (folder / "IMG_20190704_101112.png").rename(folder / "plain.png")
    assert dates()["touched"] == ("2001-09-10", "file") and dates()["plain"] == ("2001-09-09", "file")


@pytest.mark.slow
def test_an_outgrown_fit_is_made_anew_for_all(photos: Path, tiny_backbone: Path) -> None:
    aside = photos.parent / "aside"
    (photos / "b").rename(aside)
    for n in (1, 2, 3):
        (photos / "a" / f"{n}.jpg").rename(photos.parent / f"{n}.jpg")
    first = run(photos, tiny_backbone)  # one image
    assert first.refitted and first.images == 1
    for n in (1, 2, 3):
        (photos.parent / f"{n}.jpg").rename(photos / "a" / f"{n}.jpg")
    aside.rename(photos / "b")
    said: list[str] = []
    options = SyncOptions(resolution=56, workers=1)
    second = sync_folder(photos, options=options, backbone=str(tiny_backbone), say=said.append)
    assert second.refitted and second.embedded == 8
    assert "which were fitted on 1 image: fitting them again" in "".join(said)
    assert len({record.whitening_id for record in records(photos / ".seenit")}) == 1
    fresh = run(photos, tiny_backbone, photos.parent / "fresh")
    assert fresh.images == 8
    grown = {record.id: record.global_vector for record in records(photos / ".seenit")}
    for record in records(photos.parent / "fresh"):
        assert float(record.global_vector @ grown[record.id]) > 0.999  # type: ignore[operator]


@pytest.mark.slow
def test_side_files_are_no_growth(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = tmp_path / "takeout"
    for n in range(12):
        draw_photo(folder / f"{n}.jpg", n)
    assert run(folder, tiny_backbone).embedded == 12
    for n in range(90):
        (folder / f"{n}.jpg.json").write_text(f'{{"title": "a side file {n}"}}')
    second = run(folder, tiny_backbone)
    assert (second.embedded, second.refitted, second.images) == (0, False, 12)
    draw_photo(folder / "12.jpg", 12)
    third = run(folder, tiny_backbone)
    assert (third.embedded, third.refitted, third.images) == (1, False, 13)
    for n in range(13, 96):
        draw_photo(folder / f"{n}.jpg", n)
    grown = run(folder, tiny_backbone)  # 96 images are eight times as many
    assert (grown.embedded, grown.refitted, grown.images) == (96, True, 96)


@pytest.mark.slow
def test_tags_survive_a_refit(photos: Path, tiny_backbone: Path) -> None:
    (photos / "b").rename(photos.parent / "aside")
    for n in (1, 2, 3):
        (photos / "a" / f"{n}.jpg").rename(photos.parent / f"{n}.jpg")
    run(photos, tiny_backbone)
    (only,) = records(photos / ".seenit")
    store = open_store(photos / ".seenit", write=True)
    store.set_tags({only.id: ("kept",)})
    store.close()
    (photos.parent / "aside").rename(photos / "b")
    for n in (1, 2, 3):
        (photos.parent / f"{n}.jpg").rename(photos / "a" / f"{n}.jpg")
    assert run(photos, tiny_backbone).refitted
    assert [record.tags for record in records(photos / ".seenit") if record.tags] == [("kept",)]


KILLED = """
import os, sys, threading, time
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder
threading.Timer(float(sys.argv[4]), os._exit, [9]).start()
sync_folder(sys.argv[1], sys.argv[2], options=SyncOptions(resolution=56, workers=1), backbone=sys.argv[3])
os._exit(0)
"""


@pytest.mark.long
def test_killed_at_any_moment_the_next_run_completes_it(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    for n in range(8, 60):
        draw_photo(photos / "c" / f"{n}.jpg", n)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = time.monotonic()
    call = [sys.executable, "-c", KILLED, str(photos), str(index), str(tiny_backbone)]
    subprocess.run([*call[:3], str(photos), str(tmp_path / "timed"), str(tiny_backbone), "60"], env=environment)
    whole_s = time.monotonic() - started
    for share in (0.5, 0.7, 0.8, 0.9):
        subprocess.run([*call, str(share * whole_s)], env=environment, stderr=subprocess.DEVNULL)
    summary = run(photos, tiny_backbone, index)
    assert summary.images == 60
    held = records(index)
    assert len(held) == 60 and sorted(file.key for record in held for file in record.files) == sorted(keys(index))
    assert len(keys(index)) == 60


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_may_not_be_read_keeps_its_images(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run(photos, tiny_backbone, index)
    (photos / "b").chmod(0)
    try:
        summary = run(photos, tiny_backbone, index)
    finally:
        (photos / "b").chmod(0o755)
    assert summary.images == 8 and len(summary.unreadable) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="file names are valid text on this system")
def test_names_that_are_not_utf8_and_links_in_a_circle(photos: Path, tiny_backbone: Path) -> None:
    odd = os.fsencode(photos) + b"/caf\xe9.jpg"
    shutil.copy(os.fsencode(photos / "a" / "0.jpg"), odd)
    draw_photo(photos / "plain.jpg", seed=70)
    os.rename(photos / "plain.jpg", os.fsencode(photos) + b"/na\xefve.jpg")
    (photos / "circle").symlink_to(photos)
    summary = run(photos, tiny_backbone)
    assert summary.images == 9 and summary.changes.copies == 1
    assert "0/na\udcefve.jpg" in keys(photos / ".seenit")
    assert run(photos, tiny_backbone).changes.unchanged == 10


@pytest.mark.slow
def test_a_second_writer_is_told_who_holds_the_index(photos: Path, tiny_backbone: Path) -> None:
    run(photos, tiny_backbone)
    store = open_store(photos / ".seenit", write=True)
    try:
        with pytest.raises(SeenitError, match=str(os.getpid())):
            open_store(photos / ".seenit", write=True, wait_s=0.1)
    finally:
        store.close()


@pytest.mark.slow
def test_images_awaiting_a_refit_are_found_in_the_engine(photos: Path, tiny_backbone: Path) -> None:
    run(photos, tiny_backbone)
    store = open_store(photos / ".seenit")
    manifest = read_manifest(store)
    assert manifest is not None
    assert (
        store.count(Filter(not_whitening_id=manifest.whitening_id)) == 0
        and store.count(Filter(not_whitening_id="another")) == 8
    )
    store.close()


def test_an_empty_folder_and_a_single_photo(tmp_path: Path, tiny_backbone: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeenitError, match=r"no files"):
        run(tmp_path / "empty", tiny_backbone)
    assert not (tmp_path / "empty" / ".seenit").exists()
    draw_photo(tmp_path / "one" / "x.jpg", seed=1)
    assert run(tmp_path / "one", tiny_backbone).images == 1
