"""How fast a training step is and what it needs: packed against unpacked, recomputed, compiled; and its operations.

    python tests/benchmarks/training_speed.py [--arch vits14] [--batch 4] [--rounds 3] [--device cpu]
        [--precision float32] [--compile] [--threads N] [--set KEY=VALUE ...]

Crops are random numbers of the preset's sizes, prototypes as many as it has: what is measured is the step (teacher,
student, losses, backward, clipping, AdamW, moving average) without the data. Ways take turns, medians are printed;
memory is the peak of each way in a process of its own. The ways of an accelerator (--device cuda, bfloat16, --compile)
are the same code.
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

import torch
from torch.utils.flop_counter import FlopCounterMode

from indexer.vit import VisionTransformer
from trainer.config import Config, make_config
from trainer.masking import draw_masks
from trainer.optim import clip_gradients, follow, make_optimiser, pace_at, set_pace
from trainer.run import DTYPES
from trainer.student_teacher import Batch, Centers, Network, compute_losses, make_network, prepare_blocks


def make_step(config: Config, device: torch.device) -> Callable[[], None]:
    """A function that does one update on ready crops."""
    torch.manual_seed(0)
    architecture = config.architecture()
    student, teacher = (make_network(VisionTransformer(architecture), config).to(device) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False).eval()
    prepare_blocks(student.backbone, recompute=config.checkpoint_blocks, compiled=config.compile)
    prepare_blocks(teacher.backbone, recompute=False, compiled=config.compile)
    optimiser, centers = make_optimiser(student, architecture.depth, config), Centers(1, 1).to(device)
    side = config.global_size // architecture.patch_size
    batch = Batch(
        torch.randn(2 * config.batch_size, 3, config.global_size, config.global_size, device=device),
        torch.randn(config.num_local * config.batch_size, 3, config.local_size, config.local_size, device=device),
        draw_masks(config, (side, side), 0).to(device),
    )
    dtype = DTYPES[config.precision]
    autocast = nullcontext if dtype == torch.float32 else partial(torch.autocast, device.type, dtype)
    pace = pace_at(config, config.steps // 2)

    def step() -> None:
        set_pace(optimiser, pace)
        optimiser.zero_grad(set_to_none=True)
        losses = compute_losses(
            student, teacher, centers, batch, config, temperature=pace.teacher_temperature, autocast=autocast
        )
        losses.total.backward()
        clip_gradients(student.parts(), config.clip)
        optimiser.step()
        follow(teacher, student, pace.momentum)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


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


def count_operations(config: Config) -> float:
    """Multiplications and additions of matrix products and convolutions in one update, forward and backward."""
    step = make_step(replace(config, compile=False), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def count_weights(config: Config) -> int:
    with torch.device("meta"):
        network = Network(VisionTransformer(config.architecture()), torch.nn.Identity(), None)
        whole = make_network(network.backbone, config)
    return sum(parameter.numel() for parameter in whole.parameters())


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
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
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
    device, ways = torch.device(given.device), ways_of(config)
    if given.memory_of:
        print(own_peak(make_step(ways[given.memory_of], device), device))
        return

    # first of all: Linux counts what this process has used as its children's
    peaks = {name: peak_memory(sys.argv[1:], name) for name in ways}
    steps = {name: make_step(way, device) for name, way in ways.items()}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    steps.clear()
    speed = {name: config.batch_size / statistics.median(values) for name, values in times.items()}
    for name, value in speed.items():
        line = {"way": name, "images_per_s": round(value, 3), "over_unpacked": round(value / speed["unpacked"], 3)}
        print(json.dumps(line | {"peak_gb": round(peaks[name] / 1e9, 2)}))
    weights = count_weights(config)
    flop = count_operations(replace(config, batch_size=1, packed=True)) if device.type == "cpu" else float("nan")
    print(json.dumps({"gflop_per_picture": round(flop / 1e9, 1), "weights_m": round(weights / 1e6, 1)}))
    # student's weights and gradients, two moments and the teacher, 4 bytes each
    print(json.dumps({"state_gb": round(5 * 4 * weights / 1e9, 2)}))


if __name__ == "__main__":
    main()
