"""How many images a second the network's forward does on this machine, by number format, form and batch size.

    python tests/benchmarks/forward_speed.py
    python tests/benchmarks/forward_speed.py --resolution 448 --batches 1 4 --threads 1
    python tests/benchmarks/forward_speed.py --random dinov2_vitb14 --photos FOLDER --threads 1

Every round runs each configuration once, so that what else the machine does falls on all of them alike; the table
shows medians over the rounds. `of bound` compares with a network that were nothing but its matrix products, at the
rate of one large product in the same round and format. With `--photos` it tells how near each form's features are to
those of float32: the least cosine of CLS and of the mean patch, after the blocks that the descriptor reads.

Rates are of the process's own seconds on the processors, not of the clock's, when `--threads 1` is given: what else the
machine does then matters less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from indexer.backbone.checkpoint import build_model, load_checkpoint
from indexer.backbone.cpu_int8 import is_eight_bit
from indexer.backbone.dtype import best_dtype
from indexer.backbone.layouts import Checkpoint, Preprocessing
from indexer.backbone.vit import ARCHITECTURES, Architecture, VisionTransformer
from indexer.descriptor.config import DescriptorConfig
from indexer.images.decode import decode_file

SHIPPED = Path(__file__).parents[2] / "indexer" / "assets" / "seenit_vits14.safetensors"
FORMS = {  # number format, fused, in 8 bits
    "float32, plain": (torch.float32, False, False),
    "float32, fused": (torch.float32, True, False),
    "bfloat16, plain": (torch.bfloat16, False, False),
    "bfloat16, fused": (torch.bfloat16, True, False),
    "int8": (torch.bfloat16, True, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--random", choices=ARCHITECTURES, help="random weights of this network instead")
    parser.add_argument("--photos", type=Path, help="a folder; its first photos are what cosines are taken on")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--resolution", type=int, default=224, help="pixels, side of a square")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    checkpoint = random_checkpoint(arguments.random) if arguments.random else load_checkpoint(arguments.weights)
    models = {}
    for form in arguments.forms:
        dtype, fused, eight_bit = FORMS[form]
        models[form] = build_model(checkpoint, dtype, fused=fused, eight_bit=eight_bit)
        if eight_bit and not is_eight_bit(models[form]):
            print("8 bits cannot be done well here: bfloat16 stands in the line of int8")
    flop = forward_flop(checkpoint.architecture, arguments.resolution)
    print(f"{checkpoint.name} at {arguments.resolution} px, {flop / 1e9:.1f} GFLOP an image")
    print(f"{arguments.threads} threads; best dtype here: {best_dtype('cpu')}\n")
    print(f"{'':<17}{'batch':>6}{'images/s':>10}{'of bound':>10}")
    images = torch.randn(max(arguments.batches), 3, arguments.resolution, arguments.resolution)
    with torch.inference_mode():
        for batch in arguments.batches:
            rates, bounds = measure(models, images[:batch], arguments.rounds, arguments.threads == 1)
            for form in models:
                dtype = FORMS[form][0]
                shares = (rate * flop / bound for rate, bound in zip(rates[form], bounds[dtype], strict=True))
                median, share = statistics.median(rates[form]), statistics.median(shares)
                print(f"{form:<17}{batch:>6}{median:>10.1f}{share:>10.0%}", flush=True)
            if "int8" in rates and "bfloat16, fused" in rates:
                gain = statistics.median(rates["int8"]) / statistics.median(rates["bfloat16, fused"])
                print(f"int8 beside bfloat16, ratio of medians: {gain:.2f}", flush=True)
        if arguments.photos:
            print_cosines(checkpoint, models, read_photos(arguments.photos, arguments.resolution))


def random_checkpoint(name: str) -> Checkpoint:
    """Random weights; LayerScale of 1 as it is, so that every block counts."""
    torch.manual_seed(0)
    model = VisionTransformer(ARCHITECTURES[name])
    return Checkpoint(f"random {name}", "0" * 32, model.architecture, Preprocessing(), model.state_dict())


def read_photos(folder: Path, resolution: int, count: int = 8) -> Tensor:
    """(B, 3, H, W), with ImageNet's mean and deviation taken out."""
    files = sorted(folder.rglob("*.jpg"))
    side = (resolution, resolution)
    photos = [decode_file(file).image.resize(side) for file in files[:: max(1, len(files) // count)][:count]]
    pixels = torch.stack([torch.tensor(list(photo.tobytes()), dtype=torch.uint8) for photo in photos])
    values = pixels.unflatten(1, (*side, 3)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (Preprocessing().mean, Preprocessing().std))
    return (values - mean) / std


def print_cosines(checkpoint: Checkpoint, models: dict[str, VisionTransformer], images: Tensor) -> None:
    layers = DescriptorConfig().layers_of(checkpoint.architecture.depth)
    exact = build_model(checkpoint, fused=True).intermediate(images, layers)
    for form, model in models.items():
        least = []
        for ours, theirs in zip(model.intermediate(images.to(FORMS[form][0]), layers), exact, strict=True):
            mean = cosine_similarity(ours.patches.float().mean(1), theirs.patches.mean(1), dim=-1)
            least.append(f"{cosine_similarity(ours.cls.float(), theirs.cls, dim=-1).min():.4f} {mean.min():.4f}")
        print(f"{form:<17} least cosine of CLS and mean patch after blocks {layers}: {', '.join(least)}")


def measure(
    models: dict[str, VisionTransformer], images: Tensor, rounds: int, own_time: bool
) -> tuple[dict[str, list[float]], dict[torch.dtype, list[float]]]:
    """Images a second by form, and FLOP a second of one matrix product by format, one value for each round."""
    rates: dict[str, list[float]] = {form: [] for form in models}
    bounds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    size = 2048
    for _ in range(rounds):
        for form, model in models.items():
            inputs = images.to(FORMS[form][0])
            rates[form].append(len(images) / seconds(own_time, model, inputs))
        for dtype, values in bounds.items():
            left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
            values.append(2 * size**3 / seconds(own_time, torch.matmul, left, right))
    return rates, bounds


def seconds(own_time: bool, work: Callable[..., object], *inputs: Tensor) -> float:
    """One run's time, after one that warms up: of the clock, or this thread's own."""
    clock = time.thread_time if own_time else time.perf_counter
    work(*inputs)
    start = clock()
    work(*inputs)
    return clock() - start


def forward_flop(architecture: Architecture, resolution: int) -> float:
    """Two for each multiply-add of all matrix products of one image."""
    patches = (resolution // architecture.patch_size) ** 2
    tokens, dim = 1 + architecture.num_registers + patches, architecture.embed_dim
    feed_forward = (3 if architecture.ffn == "swiglu" else 2) * dim * architecture.hidden_dim
    block = tokens * (4 * dim * dim + feed_forward) + 2 * tokens * tokens * dim
    return 2 * (architecture.depth * block + patches * dim * 3 * architecture.patch_size**2)


if __name__ == "__main__":
    main()
