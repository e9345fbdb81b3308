"""How many images a second the network's forward does on this machine, by number format, form and batch size.

    python tests/benchmarks/forward_speed.py
    python tests/benchmarks/forward_speed.py --resolution 448 --batches 1 4 --threads 1

Every round runs each configuration once, so that what else the machine does falls on all of them alike; the table
shows medians over the rounds. `of bound` compares with a network that were nothing but its matrix products, at the
rate of one large product in the same round and format. What bfloat16 costs in cosine, shipped_weights.py tells.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from indexer.backbone.checkpoint import build_model, load_checkpoint
from indexer.backbone.dtype import best_dtype
from indexer.backbone.vit import Architecture, VisionTransformer

SHIPPED = Path(__file__).parents[2] / "indexer" / "assets" / "seenit_vits14.safetensors"
FORMS = {
    "float32, plain": (torch.float32, False),
    "float32, fused": (torch.float32, True),
    "bfloat16, plain": (torch.bfloat16, False),
    "bfloat16, fused": (torch.bfloat16, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--resolution", type=int, default=224, help="pixels, side of a square")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    checkpoint = load_checkpoint(arguments.weights)
    models = {form: build_model(checkpoint, dtype, fused=fused) for form, (dtype, fused) in FORMS.items()}
    flop = forward_flop(checkpoint.architecture, arguments.resolution)
    print(f"{checkpoint.name} at {arguments.resolution} px, {flop / 1e9:.1f} GFLOP an image")
    print(f"{arguments.threads} threads; best dtype here: {best_dtype('cpu')}\n")
    print(f"{'':<17}{'batch':>6}{'images/s':>10}{'of bound':>10}")
    images = torch.randn(max(arguments.batches), 3, arguments.resolution, arguments.resolution)
    with torch.inference_mode():
        for batch in arguments.batches:
            rates, bounds = measure(models, images[:batch], arguments.rounds)
            for form, (dtype, _) in FORMS.items():
                shares = (rate * flop / bound for rate, bound in zip(rates[form], bounds[dtype], strict=True))
                median, share = statistics.median(rates[form]), statistics.median(shares)
                print(f"{form:<17}{batch:>6}{median:>10.1f}{share:>10.0%}", flush=True)


def measure(
    models: dict[str, VisionTransformer], images: Tensor, rounds: int
) -> tuple[dict[str, list[float]], dict[torch.dtype, list[float]]]:
    """Images a second by form, and FLOP a second of one matrix product by format, one value for each round."""
    rates: dict[str, list[float]] = {form: [] for form in models}
    bounds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    size = 2048
    for _ in range(rounds):
        for form, model in models.items():
            inputs = images.to(FORMS[form][0])
            rates[form].append(len(images) / seconds(model, inputs))
        for dtype, values in bounds.items():
            left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
            values.append(2 * size**3 / seconds(torch.matmul, left, right))
    return rates, bounds


def seconds(work: Callable[..., object], *inputs: Tensor) -> float:
    """One run's time, after one that warms up."""
    work(*inputs)
    start = time.perf_counter()
    work(*inputs)
    return time.perf_counter() - start


def forward_flop(architecture: Architecture, resolution: int) -> float:
    """Two for each multiply-add of all matrix products of one image."""
    patches = (resolution // architecture.patch_size) ** 2
    tokens, dim = 1 + architecture.num_registers + patches, architecture.embed_dim
    feed_forward = (3 if architecture.ffn == "swiglu" else 2) * dim * architecture.hidden_dim
    block = tokens * (4 * dim * dim + feed_forward) + 2 * tokens * tokens * dim
    return 2 * (architecture.depth * block + patches * dim * 3 * architecture.patch_size**2)


if __name__ == "__main__":
    main()
