"""Alarms: they fire on runs that are built to collapse, stay quiet on a healthy one, and name what to change.

Also what a run shows and compares: images, report, k-NN, and scores before and after.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import draw_photo, save_tiny

from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import load_checkpoint
from indexer.backbone.layouts import Checkpoint
from trainer.config import make_config
from trainer.data.sources import open_source
from trainer.run.collapse import ENOUGH, CollapseError, CollapseMonitor, CollapseSigns, effective_rank
from trainer.run.snapshot import latest_snapshot, load_snapshot
from trainer.run.trial import TrialScores, got_worse, prepare_trial, retrieval_change, split_source
from trainer.train import TrainSummary, train

pytestmark = pytest.mark.slow

SMALL = {
    "steps": 200,
    "batch_size": 8,
    "global_size": 28,
    "local_size": 14,
    "num_local": 1,
    "snapshot_every": 20,
    "log_every": 100,
}
COLLAPSING = {
    "one for all": {  # centering without sharpening, nothing that spreads
        "targets": "centering",
        "teacher_temperature": 1,
        "teacher_temperature_start": 1,
        "momentum": 0.5,
        "momentum_end": 0.5,
        "koleo_weight": 0,
        "rate": 0.05,
    },
    "too fast": {
        "targets": "centering",
        "koleo_weight": 0,
        "rate": 1,
        "momentum": 0,
        "momentum_end": 0,
        "clip": 0,
    },
}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for n in range(32):
        draw_photo(folder / ("a" if n < 16 else "b") / f"{n}.png", n)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("kind", COLLAPSING)
def test_a_collapsing_run_is_stopped_within_200_steps(images: Path, tmp_path: Path, kind: str) -> None:
    config = make_config("tiny", changes=SMALL | COLLAPSING[kind])
    with pytest.raises(CollapseError, match=r"stopped at step \d+: .*(lower rate|koleo_weight)") as caught:
        train(images, tmp_path, config, progress=False, say=quiet)
    best = str(caught.value).split("best snapshot is kept: ")[1]
    last = latest_snapshot(tmp_path / "snapshots")
    assert last is not None
    assert load_snapshot(Path(best)).step < load_snapshot(last).step + 1
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "backbone.safetensors").exists()


@pytest.mark.long
def test_a_healthy_run_is_left_alone(images: Path, tmp_path: Path) -> None:
    config = make_config("tiny", changes=SMALL | {"steps": 120})
    assert train(images, tmp_path, config, progress=False, say=quiet).steps == 120
    looks = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum("spread" in look for look in looks) == 12


def test_numbers_that_are_none_stop_a_run(images: Path, tmp_path: Path) -> None:
    config = make_config("tiny", changes=SMALL | {"rate": 1e30, "warmup": 0, "clip": 0})
    with pytest.raises(CollapseError, match="gradients were no finite numbers 3 steps in a row; lower rate"):
        train(images, tmp_path, config, progress=False, say=quiet)


def signs(spread: float = 0.5, rank: float = 10.0, usage: float = 0.9) -> CollapseSigns:
    return CollapseSigns(rank, spread, 0.9, usage, 0.9, 0.5)


def filled_watch(steps: int = 1000) -> CollapseMonitor:
    watch = CollapseMonitor(steps, patience=3)
    watch.remember(torch.randn(2 * ENOUGH, 8), torch.rand(2 * ENOUGH, 4).softmax(1))
    return watch


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (signs(spread=0.01), "are becoming one"),
        (signs(rank=1.5), "fill only 1.5 directions"),
        (signs(usage=0.05), "to the same prototype"),
    ],
)
def test_only_several_bad_looks_in_a_row_stop_a_run(bad: CollapseSigns, message: str) -> None:
    watch = filled_watch()
    for step, look in enumerate([signs(), bad, bad, signs(), bad, bad]):
        assert watch.judge(step, look) is None
    assert message in (watch.judge(6, bad) or "")


def test_a_network_that_has_not_begun_to_learn_is_given_time() -> None:
    watch = filled_watch(steps=1000)
    for step in range(0, 500, 10):
        assert watch.judge(step, signs(spread=1e-6, rank=1.2)) is None
    assert any("still one" in (watch.judge(step, signs(spread=1e-6, rank=1.2)) or "") for step in range(510, 600, 10))


def test_a_finite_step_ends_the_count_of_the_others() -> None:
    watch = CollapseMonitor(100)
    told = [watch.judge_numbers(step, finite) for step, finite in enumerate([False, False, True, False, False])]
    assert told == [None] * 5
    assert watch.judge_numbers(5, False)


def test_effective_rank_counts_directions() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 5))[0].T  # (5, 32)
    assert effective_rank(torch.randn(4000, 5) @ basis) == pytest.approx(5, rel=0.01)
    assert effective_rank(torch.randn(10, 1) @ basis[:1] + 3) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(10, 32)) == 1


def test_held_out_photos_are_the_same_each_time_and_not_trained_on(images: Path) -> None:
    source = open_source(images)
    train_part, held = split_source(source, 8, seed=0)
    assert len(held) == 8 and len(train_part) == 24
    assert not set(held.places) & set(train_part.places)
    assert split_source(source, 8, seed=0)[1] == held != split_source(source, 8, seed=1)[1]
    assert split_source(source, 30, seed=0) == (source, source)


def test_a_backbone_that_says_the_same_of_every_photo_finds_none(images: Path, tmp_path: Path) -> None:
    train_part, held = split_source(open_source(images), 8, seed=0)
    trial = prepare_trial(train_part, held, size_px=56, patch_size=14, workers=0, seed=0)
    assert trial is not None and trial.held.shape == (8, 3, 56, 56, 3) and len(trial.others) == 24
    backbone = Backbone.load(save_tiny(tmp_path / "tiny.safetensors"), device="cpu", say=quiet)
    good = trial.score(backbone)
    assert good.retrieval > 0.2 and len(good.reciprocal_ranks) == 16
    for parameter in backbone.model.parameters():
        torch.nn.init.zeros_(parameter)
    collapsed = trial.score(backbone)
    assert collapsed.retrieval == pytest.approx(1 / 32) and got_worse(good, collapsed)


def test_what_is_worse() -> None:
    def scores(*ranks: float, knn: float | None = None) -> TrialScores:
        return TrialScores(torch.tensor(ranks * 50, dtype=torch.float32), knn, 100)

    assert got_worse(scores(1, 0.5), scores(0.9, 0.4))
    assert not got_worse(scores(1, 0.5), scores(0.5, 0.99))  # a hundredth down, and every photo half up or down
    low, high = retrieval_change(scores(1, 0.5), scores(0.5, 0.99))
    assert low < -0.005 < high
    assert not got_worse(scores(1, 0.5), scores(1, 0.5))
    assert got_worse(scores(1, knn=0.5), scores(1, knn=0.4))
    assert not got_worse(scores(1, knn=0.5), scores(1, knn=0.46))  # within a standard error


def adapt(images: Path, out: Path, **changes: object) -> tuple[TrainSummary, list[str], Checkpoint, Checkpoint]:
    config = make_config(
        "adapt",
        changes={
            **{k: v for k, v in SMALL.items() if k != "log_every"},
            **{"steps": 4, "prototypes": 64, "ibot_prototypes": 64, "head_hidden": 32, "workers": 0, "show_every": 2},
            **changes,
        },
    )
    said: list[str] = []
    origin = save_tiny(out / "origin.safetensors")
    summary = train(images, out / "run", config, from_backbone=origin, labelled=images, progress=False, say=said.append)
    return summary, said, load_checkpoint(origin), load_checkpoint(summary.backbone)


def test_adapting_compares_before_and_after_and_shows_what_it_does(images: Path, tmp_path: Path) -> None:
    summary, said, *_ = adapt(images, tmp_path, rate=1e-6)
    assert (
        summary.before is not None
        and summary.before.num_held == 8
        and summary.before.knn is not None
        and summary.after is not None
    )
    assert any(line.startswith("before: retrieval 0.") for line in said)
    names = {path.name for path in (tmp_path / "run" / "images").iterdir()}
    assert names == {f"step_000000{n}_{kind}.png" for n in (2, 4) for kind in ("features", "neighbours")}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "retrieval" in page and "<svg" in page
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["knn"] <= 1 for row in rows if row["step"] in (2, 4))
    assert math.isfinite(rows[-1]["loss"])


@pytest.mark.long
def test_what_became_worse_is_not_written_as_the_backbone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainer.run.results.got_worse", lambda before, after: True
    )  # a random network can only improve
    summary, said, origin, written = adapt(
        images,
        tmp_path,
        rate=1000,
        warmup=0,
        momentum=0,
        momentum_end=0,
        freeze_backbone=0,
        layer_decay=1,
        global_size=112,
    )
    assert summary.kept_original
    assert "made the backbone worse" in said[-1]
    assert all(torch.equal(written.state[name].float(), value.float()) for name, value in origin.state.items())
    trained = load_checkpoint(tmp_path / "run" / "backbone_trained.safetensors")
    assert not torch.equal(trained.state["norm.weight"], origin.state["norm.weight"].float())
