"""Curation of images: from folders, lists, tar shards and indexes to a list that training reads."""

import csv
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import draw_photo, save_tiny
from PIL import Image
from typer.testing import CliRunner

from indexer import SyncOptions, embed_into_shards, sync_folder
from indexer.descriptor.whitening import apply_whitening
from indexer.errors import SeenitError
from trainer.curation import commands, embed
from trainer.curation.choices import Choices
from trainer.curation.inputs import read_inputs
from trainer.curation.outcome import CurationSummary
from trainer.curation.page import write_curation_page
from trainer.curation.pipeline import curate
from trainer.data.sources import open_source


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Twelve photos, a smaller copy of photo 3, a file of the same bytes as photo 5, and one that is broken."""
    folder = tmp_path / "pool"
    for n in range(12):
        draw_photo(folder / f"{n:02d}.png", n, (168, 126))
    Image.open(folder / "03.png").resize((126, 98)).save(folder / "03_small.jpg", quality=90)
    shutil.copy(folder / "05.png", folder / "05_again.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny_backbone: Path) -> Any:
    def run(pool: Path | Sequence[Path | str], **options: Any) -> CurationSummary:
        given = [pool] if isinstance(pool, Path) else pool
        options = {"backbone": tiny_backbone, "work": tmp_path / "work", "workers": 1, **options}
        return curate(given, tmp_path / "list.txt", **options)

    return run


def listed(tmp_path: Path) -> list[str]:
    return [Path(place.path).name for place in open_source(tmp_path / "list.txt").places]


def fates(tmp_path: Path) -> dict[str, tuple[str, str]]:
    with (tmp_path / "work" / "fates.csv").open(newline="") as file:
        return {Path(r["path"]).name: (r["fate"], Path(r["because_of"]).name) for r in csv.DictReader(file)}


@pytest.mark.slow
def test_copies_go_and_the_larger_one_stays(tmp_path: Path, pool: Path, run: Any) -> None:
    said: list[str] = []
    summary = run(pool, say=said.append)
    assert listed(tmp_path) == [f"{n:02d}.png" for n in range(12)]
    assert (summary.pool, summary.unreadable, summary.copies, summary.groups) == (14, 1, 2, 2)
    assert summary.equal == 1 and summary.left == summary.written == 12
    told = fates(tmp_path)
    assert told["03_small.jpg"] == ("a copy of another image", "03.png")
    assert told["05_again.png"] == ("a copy of another image", "05.png") and told["07.png"] == ("in the list", "")
    assert any("broken.jpg" in line for line in said)


@pytest.mark.slow
def test_what_is_near_the_evaluation_set_goes_too(tmp_path: Path, pool: Path, run: Any) -> None:
    evaluation = tmp_path / "test"
    evaluation.mkdir()
    Image.open(pool / "03.png").resize((140, 112)).save(evaluation / "a.jpg", quality=92)
    summary = run(pool, avoid=[evaluation])
    assert summary.leaks == 2 and summary.written == 11 and "03.png" not in listed(tmp_path)
    assert fates(tmp_path)["03_small.jpg"] == ("near the evaluation set", "a.jpg")


@pytest.mark.slow
def test_curated_images_bring_those_that_are_like_them(tmp_path: Path, pool: Path, run: Any) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for n in (2, 8):
        Image.open(pool / f"{n:02d}.png").resize((140, 112)).save(chosen / f"{n}.jpg", quality=92)
    summary = run(pool, like=[chosen], choices=Choices(nearest=1))
    assert listed(tmp_path) == ["02.png", "08.png"] and summary.like == 2 and summary.retrieved == 2
    assert fates(tmp_path)["08.png"] == ("in the list", "8.jpg")
    assert fates(tmp_path)["01.png"] == ("not like the curated images", "")
    with pytest.raises(SeenitError, match=r"no cluster holds 4 curated images; .*--mode nearest"):
        run(pool, like=[chosen], choices=Choices(mode="clusters", clusters=2))
    run(pool, like=[chosen], choices=Choices(mode="clusters", clusters=1, least_curated=2, per_cluster=5))
    assert len(listed(tmp_path)) == 5


@pytest.mark.slow
def test_a_size_is_met_and_the_same_seed_chooses_the_same(tmp_path: Path, pool: Path, run: Any) -> None:
    said: list[str] = []
    assert run(pool, choices=Choices(size=5, levels=(4, 2))).written == 5
    first = listed(tmp_path)
    run(pool, choices=Choices(size=5, levels=(4, 2)))
    assert listed(tmp_path) == first
    assert run(pool, choices=Choices(size=500), say=said.append).written == 12
    assert any("more than the 12 images left" in line for line in said)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_shard_it_was_at(
    tmp_path: Path, pool: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "SHARD_IMAGES", 4)
    whole = embed._embed_shard
    done: list[int] = []

    def stopping(describer: Any, workers: Any, places: Any, folder: Any, number: int, *rest: Any) -> None:
        if number == 2 and len(done) == 2:
            raise KeyboardInterrupt
        whole(describer, workers, places, folder, number, *rest)
        done.append(number)

    monkeypatch.setattr(embed, "_embed_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(pool)
    assert done == [0, 1] and not (tmp_path / "list.txt").exists()
    done.append(-1)
    assert run(pool).written == 12 and done == [0, 1, -1, 2, 3]
    before = (tmp_path / "list.txt").read_bytes()
    shutil.rmtree(tmp_path / "work")
    run(pool)
    assert (tmp_path / "list.txt").read_bytes() == before
    done.clear()
    run(pool, choices=Choices(copy=0.99))  # other thresholds need no new vectors
    assert not done


@pytest.mark.slow
def test_an_index_brings_its_vectors(tmp_path: Path, pool: Path, run: Any, tiny_backbone: Path) -> None:
    index = tmp_path / "index"
    sync_folder(
        pool, index, options=SyncOptions(workers=1), backbone=tiny_backbone, progress=False, say=lambda line: None
    )
    summary = run([str(index)], backbone=None)
    assert listed(tmp_path) != [] and summary.pool == 13 and summary.copies == 1  # files of equal bytes are one record
    inputs = read_inputs([index], [pool], [], tmp_path / "both", workers=1)
    assert inputs.like is not None
    by_name = {Path(place.path).name: n for n, place in enumerate(inputs.pool.places)}
    for n, place in enumerate(inputs.like.places):
        name = Path(place.path).name.replace("_again", "")
        own, other = inputs.pool.embeddings.rows([by_name[name]])[0], inputs.like.embeddings.rows([n])[0]
        assert own.astype(float) @ other.astype(float) > 0.99, name


@pytest.mark.long
def test_an_index_of_another_backbone_is_refused(tmp_path: Path, pool: Path, run: Any, tiny_backbone: Path) -> None:
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    for name, backbone in (("one", tiny_backbone), ("two", other)):
        sync_folder(
            pool,
            tmp_path / name,
            options=SyncOptions(workers=1),
            backbone=backbone,
            progress=False,
            say=lambda line: None,
        )
    with pytest.raises(SeenitError, match=r"was made by backbone"):
        run([str(tmp_path / "one")], backbone=other)
    with pytest.raises(SeenitError, match=r"two was made by backbone .*one by .*rebuild one of them"):
        run([str(tmp_path / "one"), str(tmp_path / "two")], backbone=None)


@pytest.mark.slow
def test_images_in_tar_files_become_files_beside_the_list(tmp_path: Path, pool: Path, run: Any) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for n in range(4):
            shard.add(pool / f"{n:02d}.png", f"inside/{n:02d}.png")
    assert run([tmp_path / "shard.tar", pool / "09.png"]).written == 5
    paths = (tmp_path / "list.txt").read_text().splitlines()
    assert Path(paths[1]).parent == tmp_path / "list.txt.images"
    assert Path(paths[1]).read_bytes() == (pool / "01.png").read_bytes() and paths[4] == str(pool / "09.png")


@pytest.mark.slow
def test_files_that_vanish(tmp_path: Path, pool: Path, run: Any) -> None:
    names = [str(pool / f"{n:02d}.png") for n in range(3)] + [str(pool / "gone.png")]
    (tmp_path / "given.txt").write_text("\n".join(names))
    summary = run([tmp_path / "given.txt"])
    assert summary.unreadable == 1 and summary.written == 3
    (pool / "01.png").unlink()  # after it was embedded
    said: list[str] = []
    summary = run([tmp_path / "given.txt"], say=said.append)
    assert summary.gone == 1 and listed(tmp_path) == ["00.png", "02.png"]
    (tmp_path / "given.txt").write_text(str(pool / "gone.png"))
    with pytest.raises(SeenitError, match=r"none of the 1 images can be read \(no such file or directory\)"):
        run([tmp_path / "given.txt"])


@pytest.mark.slow
def test_too_little_to_choose_from(tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    with pytest.raises(SeenitError, match="no images in"):
        run(folder)
    draw_photo(folder / "a.png", 0)
    draw_photo(folder / "b.png", 1)
    assert run(folder).written == 2
    assert run(folder, choices=Choices(size=1)).written == 1
    for n in range(20):
        shutil.copy(folder / "a.png", folder / f"copy_{n}.png")
    (folder / "b.png").unlink()
    summary = run(folder)
    assert summary.written == 1 and summary.copies == 20 and summary.largest_group == 21
    with pytest.raises(SeenitError, match=r"none of 21 images is left .*--leak"):
        run(folder, avoid=[folder])


def test_mistakes_are_told_before_the_work(tmp_path: Path, pool: Path, run: Any, tiny_backbone: Path) -> None:
    with pytest.raises(SeenitError, match="is a folder; name a file"):
        curate([pool], tmp_path, backbone=tiny_backbone)
    with pytest.raises(SeenitError, match="cannot write to"):
        curate([pool], tmp_path / "no" / "list.txt", backbone=tiny_backbone)
    for wrong in ({"copy": 1.5}, {"nearest": 0}, {"levels": (5, 5)}):
        with pytest.raises(SeenitError):
            Choices(**wrong)


@pytest.mark.slow
def test_the_command_prints_and_writes(tmp_path: Path, pool: Path, tiny_backbone: Path) -> None:
    app = typer.Typer()
    app.command()(commands.curate)
    page = tmp_path / "page.html"
    call = [str(pool), "--out", str(tmp_path / "l.txt"), "--backbone", str(tiny_backbone), "--html", str(page)]
    answer = CliRunner().invoke(
        app, [*call, "--json", "--size", "6", "--levels", "4,2", "--avoid", str(pool / "03.png")]
    )
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert told["written"] == 6 and told["leaks"] == 2 and len((tmp_path / "l.txt").read_text().splitlines()) == 6
    text = page.read_text()
    assert text.count("<figure") >= 10 and "Near the evaluation set" in text and "enough of its kind" in text
    assert "http" not in text.replace("http-equiv", "")
    answer = CliRunner().invoke(app, call)
    assert "in the list" in answer.stdout and "2 groups of up to 2" in answer.stdout
    assert CliRunner().invoke(app, [*call, "--levels", "a"]).exit_code == 2


@pytest.mark.slow
def test_the_page_stands_foreign_names_and_lost_files(tmp_path: Path, tiny_backbone: Path, run: Any) -> None:
    folder = tmp_path / "p"
    for n, name in enumerate(["<script>alert(1)</script>.png", "b\u202e.png", "c.png"]):
        draw_photo(folder / name.replace("/", "_"), n)
    shutil.copy(folder / "c.png", folder / "d.png")
    from trainer.curation.pipeline import choose_images

    inputs = read_inputs([folder], [], [], tmp_path / "w", backbone=tiny_backbone, workers=1)
    curated, _, _ = choose_images(inputs, tmp_path / "w2", Choices())
    summary = run(folder)
    (folder / "c.png").unlink()
    write_curation_page(tmp_path / "page.html", curated, summary)
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "\u202e" not in text and "no such file" in text


@pytest.mark.slow
def test_features_that_are_not_finite_are_left_out(
    tmp_path: Path, pool: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = apply_whitening
    seen = []

    def spoilt(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        vectors, tokens = whole(*arguments)
        seen.append(len(vectors))
        return (vectors * np.nan if len(seen) == 1 else vectors), tokens

    monkeypatch.setattr(embed, "apply_whitening", spoilt)
    summary = run(pool)
    assert summary.unreadable == 2 and "00.png" not in listed(tmp_path) and summary.written == 11


@pytest.mark.slow
@pytest.mark.parametrize("patches", [True, False])
def test_shards_of_vectors_serve_as_an_index_does(
    tmp_path: Path, pool: Path, run: Any, tiny_backbone: Path, patches: bool
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    options = SyncOptions(resolution=56, workers=1)
    sync_folder(pool, tmp_path / "index", options=options, backbone=str(tiny_backbone))
    embed_into_shards(pool, tmp_path / "shards", patches=patches, options=options, backbone=str(tiny_backbone))
    found = {}
    for name in ("index", "shards"):
        summary = run([tmp_path / name], work=tmp_path / f"work_{name}", backbone=None, choices=Choices(copy=0.3))
        found[name] = (sorted(listed(tmp_path)), summary.pool, summary.copies)
    assert found["shards"] == found["index"] and found["index"][2] > 0
