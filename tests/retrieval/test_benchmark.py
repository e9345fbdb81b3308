"""The revisited Oxford and Paris by the cosine of CLS: against the answers of a made-up set, and a plain loop."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_ground_truth import revisited
from torch.nn.functional import normalize

from indexer import Backbone, SeenitError
from indexer.images.decode import decode_file
from indexer.images.preprocess import preprocess
from retrieval.evaluate.benchmark import _embed_gallery, evaluate_benchmark, ground_truth_of
from retrieval.evaluate.evaluate import scores_table
from retrieval.evaluate.ground_truth import read_tasks

WHOLE = [0, 0, 96, 72]


@pytest.fixture
def backbone(tiny_backbone: Path) -> Backbone:
    return Backbone.load(tiny_backbone, say=lambda line: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two queries that are gallery images 0 and 4 themselves."""
    answers = [
        {"bbx": WHOLE, "easy": [0], "hard": [1], "junk": [2]},
        {"bbx": WHOLE, "easy": [], "hard": [4], "junk": []},
    ]
    truth = revisited(tmp_path / "roxford5k", gnd=answers)
    for query, n in (("a", 0), ("b", 4)):
        shutil.copyfile(truth.parent / "jpg" / f"all_souls_{n:06}.jpg", truth.parent / "jpg" / f"query_{query}.jpg")
    return tmp_path


def test_the_set_is_found_in_its_folder_or_the_one_around_it(folder: Path) -> None:
    expected = folder / "roxford5k" / "gnd_roxford5k.pkl"
    assert ground_truth_of("roxford5k", folder) == ground_truth_of("roxford5k", folder / "roxford5k") == expected
    with pytest.raises(SeenitError, match=r"no gnd_rparis6k\.pkl, .* put that file there"):
        ground_truth_of("rparis6k", folder)


def test_vectors_are_the_last_cls_of_each_image_in_its_own_shape(folder: Path, backbone: Backbone) -> None:
    images = read_tasks(ground_truth_of("roxford5k", folder))[0].gallery
    paths, vectors = _embed_gallery(backbone, images, 56, 1, False, print)
    assert sorted(paths) == sorted(images)
    for path, vector in zip(paths, vectors, strict=True):
        pixels = preprocess(decode_file(path, target_px=64).pixels, "aspect", 56, 14)
        (features,) = backbone.intermediate(pixels[None], [backbone.depth - 1])
        torch.testing.assert_close(vector, normalize(features.cls[0], dim=0), atol=1e-2, rtol=0)


@pytest.mark.slow
def test_both_published_protocols_are_scored(folder: Path, backbone: Backbone) -> None:
    said: list[str] = []
    scores = evaluate_benchmark("roxford5k", folder, backbone=backbone, resolution=56, workers=1, say=said.append)
    assert [one.task for one in scores] == ["roxford5k medium", "roxford5k hard"]
    medium, hard = (one.quality for one in scores)
    # the image itself comes first; where it counts it is right, and in the hard protocol the first query's is junk
    assert medium.recall[1] == 1 and medium.num_queries == 2
    assert hard.num_queries == 2 and hard.mean_average_precision >= 0.5
    assert not said and "CLS cosine" in scores_table(scores)
    assert math.isnan(scores[0].matches.precision)  # nothing is calibrated


@pytest.mark.slow
def test_what_cannot_be_read_is_said_and_counts_as_missing(folder: Path, backbone: Backbone) -> None:
    (folder / "roxford5k" / "jpg" / "all_souls_000004.jpg").write_bytes(b"no image")
    (folder / "roxford5k" / "jpg" / "query_a.jpg").write_bytes(b"no image")
    said: list[str] = []
    scores = evaluate_benchmark("roxford5k", folder, backbone=backbone, resolution=56, workers=1, say=said.append)
    assert scores[0].quality.num_queries == 1 and scores[0].quality.mean_average_precision == 0
    assert len(said) == 2 and "never found" in said[0] and "left out a query" in said[1]


@pytest.mark.long
def test_on_the_command_line(folder: Path, tiny_backbone: Path) -> None:
    command = [sys.executable, "-m", "cli", "evaluate", "retrieval", "--benchmark", "roxford5k"]
    common = ["--backbone", str(tiny_backbone), "--json"]
    told = subprocess.run([*command, str(folder), *common, "--resolution", "56"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert [one["task"] for one in json.loads(told.stdout)] == ["roxford5k medium", "roxford5k hard"]
    told = subprocess.run([*command, str(folder), "--index", str(folder / "i")], capture_output=True, text=True)
    assert told.returncode == 2 and "makes no index" in told.stderr
