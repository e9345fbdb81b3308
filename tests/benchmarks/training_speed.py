"""How fast a training step is, packed against unpacked, recomputed, compiled; and the two engines that cut crops.

    python tests/benchmarks/training_speed.py [--arch vits14] [--batch 2] [--rounds 3] [--device cpu]
        [--precision float32] [--compile] [--threads N] [--engines] [--set KEY=VALUE ...]

Crops are random numbers of the preset's sizes, prototypes as many as it has: what is measured is the step (teacher,
student, losses, backward, clipping, AdamW, moving average) without the data. Ways take turns, medians are printed;
memory is the peak of each way in a process of its own. The ways of an accelerator (--device cuda, bfloat16, --compile)
are the same code. --engines measures on one core how many images a second are cropped and distorted, decoding left
out, and nothing else. What a step must compute and hold is in training_operations.py. On two cores the defaults take
about two minutes, --compile another one, --engines half a minute.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from indexer.backbone.vit import VisionTransformer
from trainer.config import Config, make_config
from trainer.data.augment import cut_with_pillow, draw_views
from trainer.data.augment_torch import cut_with_torch
from trainer.data.masking import draw_masks, pick_masked
from trainer.data.stream import augmentation_of
from trainer.device_defaults import with_device_defaults
from trainer.model.optim import clip_gradients, make_optimiser, pace_at, set_pace, update_ema, update_if_finite
from trainer.model.student_teacher import Centers, MaskedCrops, compute_losses, make_network, prepare_blocks
from trainer.run.state import DTYPES

ENGINE_IMAGES = 16


class TrainingStep:
    """One update as `trainer.train` does it, on ready crops of random numbers.

    config  without `auto`, see `with_device_defaults`
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        architecture = config.architecture()
        self.student, self.teacher = (
            make_network(VisionTransformer(architecture), config).to(device) for _ in range(2)
        )
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False).eval()
        for network, recompute in ((self.student, config.checkpoint_blocks), (self.teacher, False)):
            half = config.half_residual
            prepare_blocks(network.backbone, recompute=recompute, compiled=config.compile, half_residual=half)
        self.optimiser = make_optimiser(self.student, architecture.depth, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.centers = Centers(config.prototypes, config.ibot_prototypes).to(device)
        side = config.global_size // architecture.patch_size
        masks = pick_masked(draw_masks(config, (side, side), 0), padded=device.type == "cuda")
        self.batch = MaskedCrops(
            torch.randn(2 * config.batch_size, 3, config.global_size, config.global_size, device=device),
            torch.randn(config.num_local * config.batch_size, 3, config.local_size, config.local_size, device=device),
            masks.to(device),
        )
        dtype = DTYPES[config.precision]
        self.autocast = nullcontext if dtype == torch.float32 else partial(torch.autocast, device.type, dtype)

    def __call__(self, mark: Callable[[str], None] = lambda part: None) -> None:
        """mark  called with a part's name after it"""
        config = self.config
        pace = pace_at(config, config.steps // 2)
        set_pace(self.optimiser, pace)
        self.optimiser.zero_grad(set_to_none=True)
        losses = compute_losses(
            self.student,
            self.teacher,
            self.centers,
            self.batch,
            config,
            temperature=pace.teacher_temperature,
            autocast=self.autocast,
        )
        mark("forward of both, losses")
        self.scaler.scale(losses.total).backward()
        mark("backward")
        self.scaler.unscale_(self.optimiser)
        norm = clip_gradients(self.student.parts(), config.clip)
        mark("clip")
        if self.scaler.is_enabled():
            self.scaler.step(self.optimiser)
        else:
            update_if_finite(self.optimiser, norm)
        self.scaler.update()
        mark("AdamW")
        update_ema(self.teacher, self.student, pace.momentum)
        mark("moving average")
        torch.stack([losses.total.detach(), losses.dino, losses.ibot, losses.koleo, norm]).tolist()


def ways_of(config: Config) -> dict[str, Config]:
    """What is compared, by name."""
    ways = {
        "unpacked": replace(config, packed=False, compile=False),
        "packed": replace(config, packed=True, compile=False),
        "packed, blocks recomputed": replace(config, packed=True, compile=False, checkpoint_blocks=True),
    }
    if config.compile:
        ways["packed, compiled"] = config
    return ways


def engines_of(config: Config, count: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Both engines on the same decoded images of 375 x 500 pixels and the same draws, all crops of each."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 15, 20, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(blocks).resize((500, 375))) for blocks in coarse]
    augmentation = augmentation_of(config)
    views = np.stack([draw_views(rng, 375, 500, augmentation) for _ in images])  # (count, V)
    torch.set_num_threads(1)

    def with_pillow() -> None:
        for image, table in zip(images, views, strict=True):
            cut_with_pillow(image, table, augmentation.crops)

    def with_torch() -> None:
        cut_with_torch(images, views[:, :2], config.global_size, device)
        cut_with_torch(images, views[:, 2:], config.local_size, device)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {"pillow": with_pillow, "torch": with_torch}


def peak_memory(arguments: list[str], way: str) -> float:
    """Bytes at the peak of three steps in a process of its own; NaN where this system does not tell."""
    told = subprocess.run(
        [sys.executable, __file__, *arguments, "--memory-of", way], capture_output=True, text=True, check=True
    )
    return float(told.stdout.strip().splitlines()[-1])


def own_peak(step: Callable[[], None], device: torch.device) -> float:
    for _ in range(3):
        step()
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vits14")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    config = make_config(
        given.arch,
        changes=[
            f"batch_size={given.batch}",
            f"precision={given.precision}",
            f"compile={given.compile}",
            "drop_path=0",
            *given.set,
        ],
    )
    device = torch.device(given.device)
    ways = ways_of(with_device_defaults(config, device))
    if given.memory_of:
        print(own_peak(TrainingStep(ways[given.memory_of], device), device))
        return

    if given.engines:
        report(medians(engines_of(config, ENGINE_IMAGES, torch.device(given.device)), given.rounds), ENGINE_IMAGES)
        return
    # first of all: Linux counts what this process has used as its children's
    peaks = {name: peak_memory(sys.argv[1:], name) for name in ways}
    seconds = medians({name: TrainingStep(way, device) for name, way in ways.items()}, given.rounds)
    report(seconds, config.batch_size, peaks)


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each way; they take turns, after one round that does not count."""
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def report(seconds: dict[str, float], images: int, peaks: dict[str, float] | None = None) -> None:
    """One line of JSON a way; the others are held against the first."""
    first = next(iter(seconds))
    for name, value in seconds.items():
        line: dict[str, object] = {"way": name, "images_per_s": round(images / value, 3)}
        line[f"over {first}"] = round(seconds[first] / value, 3)
        print(json.dumps(line | ({"peak_gb": round(peaks[name] / 1e9, 2)} if peaks else {})))


if __name__ == "__main__":
    main()
