"""Sets with masks and depths as their authors publish them, made up here; and depth by bins against a slow twin."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_photo
from PIL import Image

from indexer.errors import SeenitError
from trainer.evaluate.dense import DenseFeatures, depth
from trainer.evaluate.dense_sets import IGNORED, Kind, read_dense_set, read_target
from trainer.evaluate.depth_bins import BINS, LEAST_M, depth_of, fit_bins, scale_invariant_loss


def save_mask(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:  # as Pascal VOC has it
        image.putpalette([n % 256 for n in range(768)])
    image.save(path)


def make_voc(folder: Path) -> Path:
    """VOCdevkit with 3 images to train on, 2 to score, and one that is in neither."""
    root = folder / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000\n2007_001\n2007_002\n")
    (lists / "val.txt").write_text("2007_003\n2007_004\n")
    for n in range(6):
        draw_photo(root / "JPEGImages" / f"2007_{n:03}.jpg", n)
        mask = np.full((72, 96), n % 3)
        mask[:, 90:] = IGNORED
        save_mask(root / "SegmentationClass" / f"2007_{n:03}.png", mask, palette=True)
    return folder


def make_ade(folder: Path) -> Path:
    """Classes from 1; 0 is no class."""
    root = folder / "ADEChallengeData2016"
    for division, count in (("training", 4), ("validation", 2)):
        for n in range(count):
            name = f"ADE_{division[:5]}_{n:08}"
            draw_photo(root / "images" / division / f"{name}.jpg", n)
            mask = np.full((72, 96), 150)
            mask[:36] = n  # of the first, 0
            save_mask(root / "annotations" / division / f"{name}.png", mask)
    return folder


def make_nyu(folder: Path) -> Path:
    """Depth in millimetres, as of a camera of 640 x 480."""
    for division, count in (("train", 3), ("test", 2)):
        for n in range(count):
            scene = folder / "official_splits" / division / f"kitchen_{n % 2}"
            draw_photo(scene / f"rgb_{n:05}.jpg", n, (64, 48))
            millimetres = np.full((480, 640), 2000 + 1000 * n, np.uint16)
            millimetres[:, :300] = 12_000  # beyond the 10 metres that count
            Image.fromarray(millimetres).save(scene / f"sync_depth_{n:05}.png")
    return folder


def test_pascal_voc(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    for given in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        found = read_dense_set(given, "masks")
        assert [Path(one).stem for one in found.train.images] == ["2007_000", "2007_001", "2007_002"]
        assert found.val is not None and [Path(one).stem for one in found.val.targets] == ["2007_003", "2007_004"]
    target = read_target(found.train.targets[2], 48, found.train)
    assert target.dtype == np.uint8 and target[0, 0] == 2 and target[0, -1] == IGNORED


def test_ade20k_counts_classes_from_one_and_leaves_zero_out(tmp_path: Path) -> None:
    found = read_dense_set(make_ade(tmp_path), "masks")
    assert found.val is not None and (len(found.train.images), len(found.val.images)) == (4, 2)
    first, last = (read_target(found.train.targets[n], 14, found.train) for n in (0, 3))
    assert first[0, 0] == IGNORED and first[-1, 0] == 149 and last[0, 0] == 2


def test_nyu_has_its_crop_and_its_ten_metres(tmp_path: Path) -> None:
    found = read_dense_set(make_nyu(tmp_path), "depth")
    assert found.val is not None and (len(found.train.images), len(found.val.images)) == (3, 2)
    assert found.max_depth == 10
    target = read_target(found.train.targets[1], 480, found.train)
    counted = target > 0
    assert target[200, 400] == 4 and counted.any(1).sum() == 471 - 45
    assert counted.any(0).sum() == pytest.approx(480 * (601 - 41) / 640, abs=1)


def test_few_images_are_evenly_spread(tmp_path: Path) -> None:
    found = read_dense_set(make_ade(tmp_path), "masks", most=2)
    assert [Path(one).stem[-1] for one in found.train.images] == ["0", "2"]
    assert found.train.from_one and found.val is not None and len(found.val.images) == 2


@pytest.mark.parametrize(
    ("kind", "make", "lost", "says"),
    [
        ("masks", make_voc, "VOCdevkit/VOC2012/JPEGImages/2007_003.jpg", "1 files of the set are not there"),
        ("masks", make_voc, "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "has its divisions there"),
        ("masks", make_ade, "ADEChallengeData2016/images/validation/ADE_valid_00000001.jpg", "are not there"),
        ("depth", make_nyu, "official_splits/test/kitchen_1/sync_depth_00001.png", "are not there"),
    ],
)
def test_what_lacks_is_one_line(tmp_path: Path, kind: Kind, make: Callable[[Path], Path], lost: str, says: str) -> None:
    (make(tmp_path) / lost).unlink()
    with pytest.raises(SeenitError, match=says) as caught:
        read_dense_set(tmp_path, kind)
    assert "\n" not in str(caught.value)


def test_a_list_names_files_of_the_set_only(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("../../../secret\n2007_004\n")
    with pytest.raises(SeenitError, match="no image's name"):
        read_dense_set(tmp_path, "masks")


@pytest.mark.long
def test_on_the_command_line(tmp_path: Path, tiny_backbone: Path) -> None:
    for command, folder, more in (
        ("segmentation", make_voc(tmp_path / "voc"), []),
        ("depth", make_nyu(tmp_path / "nyu"), ["--head", "bins", "--images", "2"]),
    ):
        given = [str(folder), "--backbone", str(tiny_backbone), "--resolution", "56", "--json", *more]
        told = subprocess.run(
            [sys.executable, "-m", "cli", "evaluate", command, *given], capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["num_images"] == 2


# Depth by bins


def test_depth_is_the_mean_of_the_bins_by_their_shares() -> None:
    scores = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    found = depth_of(scores, 8.0)
    bins = [LEAST_M + k * (8.0 - LEAST_M) / 4 for k in range(5)]
    for image in range(2):
        for row in range(3):
            for col in range(4):
                shares = [max(float(scores[image, k, row, col]), 0.0) + 0.1 for k in range(5)]
                expected = sum(share * metres for share, metres in zip(shares, bins, strict=True)) / sum(shares)
                assert float(found[image, row, col]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_forgives_most_of_a_common_factor() -> None:
    truth = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert float(scale_invariant_loss(truth * 2, truth)) == pytest.approx(math.sqrt(0.15) * math.log(2), rel=1e-2)
    uneven = truth * torch.tensor([2.0, 0.5, 2.0, 0.5])
    assert float(scale_invariant_loss(uneven, truth)) > 2 * float(scale_invariant_loss(truth * 2, truth))


def rooms(count: int, seed: int) -> DenseFeatures:
    """Patches (4 x 4 of 2 x 2 pixels) that say how far away they are, and a CLS that says a factor of the image."""
    rng = np.random.default_rng(seed)
    near = rng.uniform(1, 4, (count, 1, 1)) * np.ones((count, 4, 4)) + np.linspace(0, 3, 4)
    factor = rng.choice([0.5, 1.0], (count, 1, 1))
    basis = np.random.default_rng(9).normal(size=(3, 8))
    patches = near.reshape(count, 16, 1) * basis[0] + 0.01 * rng.normal(size=(count, 16, 8))
    targets = tuple(np.kron(metres, np.ones((2, 2))).astype(np.float32) for metres in near * factor)
    cls = factor[:, 0] * basis[1]
    return DenseFeatures(torch.tensor(patches).half(), targets, 8, torch.tensor(cls).half())


@pytest.mark.long
def test_bins_learn_depth_and_use_cls() -> None:
    train, val = rooms(40, 0), rooms(10, 1)
    scores = depth(train, val, head="bins", steps=300)
    assert train.cls is not None and val.cls is not None
    blind = depth(
        replace(train, cls=torch.zeros_like(train.cls)), replace(val, cls=torch.zeros_like(val.cls)), head="bins"
    )
    assert scores.within_25_percent > 0.8 and scores.relative_error < 0.7 * blind.relative_error
    again = depth(train, val, head="bins", steps=300)
    assert again == scores


def test_bins_reach_to_the_greatest_depth_that_counts() -> None:
    train = rooms(4, 0)
    assert train.cls is not None
    head = fit_bins(train.patches, train.cls, train.targets, 5.0, steps=2)
    assert head.weight.shape == (16, BINS) and head.max_depth == 5
    guess = head(train.patches.float(), train.cls.float(), 8)
    assert guess.shape == (4, 8, 8) and float(guess.min()) > 0 and float(guess.max()) <= 5
    with pytest.raises(SeenitError, match=r"next to nothing up to 0\.1 m"):
        fit_bins(train.patches, train.cls, train.targets, 0.1, steps=2)


def test_what_is_too_far_away_does_not_count() -> None:
    near = rooms(6, 0)
    far = replace(near, targets=tuple(np.where(np.arange(8) < 2, np.float32(50), one) for one in near.targets))
    assert depth(far, max_depth=10.0, folds=3).rmse < 2 < depth(far, folds=3).rmse
    with pytest.raises(SeenitError, match="metres above 0"):
        depth(near, max_depth=0.1)
