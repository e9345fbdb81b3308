"""An opened index, and what makes one ready: one backbone, one place where each thing is read."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import draw_photo

from indexer import sync_folder
from indexer.backbone.backbone import Backbone
from indexer.backbone.load_once import LoadOnce
from indexer.descriptor.config import DESCRIPTOR_CONFIGS, DescriptorConfig
from indexer.errors import LockedError, SeenitError
from indexer.index.find_index import find_index
from indexer.index.index import Index, is_index
from indexer.index.keys import Roots
from indexer.index.manifest import Manifest, parse_manifest, write_manifest
from indexer.index.place import index_in
from indexer.index.statistics import check_backbone
from indexer.store.protocol import Filter
from indexer.sync.options import SyncOptions
from retrieval import Searcher, build_index
from retrieval.options import SearchOptions


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was asked of Backbone.load, in order."""
    asked: list[object] = []
    load = Backbone.load

    def counted(spec: object, **options: object) -> Backbone:
        asked.append(spec)
        return load(spec, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "load", counted)
    return asked


@pytest.mark.slow
def test_an_index_made_from_python_knows_probabilities(photos: Path, tiny_backbone: Path) -> None:
    built = build_index(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    assert built.summary.images == 8 and built.calibration is not None and built.notes == ()
    with Searcher.open(photos / ".seenit") as searcher:
        evidence = searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))[0].evidence
        assert evidence is not None and evidence.probability is not None


@pytest.mark.slow
def test_one_backbone_is_loaded_for_all_steps_and_rounds(
    photos: Path, tiny_backbone: Path, loads: list[object]
) -> None:
    once = LoadOnce(str(tiny_backbone))
    build_index(photos, options=SyncOptions(resolution=56, workers=1), backbone=once)
    assert loads == [str(tiny_backbone)]
    draw_photo(photos / "new.jpg", 50)
    assert (
        build_index(photos, options=SyncOptions(workers=1), backbone=once).summary.embedded == 1
    )  # a later round of --watch
    assert len(loads) == 1
    build_index(photos, options=SyncOptions(workers=1))  # nothing new: nothing is loaded
    assert len(loads) == 1


@pytest.mark.slow
def test_facts_and_places(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    build_index(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    with Index.open(photos / ".seenit") as index:
        facts = index.facts()
        assert (facts.images, facts.folders, facts.resolution) == (8, (str(photos),), 56)
        assert facts.descriptor == json.loads(json.dumps(DESCRIPTOR_CONFIGS["balanced"].settings))
        assert facts.calibrated and facts.awaiting_refit == 0 and facts.format == 2 and facts.made_by
        assert Index.open(index) is index
    assert is_index(photos / ".seenit") and is_index("http://host/photos") and not is_index(photos)
    assert index_in(photos) == index_in(photos / ".seenit") == photos / ".seenit" and index_in(tmp_path) is None
    for write in (False, True):
        with pytest.raises(SeenitError, match=r"no index at .*; create one with"):
            Index.open(tmp_path / "nowhere", write=write)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.long
def test_a_reader_takes_over_what_another_process_changes(photos: Path, tiny_backbone: Path) -> None:
    build_index(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    with Searcher.open(photos / ".seenit") as searcher:
        asked = searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))
        whitening_id = searcher.manifest.whitening_id
        for n in range(60):  # more than eight times as many: the statistics are fitted anew, every vector is another
            draw_photo(photos / "c" / f"{n}.jpg", 100 + n)
        assert build_index(photos, options=SyncOptions(workers=1)).summary.refitted
        found = searcher.search(photos / "c" / "7.jpg", SearchOptions(include_self=True))[0]
        assert found.path == str(photos / "c" / "7.jpg") and found.score > 0.9
        assert searcher.manifest.whitening_id != whitening_id and searcher.index.count == 68
        again = searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))
        assert again[0].path == asked[0].path and again[0].score > 0.9


@pytest.mark.slow
def test_a_setting_that_is_added_later_leaves_old_indexes_usable(photos: Path, tiny_backbone: Path) -> None:
    build_index(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    location = photos / ".seenit"
    with Index.open(location, write=True) as index:
        without = {name: value for name, value in index.manifest.descriptor.items() if name != "shrinkage"}
        assert without["token_bits"] == 2
        write_manifest(index.store, replace(index.manifest, descriptor=without))
    with Searcher.open(location) as searcher:
        assert searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))[0].path == str(
            photos / "a" / "0.jpg"
        )
    with Index.open(location, write=True) as index:
        write_manifest(index.store, replace(index.manifest, descriptor={**without, "surprise": 1}))
    with Searcher.open(location) as searcher, pytest.raises(SeenitError, match=r"unknown setting 'surprise'.*update"):
        searcher.search(photos / "a" / "0.jpg")


@pytest.mark.parametrize(
    "settings",
    [{"token_bits": "2"}, {"token_bits": 2.5}, {"cls_depths": 3}, {"cls_depths": ["a"]}, {"shrinkage": float("nan")}],
)
def test_settings_of_other_types_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is no number"):
        DescriptorConfig.from_settings(settings)


def test_manifests_of_other_formats_are_told() -> None:
    good = {
        "backbone": "b",
        "backbone_hash": "0",
        "resolution": 56,
        "descriptor": {},
        "whitening_id": "f",
        "fitted_on": 8,
    }
    assert parse_manifest(json.dumps({**good, "format": 2, "later": [1]}).encode(), "x") == Manifest(**good)  # type: ignore[arg-type]
    for format, said in ((1, "first version"), (3, "newer seenit"), ("x", "damaged"), (None, "damaged")):
        with pytest.raises(SeenitError, match=said):
            parse_manifest(json.dumps({**good, "format": format}).encode(), "x")
    wrong: list[dict[str, object]] = [{"resolution": "56"}, {"roots": []}, {"roots": {"0": 1}}, {"descriptor": "text"}]
    for bad in wrong:
        with pytest.raises(SeenitError, match="damaged"):
            parse_manifest(json.dumps({**good, "format": 2, **bad}).encode(), "x")
    for data in (b"", b"[]", b"{", b"[" * 100_000):
        with pytest.raises(SeenitError, match="damaged"):
            parse_manifest(data, "x")


def test_other_weights_of_the_same_name_are_told(tiny_backbone: Path) -> None:
    made_with = Manifest("seenit_vits14", "0" * 32, 56, {}, "f", 8)
    now = replace(Backbone.load(tiny_backbone), name="seenit_vits14")
    with pytest.raises(SeenitError, match=r"x was made by .*weights are others since .* index aside and index again"):
        check_backbone(made_with, now, "x")
    with pytest.raises(SeenitError, match="use the former, or make another index"):
        check_backbone(made_with, replace(now, name="other"), "x")
    check_backbone(replace(made_with, backbone_hash=now.hash), now, "x")


@pytest.mark.parametrize("key", ["0/../private/x.jpg", "0//x.jpg", "0/./x.jpg", "0/a/..", "0/", "0/a\0b"])
def test_keys_that_lead_out_of_a_folder_are_refused(key: str) -> None:
    roots = Roots("/index", {"0": "/photos"})
    assert roots.path("0/a/x.jpg") == os.path.join("/photos", "a", "x.jpg") and roots.path("0") == "/photos"
    with pytest.raises(SeenitError, match="outside of its folders"):
        roots.path(key)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system's files have no owners")
def test_another_users_index_beside_a_query_is_left_alone(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_folder(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert find_index(None, [photos / "a" / "0.jpg"], say=said.append) == str(photos / ".seenit")
    assert said == [f"using the index at {photos / '.seenit'}"]
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    said.clear()
    with pytest.raises(SeenitError, match="no index here"):
        find_index(None, [photos / "a" / "0.jpg"], say=said.append)
    assert len(said) == 1 and "another user's" in said[0]
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / ".seenit").symlink_to(photos / ".seenit")
    monkeypatch.setattr(os, "getuid", lambda: own)
    with pytest.raises(SeenitError, match="no index here"):
        find_index(None, [tmp_path / "link" / "q.jpg"])


@pytest.mark.slow
def test_searches_go_on_while_another_process_writes(photos: Path, tiny_backbone: Path) -> None:
    """The writer's lock is held by one process; another reads all the same, and a third is told whom it waits for."""
    build_index(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    code = (
        "import sys, time\nfrom indexer.index.index import Index\n"
        "index = Index.open(sys.argv[1], write=True)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(photos / ".seenit")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
        with Searcher.open(photos / ".seenit", wait_s=0) as searcher:
            assert searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))[0].path == str(
                photos / "a" / "0.jpg"
            )
        began = time.monotonic()
        with pytest.raises(LockedError, match=rf"process {holder.pid}, since .*--wait"):
            build_index(photos, options=SyncOptions(workers=1, wait_s=0.2))
        assert time.monotonic() - began < 9  # 10 s, unless told
    finally:
        holder.kill()
        holder.communicate()
    assert build_index(photos, options=SyncOptions(workers=1)).summary.changes.unchanged == 8


@pytest.mark.slow
def test_dates_of_files_count_only_where_asked_for(photos: Path, tiny_backbone: Path) -> None:
    draw_photo(photos / "2019-07-04 10.15.00.jpg", 20)
    draw_photo(photos / "IMG-20010101-WA0001.jpg", 21)
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1.5e9, 1.5e9))  # in 2017
    sync_folder(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    after_2017 = datetime(2017, 1, 1, tzinfo=UTC)
    with Index.open(photos / ".seenit") as index:
        assert index.store.count(Filter(after=after_2017)) == 1
        assert index.store.count(Filter(before=after_2017)) == 1
        assert index.store.count(Filter(after=after_2017, file_dates=True)) == 9
        assert index.about_dates(Filter(tags=("x",), file_dates=True)) is None
        left_out = index.about_dates(Filter(after=after_2017))
        assert (
            left_out
            and left_out.startswith("8 of 10 images")
            and "left out; " in left_out
            and "--file-dates" in left_out
        )
        used = index.about_dates(Filter(before=after_2017, file_dates=True))
        assert used == "8 of 10 images have no date in their metadata or name; the times of their files count"
        under = index.with_keys(Filter(after=after_2017, under=(str(photos / "a"),)))
        assert (index.about_dates(under) or "").startswith("4 of 4 images")
