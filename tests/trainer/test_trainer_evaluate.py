"""Probes of frozen features, each against a slow twin or a case whose answer is known."""

import math
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_photo
from PIL import Image
from torch.nn.functional import normalize

from indexer.backbone.backbone import Backbone
from indexer.errors import SeenitError
from trainer.evaluate.dense import DenseFeatures, depth, embed_pairs, segmentation
from trainer.evaluate.dense_sets import read_pairs, read_target
from trainer.evaluate.labelled import LabelledFeatures, as_backbone, embed_labelled, read_labelled
from trainer.evaluate.probes import few_shot, format_table, knn, linear


def features(num: int, classes: int = 3, spread: float = 0.5, seed: int = 0, blocks: int = 4) -> LabelledFeatures:
    """Clouds around one point a class, the same points for every seed."""
    centres = torch.randn(classes, blocks, 16, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % classes
    cls = centres[labels] + spread * torch.randn(num, blocks, 16, generator=generator)
    return LabelledFeatures(cls, cls.mean(1), labels, tuple("abcdefgh"[:classes]))


def test_knn_is_the_weighted_vote() -> None:
    train, val = features(60, spread=2.0), features(30, spread=2.0, seed=1)
    scores = knn(train, val, neighbours=(5, 20, 500))
    assert list(scores.accuracy) == [5, 20]
    gallery, queries = (normalize(f.cls[:, -1], dim=-1) for f in (train, val))
    for k, accuracy in scores.accuracy.items():
        right = 0
        for query, label in zip(queries, val.labels.tolist(), strict=True):
            cosines = (gallery @ query).tolist()
            nearest = sorted(range(60), key=lambda i: -cosines[i])[:k]
            votes = [0.0, 0.0, 0.0]
            for i in nearest:
                votes[int(train.labels[i])] += math.exp(cosines[i] / 0.07)
            right += votes.index(max(votes)) == label
        assert accuracy == pytest.approx(right / 30)
    assert 0.4 < scores.best < 1


def test_knn_of_few_images_lets_all_vote() -> None:
    scores = knn(features(6), features(9, seed=1))
    assert list(scores.accuracy) == [6] and scores.num_train == 6 and scores.num_val == 9


@pytest.mark.slow
def test_linear_learns_what_can_be_separated_and_not_noise() -> None:
    good = linear(features(90), features(60, seed=1), steps=200)
    assert [(p.blocks, p.mean_patch) for p in good.probes] == [(1, False), (1, True), (4, False), (4, True)]
    assert good.best.accuracy > 0.95
    noise = replace(features(90), labels=torch.randint(3, (90,), generator=torch.Generator().manual_seed(5)))
    assert linear(noise, features(60, seed=1), steps=200, rates=(0.01,)).best.accuracy < 0.7


def test_linear_is_sgd_as_torch_does_it() -> None:
    """One rate against torch's own optimiser, cross-entropy and schedule on the same draws."""
    train, val = features(50, spread=1.5), features(200, spread=1.5, seed=1)
    steps, rate = 40, 0.05
    scores = linear(train, val, rates=(rate,), steps=steps, seed=3)
    generator = torch.Generator().manual_seed(3)
    starts = [torch.randn(d + 1, 3, generator=generator) * 0.01 for d in (16, 32, 64, 80)]
    layer = torch.nn.Linear(16, 3)
    with torch.no_grad():
        layer.weight.copy_(starts[0][:-1].T)
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=rate * 128 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(50, (128,), generator=generator)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(layer(train.cls[rows, -1]), train.labels[rows]).backward()
        optimiser.step()
        schedule.step()
    expected = float((layer(val.cls[:, -1]).argmax(1) == val.labels).float().mean())
    assert scores.probes[0].accuracy == pytest.approx(expected, abs=0.006)


def test_few_shots_gain_with_their_number_and_know_their_error() -> None:
    train, val = features(90, spread=3.0), features(300, spread=3.0, seed=1)
    scores = few_shot(train, val, shots=(1, 5, 20, 60), draws=50).scores
    assert [s.shots for s in scores] == [1, 5, 20]  # no class has 60
    assert scores[0].accuracy < scores[1].accuracy < scores[2].accuracy
    assert all(0 < s.interval < 0.05 for s in scores)
    other = few_shot(train, val, shots=(1,), draws=400, seed=8).scores[0]
    assert abs(other.accuracy - scores[0].accuracy) < 2 * (scores[0].interval + other.interval)
    assert other.interval < 0.5 * scores[0].interval


def test_one_class_is_refused() -> None:
    one = replace(features(9), labels=torch.zeros(9, dtype=torch.int64))
    for probe in (knn, linear, few_shot):
        with pytest.raises(SeenitError, match="one class"):
            probe(one, one)


def test_tables_have_a_row_for_each_score() -> None:
    train, val = features(60), features(30, seed=1)
    assert len(knn(train, val, neighbours=(5, 10)).table().splitlines()) == 3
    assert "±" in few_shot(train, val, draws=5).table()
    assert len(linear(train, val, steps=2).table().splitlines()) == 5
    assert format_table(["a", "b"], [["xyz", "1"]]) == "a    b\nxyz  1"
    with pytest.raises(FrozenInstanceError):
        knn(train, val).num_val = 3  # type: ignore[misc]


def test_labelled_folders_and_csv_agree(tmp_path: Path) -> None:
    rows = ["path,label"]
    for n in range(6):
        kind = "cat" if n % 2 else "dog"
        draw_photo(tmp_path / "set" / kind / f"{n}.jpg", n)
        rows.append(f"set/{kind}/{n}.jpg,{kind}")
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    by_folder, by_csv = read_labelled(tmp_path / "set"), read_labelled(tmp_path / "set.csv")
    assert by_folder.classes == by_csv.classes == ("cat", "dog")
    assert {*zip(by_folder.paths, by_folder.labels)} == {*zip(by_csv.paths, by_csv.labels)}  # noqa: B905
    assert read_labelled(tmp_path / "set", classes=("bird", "cat", "dog")).labels == tuple(
        n + 1 for n in by_folder.labels
    )
    with pytest.raises(SeenitError, match="dog"):
        read_labelled(tmp_path / "set", classes=("cat",))


@pytest.mark.parametrize("content", [None, "folder", "name,kind\na,b\n"])
def test_unlabelled_images_are_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "labels"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_text(content)
    with pytest.raises(SeenitError) as caught:
        read_labelled(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_features_are_the_networks_and_broken_images_are_left_out(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(5):
        draw_photo(tmp_path / f"class{n % 2}" / f"{n}.png", n, (90, 90))
    (tmp_path / "class0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    backbone = Backbone.load(tiny_backbone, say=lambda line: None, dtype="float32")
    lines: list[str] = []
    made = embed_labelled(backbone, read_labelled(tmp_path), resolution=56, num_blocks=2, workers=1, say=lines.append)
    assert made.cls.shape == (5, 2, 32) and made.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(lines) == 1 and "broken.png" in lines[0]
    again = embed_labelled(
        as_backbone(backbone.model), read_labelled(tmp_path), resolution=56, workers=1, say=lambda line: None
    )
    assert torch.allclose(again.cls[:, -1], made.cls[:, -1], atol=1e-5)
    assert again.cls.shape[1] == 4


# G = 4 patches and R = 16 pixels along a side, patch channels that say what is there
def dense(kind: str, count: int = 12, seed: int = 0) -> DenseFeatures:
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(3, 8))
    targets, patches = [], []
    for _ in range(count):
        cells = rng.integers(0, 3, (4, 4))
        patches.append(basis[cells.ravel()] + 0.05 * rng.normal(size=(16, 8)))
        pixels = np.kron(cells, np.ones((4, 4), int))
        targets.append(pixels if kind == "masks" else (2.0**pixels).astype(np.float32))
    return DenseFeatures(torch.tensor(np.stack(patches)).half(), tuple(targets), 16)


@pytest.mark.slow
def test_segmentation_of_features_that_say_it_all() -> None:
    scores = segmentation(dense("masks"), dense("masks", 5, seed=1), steps=150)
    assert scores.pixel_accuracy > 0.75 and scores.num_images == 5 and set(scores.iou) == {0, 1, 2}
    noise = replace(dense("masks"), patches=torch.randn(12, 16, 8, generator=torch.Generator().manual_seed(0)).half())
    assert segmentation(noise, steps=50, folds=3).mean_iou < 0.35 < scores.mean_iou


def test_intersection_over_union_by_hand() -> None:
    """Features that always say class 0, on masks of which a quarter is class 1 and a quarter does not count."""
    mask = np.zeros((16, 16), int)
    mask[:8, :8] = 1
    mask[8:, :8] = 255
    train = DenseFeatures(torch.zeros(2, 16, 8).half(), (np.zeros((16, 16), int),) * 2, 16)
    val = DenseFeatures(torch.zeros(1, 16, 8).half(), (mask,), 16)
    scores = segmentation(train, val, steps=20)
    assert scores.iou == {0: pytest.approx(128 / 192), 1: 0.0}
    assert scores.mean_iou == pytest.approx(1 / 3) and scores.pixel_accuracy == pytest.approx(128 / 192)


def test_depth_of_features_that_say_it_all_and_of_none() -> None:
    good = depth(dense("depth"), dense("depth", 5, seed=1))
    assert good.rmse < 0.8 and good.within_25_percent > 0.6
    blind = replace(dense("depth"), patches=torch.zeros(12, 16, 8).half())
    scores = depth(blind, folds=4)
    assert scores.num_images == 12
    truth = np.stack(blind.targets)
    assert scores.rmse == pytest.approx(np.sqrt(((truth - np.exp(np.log(truth).mean())) ** 2).mean()), rel=0.1)
    assert good.rmse < 0.6 * scores.rmse


def test_unknown_depth_does_not_count() -> None:
    full = dense("depth")
    holes = tuple(np.where(np.arange(16) < 4, np.float32(0), target) for target in full.targets)
    holed = depth(replace(full, targets=holes), folds=3)
    assert math.isfinite(holed.rmse) and holed.rmse < 1
    with pytest.raises(SeenitError, match="depth"):
        depth(replace(full, targets=tuple(np.zeros((16, 16), np.float32) for _ in holes)))


@pytest.mark.slow
def test_pairs_are_read_and_brought_to_the_same_square(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(3):
        draw_photo(tmp_path / "images" / f"{n}.jpg", n, (80, 40))
        for kind, values in (
            ("masks", np.full((40, 80), n, np.uint8)),
            ("depth", np.full((20, 40), 1500 + n, np.uint16)),
        ):
            values[:, : values.shape[1] // 2] = 7
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{n}.png")
    np.save(tmp_path / "depth" / "2.npy", np.full((10, 10), 2.5))
    (tmp_path / "depth" / "2.png").unlink()
    masks, depths = read_pairs(tmp_path, "masks"), read_pairs(tmp_path, "depth")
    assert read_target(masks.targets[1], 56)[0, [0, 27, 28, 55]].tolist() == [7, 7, 1, 1]
    assert read_target(depths.targets[1], 56)[3, 55] == pytest.approx(1.501)
    assert read_target(depths.targets[2], 56).min() == 2.5
    backbone = Backbone.load(tiny_backbone, say=lambda line: None)
    made = embed_pairs(backbone, masks, resolution=60, workers=1)
    assert made.resolution == 56 and made.side == 4 and made.patches.shape == (3, 16, 32)
    with pytest.raises(SeenitError, match="masks"):
        read_pairs(tmp_path / "images", "masks")
    (tmp_path / "masks" / "0.png").write_bytes(b"nothing")
    with pytest.raises(SeenitError, match=r"0\.png"):
        embed_pairs(backbone, masks, resolution=60, workers=1)
