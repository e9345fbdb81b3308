"""A run that is stopped or killed and resumed ends in the same bits; snapshots are whole, few and checked."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny
from safetensors.torch import load_file

from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import load_checkpoint
from indexer.errors import SeenitError
from trainer.config import Config, ConfigError, make_config
from trainer.run.snapshot import latest_snapshot, list_snapshots, load_snapshot
from trainer.train import TrainSummary, stage_at, train

pytestmark = pytest.mark.slow


def tiny(**changes: object) -> Config:
    small = {"steps": 6, "batch_size": 4, "head_hidden": 32, "prototypes": 64, "ibot_prototypes": 64, "num_local": 1}
    return make_config("tiny", changes={**small, "snapshot_every": 2, "drop_path": 0.3, **changes})


def quiet(line: str) -> None:
    pass


def run(photos: Path, out: Path, config: Config, **more: Any) -> TrainSummary:
    return train(photos, out, config, progress=False, say=quiet, **more)


def stop_after(steps: int) -> Callable[[], bool]:
    """A stop function that says so when asked for the (steps + 1)-th time."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= steps


def newest_snapshot(out: Path) -> Path:
    path = latest_snapshot(out / "snapshots")
    assert path is not None
    return path


def same_bits(one: Path, two: Path) -> bool:
    a, b = load_file(one), load_file(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(images, out, tiny())
    return out


def test_a_run_leaves_a_backbone_that_loads(whole_run: Path) -> None:
    backbone = Backbone.load(whole_run / "backbone.safetensors", device="cpu", say=quiet)
    assert backbone.architecture.drop_path == 0 and backbone.provenance["steps"] == "6"
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "dino", "ibot", "koleo", "rate", "images_per_s"} <= lines[0].keys()


def test_it_is_the_teacher_that_is_written(whole_run: Path) -> None:
    last = load_snapshot(newest_snapshot(whole_run))
    written = load_checkpoint(whole_run / "backbone.safetensors").state
    name = "blocks.1.mlp.fc1.weight"
    assert torch.equal(written[name], last.tensors[f"teacher.backbone.{name}"])
    assert not torch.equal(written[name], last.tensors[f"student.backbone.{name}"])


@pytest.mark.long
@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_stopped_and_resumed_is_uninterrupted(images: Path, whole_run: Path, tmp_path: Path, stop_at: int) -> None:
    summary = run(images, tmp_path, tiny(), stop=stop_after(stop_at))
    assert summary.stopped and summary.steps == stop_at
    assert not (tmp_path / "backbone.safetensors").exists()
    summary = run(images, tmp_path, tiny(), resume=True)
    assert not summary.stopped and summary.steps == 6
    assert same_bits(tmp_path / "backbone.safetensors", whole_run / "backbone.safetensors")
    assert same_bits(tmp_path / "heads.safetensors", whole_run / "heads.safetensors")


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"targets": "centering"},
        {"accumulate": 2, "batch_size": 2, "freeze_backbone": 0.5},
        {"high_res_share": 0.4, "high_res_global_size": 84, "high_res_local_size": 42},
        {"precision": "float16"},
    ],
    ids=["centering", "accumulation and frozen backbone", "high resolution", "loss scaling"],
)
def test_it_is_so_in_every_mode(images: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    config = tiny(steps=4, **changes)
    run(images, tmp_path / "whole", config)
    run(images, tmp_path / "cut", config, stop=stop_after(3))
    run(images, tmp_path / "cut", config, resume=True)
    assert same_bits(tmp_path / "whole" / "backbone.safetensors", tmp_path / "cut" / "backbone.safetensors")


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_and_resumed_is_uninterrupted(images: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from trainer.config import make_config; from trainer.train import train\n"
        "from test_trainer_resume import tiny, quiet\n"
        "train(sys.argv[1], sys.argv[2], tiny(steps=16), resume=True, progress=False, say=quiet)\n"
    )
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), str(here / "trainer")])}
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", script, str(images), str(out)], env=environment)
    deadline = time.monotonic() + 60
    while len(list_snapshots(out / "snapshots")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    found = latest_snapshot(out / "snapshots")
    assert found is not None and load_snapshot(found).step < 16
    run(images, out, tiny(steps=16), resume=True)
    run(images, tmp_path / "whole", tiny(steps=16))
    assert same_bits(out / "backbone.safetensors", tmp_path / "whole" / "backbone.safetensors")
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 17))


def test_the_last_snapshots_and_the_best_are_kept(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path, tiny(steps=14, snapshot_every=1, keep_snapshots=2))
    kept = list_snapshots(tmp_path / "snapshots")
    best = load_snapshot(kept[14]).state["best"][1]
    assert best == 10  # the first after a look
    assert set(kept) == {10, 13, 14}


def test_high_resolution_comes_at_the_end() -> None:
    config = tiny(steps=10, high_res_share=0.2, high_res_global_size=84, high_res_local_size=42)
    assert [stage_at(config, step).global_size for step in range(10)] == [56] * 8 + [84] * 2


def test_another_configuration_is_not_resumed(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path, tiny(), stop=stop_after(2))
    with pytest.raises(ConfigError, match=r"was made with seed = 0, not 1; resume with the same value"):
        run(images, tmp_path, tiny(seed=1), resume=True)
    with pytest.raises(SeenitError, match="go on with it by --resume, or choose another --out"):
        run(images, tmp_path, tiny())
    assert run(images, tmp_path, tiny(log_every=3, checkpoint_blocks=True), resume=True).steps == 6


@pytest.mark.long
@pytest.mark.parametrize("size", [0, 5, 1000, -10])
def test_a_damaged_snapshot_is_told_in_one_line(images: Path, tmp_path: Path, size: int) -> None:
    run(images, tmp_path, tiny(), stop=stop_after(2))
    path = newest_snapshot(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SeenitError, match="is damaged or no snapshot; delete it") as caught:
        run(images, tmp_path, tiny(), resume=True)
    assert "\n" not in str(caught.value)


def test_a_snapshot_that_cannot_be_written_is_told_and_leaves_nothing(images: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("a file where a folder should be")
    with pytest.raises(SeenitError, match=r"cannot write .*step_000000002.safetensors") as caught:
        run(images, tmp_path, tiny())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "backbone.safetensors").exists()


def test_bad_input_is_told_in_one_line(images: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, config, message in (
        (empty, tiny(), "no images"),
        (images / "0.jpg", tiny(), "batch"),
        (images, tiny(batch_size=11), "batch_size to 10 or less"),
        (images, tiny(device="cuda:77"), "device 'cuda:77' cannot be used"),
    ):
        with pytest.raises(SeenitError, match=message) as caught:
            run(source, tmp_path / "out", config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not bound a process's memory so")
def test_too_little_memory_is_told_in_one_line(images: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "from test_trainer_resume import tiny, run\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 10**9,) * 2)\n"
        "from pathlib import Path; from indexer.errors import SeenitError\n"
        "try: run(Path(sys.argv[1]), Path(sys.argv[2]), tiny(prototypes=20_000_000))\n"
        "except SeenitError as error: print(error)\n"
    )
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), str(here / "trainer")])}
    command = [sys.executable, "-c", script, str(images), str(tmp_path / "out")]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert told.stdout.startswith("no memory for 20,000,000 prototypes and a batch of 4 images on cpu: lower"), (
        told.stderr
    )
    assert told.stdout.count("\n") == 1 and not (tmp_path / "out").exists()


def test_training_starts_from_a_backbone_and_its_architecture(images: Path, tmp_path: Path) -> None:
    origin = save_tiny(tmp_path / "origin.safetensors")
    config = tiny(steps=3, train_blocks=1, alarms=False)
    run(images, tmp_path / "out", config, from_backbone=origin)
    before = load_checkpoint(origin)
    after = load_checkpoint(tmp_path / "out" / "snapshots" / ".." / "backbone.safetensors")
    assert after.architecture == before.architecture and after.name == "tiny0_trained"
    with pytest.raises(SeenitError, match="train_blocks is 9, the network has 4 blocks"):
        run(images, tmp_path / "other", tiny(train_blocks=9), from_backbone=origin)


def test_a_run_can_be_distilled(images: Path, whole_run: Path, tmp_path: Path) -> None:
    student = tiny(steps=3, distill_from=str(whole_run), arch="tiny")
    assert run(images, tmp_path / "heads", student).loss > 0
    features = tiny(steps=3, distill_from=str(whole_run / "backbone.safetensors"))
    assert 0 < run(images, tmp_path / "features", features).loss < 5
    with pytest.raises(SeenitError, match=r"no backbone is called|no weights file"):
        run(images, tmp_path / "none", tiny(distill_from="nobody.safetensors"))


@pytest.mark.long
@pytest.mark.parametrize("teacher", ["backbone", "run with heads"])
def test_a_student_may_be_of_another_width_than_its_teacher(
    images: Path, whole_run: Path, tmp_path: Path, teacher: str
) -> None:
    """Eleven steps: the watch for collapse compares embeddings every ten."""
    narrow = save_tiny(tmp_path / "narrow.safetensors")
    if teacher == "backbone":
        done = run(images, tmp_path / "out", tiny(steps=11, distill_from=str(narrow), alarms=False))
    else:
        config = tiny(steps=11, distill_from=str(whole_run), alarms=False)
        done = run(images, tmp_path / "out", config, from_backbone=narrow)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert done.steps == 11 and 0 < lines[9]["agreement"] <= 1 and lines[9]["spread"] > 0
