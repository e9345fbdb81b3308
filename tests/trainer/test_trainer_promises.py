"""What a run promises beyond its numbers: stages, resumption, settings, metrics and files that it takes and leaves."""

import json
import math
import re
import shutil
import signal
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import draw_photo, save_tiny
from safetensors.torch import load_file
from test_trainer_resume import run, same_bits, stop_after, tiny

from cli import main
from indexer.backbone.checkpoint import load_checkpoint
from indexer.errors import CheckpointError, SeenitError
from indexer.terminal import stop_on_interrupt
from trainer.config import ORIGIN, PRESETS, ConfigError, make_config
from trainer.model.losses import sinkhorn
from trainer.model.optim import pace_at
from trainer.run.collapse import CollapseError
from trainer.run.results import _as_json_line
from trainer.train import train

HIGH_RES = {"high_res_share": 0.5, "high_res_global_size": 84, "high_res_local_size": 42}


def test_the_stage_of_high_resolution_has_schedules_of_its_own() -> None:
    config = make_config("vitl14", changes={"steps": 625_000, "high_res_share": 0.016})
    start = config.high_res_start
    assert start == 615_000
    last, first = pace_at(config, start - 1), pace_at(config, start)
    assert last.rate == pytest.approx(config.rate_end, rel=1e-3) and last.momentum == pytest.approx(1.0, abs=1e-6)
    assert first.rate == 0 and first.momentum == config.momentum
    assert first.teacher_temperature == config.teacher_temperature_start
    rates = [pace_at(config, step).backbone_rate for step in range(start, config.steps, 100)]
    assert max(rates) == pytest.approx(config.high_res_rate * config.scaled_rate, rel=0.01)
    replaced = 1 - math.prod(pace_at(config, step).momentum ** 100 for step in range(start, config.steps, 100))
    assert replaced > 0.99  # of the teacher


@pytest.mark.long
def test_position_embeddings_are_resized_where_the_stage_begins(images: Path, tmp_path: Path) -> None:
    config = tiny(steps=4, **HIGH_RES)
    run(images, tmp_path / "whole", config)
    written = load_checkpoint(tmp_path / "whole" / "backbone.safetensors")
    assert written.architecture.image_size == 84 and written.state["pos_embed"].shape[1] == 1 + 6 * 6
    for stop in (2, 3):  # just before the stage, and in it
        out = tmp_path / f"cut{stop}"
        run(images, out, config, stop=stop_after(stop))
        run(images, out, config, resume=True)
        assert same_bits(out / "backbone.safetensors", tmp_path / "whole" / "backbone.safetensors")


@pytest.mark.slow
def test_a_run_is_not_resumed_from_other_weights_or_on_other_photos(images: Path, tmp_path: Path) -> None:
    origin, other = save_tiny(tmp_path / "origin.safetensors"), save_tiny(tmp_path / "other.safetensors", seed=1)
    out = tmp_path / "out"
    run(images, out, tiny(alarms=False), from_backbone=origin, stop=stop_after(2))
    with pytest.raises(SeenitError, match=r"made with arch|started from the backbone .* not from random"):
        run(images, out, tiny(alarms=False), resume=True)
    with pytest.raises(SeenitError, match=r"started from the backbone .* not from the backbone"):
        run(images, out, tiny(alarms=False), from_backbone=other, resume=True)
    more = tmp_path / "more"
    shutil.copytree(images, more)
    assert run(more, out, tiny(alarms=False), from_backbone=origin, resume=True, stop=stop_after(1)).steps == 3
    draw_photo(more / "3.jpg", 77)
    with pytest.raises(SeenitError, match="on other photos than those given") as caught:
        run(more, out, tiny(alarms=False), from_backbone=origin, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_steps_may_be_raised_and_not_lowered(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path, tiny(), stop=stop_after(2))
    with pytest.raises(ConfigError, match="of a run of 6 steps, not 5; steps can be raised only"):
        run(images, tmp_path, tiny(steps=5), resume=True)
    assert run(images, tmp_path, tiny(steps=7), resume=True).steps == 7


@pytest.mark.long
def test_steps_cannot_be_raised_once_the_last_stage_has_begun(images: Path, tmp_path: Path) -> None:
    config = tiny(steps=4, **HIGH_RES)
    run(images, tmp_path, config, stop=stop_after(3))
    with pytest.raises(ConfigError, match="in the stage of high resolution, which began after step 2: steps cannot"):
        run(images, tmp_path, tiny(steps=40, **HIGH_RES), resume=True)
    assert run(images, tmp_path, config, resume=True).steps == 4


def test_adapting_needs_a_backbone(images: Path, tmp_path: Path) -> None:
    config = make_config("adapt", changes={"arch": "tiny", "steps": 1})
    with pytest.raises(SeenitError, match="name one by --from"):
        run(images, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_settings_kept_are_those_of_the_backbone_and_can_be_given_again(images: Path, tmp_path: Path) -> None:
    origin = save_tiny(tmp_path / "origin.safetensors")
    run(images, tmp_path / "out", tiny(registers=3, alarms=False), from_backbone=origin, stop=stop_after(1))
    kept = make_config(file=tmp_path / "out" / "config.json")
    architecture = load_checkpoint(origin).architecture
    assert kept.registers == architecture.num_registers != 3 and kept.arch in (ORIGIN, "tiny")
    assert kept.steps == 6 and kept.batch_size == 4
    with pytest.raises(ConfigError, match="give one by --from"):
        make_config("tiny", changes={"arch": ORIGIN}).architecture()


def test_published_batches_divide_among_eight_gpus() -> None:
    per_gpu = {"vitl14": 32, "vitg14": 12, "vitl16_short": 64}
    assert {name: PRESETS[name]["batch_size"] / 8 for name in per_gpu} == per_gpu


def test_presets_repeat_the_blur_that_trained_the_weights() -> None:
    for config in map(make_config, PRESETS):
        assert (config.blur_first, config.blur_second, config.blur_local) == (0.0, 0.9, 0.5)


def test_networks_with_registers_stretch_positions_as_the_official_ones() -> None:
    plain, registers = (make_config("vits14", changes={"registers": n}).architecture() for n in (0, 4))
    assert (plain.interpolate_offset, plain.interpolate_antialias) == (0.1, False)
    assert (registers.interpolate_offset, registers.interpolate_antialias) == (0.0, True)


def test_blocks_that_are_not_there_cannot_be_trained(images: Path, tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match="train_blocks is 9, the network has 3 blocks"):
        run(images, tmp_path / "out", tiny(train_blocks=9))


@pytest.mark.parametrize("spread", [0.5, 50.0, 61.0, 1000.0])
@pytest.mark.parametrize("peaked", [False, True])
def test_sinkhorn_loses_no_row(spread: float, peaked: bool) -> None:
    drawn = torch.rand(64, 512, generator=torch.Generator().manual_seed(0))
    if peaked:  # most prototypes are as unwanted as can be, all want one of eight, and a few rows want nothing
        drawn = (drawn > 0.9).float() * drawn
        drawn[:, :8] = 1 - drawn[:, :8] / 100
        drawn[:4] *= 1e-3
    scores = (drawn - drawn.min()) / (drawn.max() - drawn.min()) * spread * 0.04
    targets = sinkhorn(scores, 0.04)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    log_q = scores.double() / 0.04  # the slow twin: logarithms of the whole matrix, wide enough for any of them
    for _ in range(3):
        log_q -= log_q.logsumexp(0, keepdim=True)
        log_q -= log_q.logsumexp(1, keepdim=True)
    # float32 has seven digits, and an exponent of 1000 takes three of them
    torch.testing.assert_close(targets, log_q.exp().float(), atol=1e-6, rtol=1e-5 + 1e-6 * spread)


def test_sinkhorn_shows_scores_that_are_no_numbers() -> None:
    scores = torch.randn(4, 8)
    scores[1, 2] = math.nan
    assert sinkhorn(scores, 0.04).isnan().any()


def test_metrics_are_json_whatever_the_numbers() -> None:
    line = _as_json_line({"step": 3, "loss": math.nan, "gradient_norm": math.inf, "dino": 1.5})
    parsed = json.loads(line, parse_constant=lambda word: pytest.fail(word))
    assert parsed == {"step": 3, "loss": None, "gradient_norm": None, "dino": 1.5}


@pytest.mark.slow
def test_local_and_global_losses_are_logged_apart(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path, tiny(steps=2, num_local=2))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    # 2 pairs of global views, and 2 local views against 2 global ones
    assert line["dino"] == pytest.approx((2 * line["dino_global"] + 4 * line["dino_local"]) / 6, abs=1e-5)


@pytest.mark.slow
def test_a_stop_and_an_alarm_leave_a_snapshot_and_a_report(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(images, tmp_path / "stopped", tiny(), stop=stop_after(1))
    monkeypatch.setattr(
        "trainer.run.collapse.CollapseMonitor.judge_numbers", lambda self, step, finite: "no good" if step > 2 else None
    )
    with pytest.raises(CollapseError, match="no good"):
        run(images, tmp_path / "alarm", tiny(snapshot_every=100))
    for out, step in ((tmp_path / "stopped", 1), (tmp_path / "alarm", 3)):
        assert (out / "report.html").is_file()
        assert (out / "snapshots" / f"step_{step:09d}.safetensors").is_file()


@pytest.mark.long
def test_what_an_alarm_stopped_goes_on_only_at_the_users_word(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "trainer.run.collapse.CollapseMonitor.judge_numbers",
            lambda self, step, finite: "all is one" if step > 2 else None,
        )
        with pytest.raises(CollapseError, match="all is one"):
            run(images, tmp_path, tiny())
    with pytest.raises(
        SeenitError, match=r"step_000000003\S+ is what an alarm left: all is one; .*alarms=false"
    ) as told:
        run(images, tmp_path, tiny(), resume=True)
    assert "\n" not in str(told.value)
    assert run(images, tmp_path, tiny(alarms=False), resume=True, stop=stop_after(1)).steps == 4
    assert run(images, tmp_path, tiny(), resume=True).steps == 6  # the state after it is one that no alarm left


@pytest.mark.long
@pytest.mark.parametrize(("progress", "every_s", "lines"), [(False, 0.0, 3), (False, 30.0, 0), (True, 0.0, 0)])
def test_without_a_bar_a_line_tells_now_and_then_how_far_it_is(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: bool, every_s: float, lines: int
) -> None:
    monkeypatch.setattr("trainer.train.SAY_EVERY_S", every_s)
    said: list[str] = []
    train(images, tmp_path, tiny(steps=3), progress=progress, say=said.append)
    told = [line for line in said if line.startswith("step ")]
    assert len(told) == lines
    assert not told or re.fullmatch(r"step 3 of 3: loss \d+\.\d{3}, \d+\.\d images/s", told[-1])


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_torchrun_the_first_process_prints_what_came_of_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    changes = [f"--set={key}={value}" for key, value in {"steps": 1, "batch_size": 4, "workers": 0}.items()]
    words = ["seenit", "train", str(images), "--out", str(tmp_path / "out"), "--preset", "tiny", *changes]
    monkeypatch.setattr("sys.argv", words)
    with suppress(SystemExit):
        main()
    assert (tmp_path / "out" / "backbone.safetensors").is_file()
    assert ("images/s" in capsys.readouterr().out) == (rank == "0")


def test_a_termination_asks_to_stop_as_an_interrupt_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_interrupt(signal.SIGTERM) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("layout", ["nested", "module", "chunks"])
def test_checkpoints_of_training_runs_are_read(tmp_path: Path, layout: str) -> None:
    from indexer.backbone.vit import Architecture, VisionTransformer

    vit = VisionTransformer(Architecture(embed_dim=64, depth=3, num_heads=1, image_size=56))
    state = vit.state_dict()
    student = {f"backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
    saved: dict[str, Any] = {
        "teacher": {f"backbone.{n}": v for n, v in state.items()} | {"dino_head.mlp.0.weight": torch.ones(2)}
    }
    if layout == "module":
        saved = {f"module.backbone.{name}": value for name, value in state.items()}
    if layout == "chunks":
        names = {n: n.replace("blocks.2.", "blocks.1.2.").replace("blocks.0.", "blocks.0.0.") for n in state}
        names |= {n: n.replace("blocks.1.", "blocks.0.1.") for n in state if n.startswith("blocks.1.")}
        saved = {"teacher": {f"backbone.{names[n]}": v for n, v in state.items()}, "student": student}
    torch.save(saved, tmp_path / "training.pth")
    read = load_checkpoint(tmp_path / "training.pth")
    assert read.state.keys() == state.keys() and all(torch.equal(read.state[n], state[n]) for n in state)
    assert read.provenance["layout"] == "checkpoint of a training run"


def share_of_a_flat_network(path: Path) -> None:
    torch.save({"model": {"teacher.backbone.blocks.0._flat_param": torch.ones(9)}}, path)


def sharded_tensors(path: Path) -> None:
    text = b"\x80\x02ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\n."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)


def rotary_network(path: Path) -> None:
    torch.save({"teacher": {"backbone.rope_embed.periods": torch.ones(9), "backbone.cls_token": torch.ones(1)}}, path)


@pytest.mark.parametrize(
    ("write", "name", "said"),
    [
        (share_of_a_flat_network, "model_0009.rank_0.pth", "one process's share of a training run sharded by FSDP"),
        (sharded_tensors, "model_0009.rank_0.pth", "one process's share of a training run sharded by FSDP"),
        (rotary_network, "dinov3.pth", "it is a DINOv3 backbone"),
        (lambda path: path.write_bytes(b"PK"), "__0_0.distcp", "is a distributed checkpoint"),
    ],
)
def test_files_of_training_runs_that_cannot_be_read_are_named(
    tmp_path: Path, write: Callable[[Path], object], name: str, said: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_one_process_holds_the_whole_state_for_a_snapshot(images: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from trainer.model.distributed import World
    from trainer.run.results import _gather_state
    from trainer.run.state import start_run

    started = start_run(tiny(), None, torch.device("cpu"), World())
    assert "student.backbone.pos_embed" in _gather_state(started)
    assert not _gather_state(replace(started, world=World(rank=1, size=2)))
    run(images, tmp_path, tiny(steps=1))
    assert load_file(tmp_path / "backbone.safetensors")
