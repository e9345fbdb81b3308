"""A backbone that sees views of a photo as it sees the photo: distilled from itself, in minutes.

Knowledge distillation (Hinton et al. 2015) of a network into a copy of it. The frozen teacher sees a crop, the student
the same crop in other light and, in a share of the samples, from elsewhere; each of its patches is to be what the
teacher has at that place of the photo. What features know stays what it was, and less of the light is in them. Few
steps do, by a small rate: what is far from the teacher has lost more than light. That the photo itself, by a teacher
that never moves, says what is to stay is our own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from indexer.atomic_file import make_folder
from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import build_model
from indexer.backbone.layouts import EXTRA_PREFIX, Checkpoint, Preprocessing
from indexer.backbone.vit import Architecture, VisionTransformer
from indexer.descriptor.embedder import Embedder
from indexer.errors import SeenitError
from indexer.images.jobs import Cut
from indexer.images.pool import DecodePool
from indexer.messages import Say, say_to_stderr
from indexer.printable import pasted

from .config import Config, ConfigError
from .data.pair_batches import ViewBatch, as_batch, draw_pairs
from .data.relit_views import PHOTO_PX, cut_pair
from .data.sources import ImageSource, cut_square, open_source, square_job
from .data.stream import check_batch
from .device_defaults import with_device_defaults
from .evaluate.labelled import as_backbone
from .model.optim import cosine
from .model.view_loss import FeatureSpace, view_loss
from .run.results import BeforeAndAfter, write_better
from .run.state import check_sizes, choose_device, float32_as_tf32, read_backbone, telling_of_memory
from .run.trial import prepare_trial, split_source
from .train import SAY_EVERY_S, TrainSummary

NUM_STATISTICS = 200  # photos that the space in which patches are compared is fitted on
BETAS = (0.9, 0.98)  # of AdamW; not tuned


def train_views(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    config: Config,
    *,
    from_backbone: str | Path,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    say: Say = say_to_stderr,
) -> TrainSummary:
    """Train a backbone towards views of one photo and write OUT/backbone.safetensors, without the prior that it had.

    images    a folder, tar shards or a list of paths (see `sources.open_source`); a tenth is held out to compare before
              and after, and the better of both is written
    config    `make_config("views")`, perhaps with changes of VIEW_KEYS
    progress  show a bar on stderr
    stop      asked before every step; True ends the run there, and what was learnt so far is compared and written
    say       gets lines on what happens

    Raises SeenitError in one line: no images, fewer than a batch, a size that is no multiple of the patch, a loss that
    is not finite, no space.
    """
    out = Path(out)
    origin = read_backbone(from_backbone)
    _check(config, origin.architecture)
    device = choose_device(config)
    config = with_device_defaults(config, device)
    with telling_of_memory(config, device), float32_as_tf32(device):
        source = open_source(images, exclude_dirs=[out])
        source, held = split_source(source, config.batch_size, config.seed)
        check_batch(len(source), config, 1)
        make_folder(out, "choose another --out")
        comparison = _compare_before(origin, source, held, config, device, say)
        run = _start(origin, source, config, device)
        say(f"learning from views of {len(source):,} photos")
        stopped = _loop(run, source, config, progress, stop, say)
        if not run.step:
            raise SeenitError("stopped before the first step; nothing was written")
        if stopped:
            say(f"stopped after step {run.step}; what was learnt so far is compared and written")
        provenance = {"trained_by": "seenit", "method": "views", "arch": origin.name, "from": origin.hash}
        trained = Checkpoint(
            f"{origin.name}_views",
            "",
            origin.architecture,
            origin.preprocessing,
            run.student.state_dict(),
            provenance=provenance | {"steps": str(run.step), "seed": str(config.seed)},
        )
        if comparison is not None:
            comparison.after = comparison.trial.score(_as_backbone(run.student.requires_grad_(False), origin))
            say(comparison.verdict())
        write_better(out, trained, comparison)
    written, worse = out / "backbone.safetensors", comparison is not None and comparison.got_worse
    if not worse:
        say(
            f"a head for its features is made by: seenit train PHOTOS --preset head --from {pasted(written)} --out HEAD"
        )
    return TrainSummary(
        backbone=written,
        steps=run.step,
        loss=run.loss,
        images_per_s=run.images_per_s,
        unreadable=len(run.broken),
        stopped=stopped,
        before=None if comparison is None else comparison.before,
        after=None if comparison is None else comparison.after,
        kept_original=worse,
    )


@dataclass
class _Run:
    """What a run changes, and what it needs to do so."""

    teacher: VisionTransformer
    student: VisionTransformer
    space: FeatureSpace
    preprocessing: Preprocessing
    device: torch.device
    optimiser: torch.optim.Optimizer
    step: int = 0  # updates done
    loss: float = math.nan
    images_per_s: float = 0.0
    broken: dict[int, str] = field(default_factory=dict)  # why an image of the source cannot be read, by its number


def _check(config: Config, architecture: Architecture) -> None:
    if config.method != "views":
        raise ConfigError("this configuration is not one for views; make it by make_config('views')")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SeenitError("the preset views runs in one process; start it without torchrun")
    if config.workers == 0:
        raise ConfigError("workers is 0; photos are read in processes of their own: give 1 or more, or auto")
    check_sizes(config, architecture)


def _as_backbone(vit: VisionTransformer, origin: Checkpoint) -> Backbone:
    prior = {key.removeprefix(EXTRA_PREFIX): value for key, value in origin.extra.items()} or None
    return replace(as_backbone(vit, preprocessing=origin.preprocessing), prior=prior)


def _compare_before(
    origin: Checkpoint, source: ImageSource, held: ImageSource, config: Config, device: torch.device, say: Say
) -> BeforeAndAfter | None:
    """Score the original on the photos held out; None where none can be read."""
    assert config.workers is not None, "device defaults say how many"
    patch = origin.architecture.patch_size
    trial = prepare_trial(source, held, size_px=PHOTO_PX, patch_size=patch, workers=config.workers, seed=config.seed)
    if trial is None:
        say("before and after cannot be compared: the images held out for that cannot be read")
        return None
    before = trial.score(_as_backbone(build_model(origin, device=device), origin))
    say(f"before: {before.line()}")
    return BeforeAndAfter(origin, trial, before)


def _start(origin: Checkpoint, source: ImageSource, config: Config, device: torch.device) -> _Run:
    """Both networks with the origin's weights, and the space in which they are compared."""
    teacher, student = (build_model(origin, device=device) for _ in range(2))
    learning = _set_learning(student, config.train_blocks)
    matrices, vectors = ([p for p in learning if (p.ndim > 1) == wide] for wide in (True, False))
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.0,
        betas=BETAS,
    )
    embedder = Embedder(_as_backbone(teacher, origin), PHOTO_PX)
    space = _fit_space(embedder, source, config, device)
    return _Run(teacher, student, space, origin.preprocessing, device, optimiser)


def _set_learning(student: VisionTransformer, train_blocks: int) -> list[nn.Parameter]:
    """Let all of the network learn but where patches are, or only its last blocks; the parameters that do."""
    student.requires_grad_(not train_blocks)
    if train_blocks:
        student.blocks[-train_blocks:].requires_grad_(True)
        student.norm.requires_grad_(True)
    student.pos_embed.requires_grad_(False)
    student.mask_token.requires_grad_(False)  # it is never seen
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


def _fit_space(embedder: Embedder, source: ImageSource, config: Config, device: torch.device) -> FeatureSpace:
    """The descriptor's statistics of some photos, drawn towards the backbone's own prior where it has one."""
    chosen = np.random.default_rng(config.seed).permutation(len(source))[:NUM_STATISTICS].tolist()
    jobs = [square_job(str(index), source.places[index]) for index in chosen]
    patch = embedder.backbone.patch_size
    with DecodePool(config.workers, resolution=PHOTO_PX, patch_size=patch, work=cut_square) as pool:
        pixels = {int(answer.path): answer.pixels for answer in pool.run(jobs) if isinstance(answer, Cut)}
    if not pixels:
        raise SeenitError(f"none of {len(chosen)} images can be read; give images that can")
    fitted = embedder.fit_whitening([embedder.pooled([pixels[index]]) for index in sorted(pixels)])  # in one order
    token_mean, token_projection = fitted.token_mean.to(device), fitted.token_projection.to(device)
    means = fitted.mean.unflatten(0, (-1, embedder.backbone.embed_dim)).to(device)
    return FeatureSpace(embedder.config, embedder.backbone.depth, token_mean, token_projection, means)


def _loop(run: _Run, source: ImageSource, config: Config, progress: bool, stop: Callable[[], bool], say: Say) -> bool:
    """Step until the end, or until `stop` says so; whether it did. The next batch is drawn beside each step."""
    started = spoken = time.perf_counter()
    with ExitStack() as cleanup:
        ahead = cleanup.enter_context(ThreadPoolExecutor(1))  # ends after the pool, for it waits for that
        pool = cleanup.enter_context(DecodePool(config.workers, resolution=config.global_size, work=cut_pair))
        bar = cleanup.enter_context(tqdm(total=config.steps, disable=not progress, unit="step", dynamic_ncols=True))
        draw = partial(
            draw_pairs, pool, source, config, dark_below=run.space.config.dark_below, broken=run.broken, say=say
        )
        drawn = ahead.submit(draw, 0)
        while run.step < config.steps:
            if stop():
                return True
            pairs = drawn.result()
            if run.step + 1 < config.steps:
                drawn = ahead.submit(draw, run.step + 1)
            _step(run, as_batch(pairs, run.teacher.architecture.patch_size, run.preprocessing, run.device), config)
            now = time.perf_counter()
            run.images_per_s = run.step * config.batch_size / (now - started)
            bar.update(1)
            bar.set_postfix_str(f"loss {run.loss:.3f}, {run.images_per_s:.1f} images/s")
            if not progress and now - spoken >= SAY_EVERY_S:
                spoken = now
                say(f"step {run.step:,} of {config.steps:,}: loss {run.loss:.3f}, {run.images_per_s:.1f} images/s")
    return False


def _step(run: _Run, batch: ViewBatch, config: Config) -> None:
    """One update of the student."""
    layers = run.space.config.layers_of(run.space.depth)
    patches_of = run.space.config.patch_layers_of(run.space.depth)
    with torch.no_grad():
        targets = run.teacher.intermediate(batch.crops, layers, patches_of=patches_of)
    outputs = run.student.intermediate(batch.views, layers, patches_of=patches_of)
    loss = view_loss(targets, outputs, batch.places, batch.difficulties, run.space)
    run.loss = loss.item()
    if not math.isfinite(run.loss):
        raise SeenitError(
            f"the loss is {run.loss} at step {run.step + 1}, and nothing was written; lower rate, now {config.rate}"
        )
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip:
        nn.utils.clip_grad_norm_(run.student.parameters(), config.clip)
    warmup = round(config.warmup * config.steps)
    for group in run.optimiser.param_groups:
        group["lr"] = cosine(run.step, config.steps, config.scaled_rate, config.rate_end, warmup=warmup)
    run.optimiser.step()
    run.step += 1
