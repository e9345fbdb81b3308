"""A training run from images to a backbone file: the loop around the step, and what it leaves in a folder.

OUT/backbone.safetensors is the teacher's backbone, for `seenit index --backbone`; OUT/heads.safetensors its heads, for
distillation; OUT/snapshots/ what a killed run goes on from; OUT/metrics.jsonl one line every few steps; OUT/report.html
curves and images. All randomness of a step is a function of (seed, step), so that going on is the same as not having
stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from indexer.errors import SeenitError
from indexer.messages import Say, say_to_stderr

from .config import Config, ConfigError
from .data.ahead import OneAhead
from .data.masking import draw_masks, pick_masked
from .data.sources import ImageSource, fingerprint, open_source
from .data.stream import CropStream, check_batch
from .model.distributed import (
    any_process,
    full_tensor,
    join_world,
    reshard,
    sum_over_processes,
    wait_for_all,
    without_sync,
)
from .model.optim import ScheduleValues, clip_gradients, pace_at, set_pace, update_ema, update_if_finite
from .model.student_teacher import FeatureTeacher, Losses, MaskedCrops, compute_losses
from .run.collapse import LOOK_EVERY, CollapseError, CollapseSigns
from .run.report import write_report
from .run.results import (
    FeaturePreviews,
    close_board,
    compare_before,
    keep_snapshot,
    open_board,
    prepare_folder,
    restore_run,
    write_metrics,
    write_results,
)
from .run.snapshot import latest_snapshot, snapshot_path
from .run.state import (
    Run,
    choose_device,
    described,
    enter_high_resolution,
    float32_as_tf32,
    read_backbone,
    settle_learning,
    start_run,
    telling_of_memory,
)
from .run.trial import TrialScores, split_source

LOSS_NAMES = ("total", "dino", "dino_global", "dino_local", "ibot", "koleo")  # fields of Losses
SAY_EVERY_S = 30.0  # without a bar


@dataclass(frozen=True)
class TrainSummary:
    """What came of a run."""

    backbone: Path  # the file that was written
    steps: int  # updates done, those before a resumption included
    loss: float  # of the last step
    images_per_s: float  # over all processes
    unreadable: int  # images that were replaced
    stopped: bool  # because `stop` returned True; resume=True goes on
    before: TrialScores | None = None  # of the backbone that it started from, on photos that it was not trained on
    after: TrialScores | None = None  # of the trained one
    kept_original: bool = False  # because training made it worse; OUT/backbone_trained.safetensors has the trained one


def train(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    config: Config,
    *,
    from_backbone: str | Path | None = None,
    labelled: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    say: Say = say_to_stderr,
) -> TrainSummary:
    """Train a backbone with DINOv2 on images.

    images       a folder, tar shards or a list of paths (see `sources.open_source`)
    out            a folder for all results, made if need be
    from_backbone  a backbone's name or path to start from; it decides the architecture, a tenth of the images is
                   held out to compare before and after, and the better of both is written. None: random weights
    labelled       images of known classes (see `labelled.read_labelled`) for k-NN accuracy among the metrics
    resume         go on from the last snapshot in `out`, if there is one; otherwise `out` must hold none
    progress       show a bar on stderr
    stop           asked before every step; True writes a snapshot and ends the run there
    say            gets lines on what happens

    Under torchrun every process calls this with the same arguments. Raises SeenitError in one line: no images, fewer
    than a batch, damaged snapshots, no space; CollapseError where the run is stopped because it collapses.
    """
    if config.method != "dinov2":
        raise ConfigError("this configuration is one for trainer.view_distillation.train_views; choose another preset")
    out = Path(out)
    device = choose_device(config)
    world = join_world(device.type)
    with ExitStack() as cleanup:
        cleanup.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        cleanup.enter_context(telling_of_memory(config, device))
        cleanup.enter_context(float32_as_tf32(device))
        say = say if world.is_main else _say_nothing
        source = open_source(images, exclude_dirs=[out])
        images_digest = fingerprint(source)
        if from_backbone is None and config.needs_backbone:
            raise SeenitError(
                "this preset adapts a trained backbone, and none is given; name one by --from, for instance"
                " --from dinov2_vits14, or train from random weights by --set needs_backbone=false"
            )
        origin = None if from_backbone is None else read_backbone(from_backbone)
        held = source
        if origin is not None:
            given, config = config, described(config, origin)
            if (given.arch, given.registers) != (config.arch, config.registers):
                say(
                    f"the network is that of {origin.name}: arch {config.arch}, registers {config.registers};"
                    " arch, registers and layerscale of the configuration are not used"
                )
            source, held = split_source(source, config.batch_size, config.seed)
        check_batch(len(source), config, world.size)
        run = start_run(config, origin, device, world, images_digest)
        snapshots = out / "snapshots"
        last = latest_snapshot(snapshots)
        if last is not None and not resume:
            raise SeenitError(f"{snapshots} holds a run; go on with it by --resume, or choose another --out")
        if last is not None:
            restore_run(run, last)
            say(f"going on after step {run.step} from {last}")
        comparison, shows = None, None
        if world.is_main:
            prepare_folder(out, run.step, run.config)
            run.board = open_board(out / "tensorboard")
            cleanup.callback(close_board, run.board)
            comparison = None if origin is None else compare_before(run, origin, source, held, say)
            shows = FeaturePreviews(run, source, labelled, out)
        stopped, rate = _loop(run, source, out, progress, stop, say, shows)
        if not stopped:
            state = {name: full_tensor(value).cpu() for name, value in run.average.state_dict().items()}
            if world.is_main:
                write_results(run, state, out, comparison, say)
        wait_for_all()
        return TrainSummary(
            backbone=out / "backbone.safetensors",
            steps=run.step,
            loss=run.loss,
            images_per_s=rate,
            unreadable=run.unreadable,
            stopped=stopped,
            before=None if comparison is None else comparison.before,
            after=None if comparison is None else comparison.after,
            kept_original=comparison is not None and comparison.got_worse,
        )


def _loop(
    run: Run,
    source: ImageSource,
    out: Path,
    progress: bool,
    stop: Callable[[], bool],
    say: Say,
    shows: FeaturePreviews | None,
) -> tuple[bool, float]:
    """Step until the end, or until `stop` says so.

    returns  whether it was stopped, and images per second over all processes
    """
    config, world = run.config, run.world
    started, done = time.perf_counter(), 0
    spoken = started
    batches: OneAhead[MaskedCrops] | None = None
    stage: Config | None = None
    with ExitStack() as streams, _bar(config.steps, run.step, progress and world.is_main) as bar:
        while run.step < config.steps:
            if any_process(stop(), run.device):
                keep_snapshot(run, out)
                _report(run, out)
                say(f"stopped after step {run.step}; go on by --resume")
                return True, done / max(time.perf_counter() - started, 1e-9)
            if stage != (stage_now := stage_at(config, run.step)):
                stage = stage_now
                streams.close()
                stream = streams.enter_context(_open_stream(run, source, stage, say))
                batches = OneAhead(_masked_batches(run, stream, stage), run.device)
            assert batches is not None and stage is not None
            if run.step == config.high_res_start:
                enter_high_resolution(run)
            settle_learning(run)
            signs = _step(run, batches)
            run.step += 1
            done += config.images_per_update
            run.unreadable = len(stream.broken)
            speed = done / (time.perf_counter() - started)
            bar.update(1)
            if not progress and time.perf_counter() - spoken >= SAY_EVERY_S:
                spoken = time.perf_counter()
                say(f"step {run.step:,} of {config.steps:,}: loss {run.loss:.3f}, {speed:.1f} images/s")
            bar.set_postfix_str(f"loss {run.loss:.3f}, {speed:.1f} images/s")
            run.metrics[-1]["images_per_s"] = round(speed, 2)
            complaint = run.watch.judge(run.step, signs) if signs is not None and config.alarms else None
            complaint = complaint or run.watch.judge_numbers(run.step, run.metrics[-1].pop("finite"))
            if any_process(complaint is not None, run.device):
                complaint = complaint or "another process stopped the run"
                keep_snapshot(run, out, alarm=complaint)
                _report(run, out)
                raise CollapseError(_with_best(run, complaint, out))
            showing = config.show_every and (run.step % config.show_every == 0 or run.step == config.steps)
            if shows is not None and showing:
                run.metrics[-1] |= shows.show()
            elif run.step % config.log_every and run.step != config.steps and signs is None:
                run.metrics.pop()
            if run.step % config.snapshot_every == 0 or run.step == config.steps:
                keep_snapshot(run, out)
            elif len(run.metrics) >= 10:
                write_metrics(run, out)
    return False, done / max(time.perf_counter() - started, 1e-9)


def _step(run: Run, batches: OneAhead[MaskedCrops]) -> CollapseSigns | None:
    """One update of the student and, after it, of the average; a check for collapse every few steps.

    All of it is queued on the device, and the next batch beside it, before `_record` waits for the numbers.
    """
    config = run.config
    pace = pace_at(config, run.step)
    set_pace(run.optimiser, pace)
    torch.manual_seed(_step_seed(config.seed, run.step, run.world.rank))
    run.optimiser.zero_grad(set_to_none=True)
    numbers: list[Tensor] = []
    for number in range(config.accumulate):
        batch = batches.take()
        last = number == config.accumulate - 1
        assert run.parallel is not None
        with without_sync(run.parallel, last=last):
            losses = compute_losses(
                run.parallel,
                run.teacher,
                run.centers,
                batch,
                config,
                temperature=pace.teacher_temperature,
                autocast=run.autocast,
            )
            run.scaler.scale(losses.total / config.accumulate).backward()
        numbers.append(torch.stack([getattr(losses, name).detach() for name in LOSS_NAMES]).float())
        if not last:
            batches.prepare()
    run.scaler.unscale_(run.optimiser)
    norm = clip_gradients(run.student.parts(), config.clip)
    if run.scaler.is_enabled():
        run.scaler.step(run.optimiser)
    else:
        update_if_finite(run.optimiser, norm)
    run.scaler.update()
    for network in (run.student, run.teacher):
        reshard(network)
    update_ema(run.average, run.student, pace.momentum)
    if run.step + 1 not in (config.high_res_start, config.steps):  # the next batch is of this stream
        batches.prepare()
    return _record(run, torch.stack(numbers).mean(0), losses, norm, pace)


def _record(run: Run, numbers: Tensor, last: Losses, norm: Tensor, pace: ScheduleValues) -> CollapseSigns | None:
    """Put the step into the metrics and into the watch's memory, and check for collapse where it is time.

    numbers  (6,)  total and single losses in this process
    last     of the last batch before the update
    norm     ()    of the gradients, the same in all processes
    """
    together = torch.cat([numbers, norm[None].to(numbers)])
    *means, length = (sum_over_processes(together) / run.world.size).tolist()  # the step's one wait for the device
    finite = math.isfinite(length)
    run.loss = means[0]
    run.metrics.append(
        {
            "step": run.step + 1,
            **{name: round(value, 6) for name, value in zip(("loss", *LOSS_NAMES[1:]), means, strict=True)},
            "gradient_norm": round(length, 6),
            **asdict(pace),
            "finite": finite,
        }
    )
    if not finite:
        return None  # its embeddings would spoil those remembered
    targets = None if isinstance(run.teacher, FeatureTeacher) else last.targets
    # a frozen teacher cannot collapse, and may be of another width: then it is the student that is watched
    watched = last.teacher_cls if run.teacher is run.average else last.student_cls
    run.watch.remember(watched, targets)
    if (run.step + 1) % LOOK_EVERY:
        return None
    signs = run.watch.measure(last.student_cls, watched, targets)
    run.metrics[-1] |= signs.as_metrics()
    run.rank = signs.effective_rank
    return signs


def stage_at(config: Config, step: int) -> Config:
    """The configuration that crops follow at a step: that of the run, at the end perhaps in high resolution."""
    if step < config.high_res_start:
        return config
    return replace(config, global_size=config.high_res_global_size, local_size=config.high_res_local_size)


def _open_stream(run: Run, source: ImageSource, stage: Config, say: Say) -> CropStream:
    return CropStream(
        source,
        stage,
        position=run.step * run.config.accumulate,
        rank=run.world.rank,
        world_size=run.world.size,
        device=run.device,
        preprocessing=run.preprocessing,
        say=say,
    )


def _masked_batches(run: Run, stream: CropStream, stage: Config) -> Iterator[MaskedCrops]:
    """The stream's batches with their masks, on the device."""
    side = stage.global_size // run.architecture.patch_size
    for number, crops in enumerate(stream, start=run.step * run.config.accumulate):
        masks = draw_masks(stage, (side, side), number, rank=run.world.rank, world_size=run.world.size)
        if not stage.ibot_weight:
            masks = torch.zeros_like(masks)
        picked = pick_masked(masks, padded=run.device.type == "cuda").to(run.device)
        yield MaskedCrops(crops.global_crops, crops.local_crops, picked)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _report(run: Run, out: Path) -> None:
    if run.world.is_main:
        write_report(out, title=run.name)


def _say_nothing(line: str) -> None:
    """What processes other than the first one say."""


def _bar(total: int, done: int, shown: bool) -> tqdm:
    return tqdm(total=total, initial=done, disable=not shown, unit="step", dynamic_ncols=True)


def _with_best(run: Run, complaint: str, out: Path) -> str:
    best = snapshot_path(out / "snapshots", run.best[1])
    if not run.best[1]:
        return f"{complaint}; no snapshot was made before"
    return f"{complaint}; the best snapshot is kept: {best}"
