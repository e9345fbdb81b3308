"""How fast photos are indexed, end to end, against the bare forward and against the loop that a user would write.

    python tests/benchmarks/indexing_speed.py PHOTO_FOLDER [--images 96] [--rounds 3]

Takes photos from the folder, once enlarged to 12 megapixels with sensor noise (JPEG, quality 90) and once at 500
pixels; measures in turns and prints the medians. All of it runs on this machine's CPU.
"""

import argparse
import io
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import build_model, load_checkpoint
from indexer.images.jobs import Decoded, Job
from indexer.images.pool import DecodePool
from indexer.sync.sync import sync_folder
from indexer.sync.writer import BATCH, FIT_SAMPLE


def make_photos(sources: list[Path], folder: Path, count: int, size: tuple[int, int] | None) -> list[Path]:
    """`count` different JPEGs; with a size (width, height) enlarged to it, with noise as a sensor makes it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    made = []
    for n in range(count):
        image = Image.open(sources[n % len(sources)]).convert("RGB")
        if size:
            if image.height > image.width:
                image = image.transpose(Image.Transpose.ROTATE_90)
            pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
            noise = rng.integers(-6, 7, (size[1], size[0], 1), dtype=np.int16)
            image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        else:
            image.thumbnail((500, 500))
            image.putpixel((0, 0), (n % 256, n // 256, 0))
        made.append(folder / f"{n:05}.jpg")
        image.save(made[-1], quality=90)
    return made


def bare_forward(backbone: Backbone, batches: list[np.ndarray], layers: list[int]) -> float:
    """Images per second of the network alone, on ready batches."""
    started = time.perf_counter()
    for batch in batches:
        backbone.intermediate(batch, layers)
    return sum(map(len, batches)) / (time.perf_counter() - started)


def end_to_end(folder: Path, backbone: Backbone) -> tuple[float, float]:
    """Images per second of `sync_folder` into a new index, and the core-seconds of its decoders."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as index:
        summary = sync_folder(folder, Path(index) / "index", backbone=backbone)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert summary.embedded == summary.images > 0, summary
    return summary.images_per_s, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def plain_loop(files: list[Path], model: torch.nn.Module) -> float:
    """Images per second of: open, resize, float32 forward, one by one."""
    started = time.perf_counter()
    with torch.inference_mode():
        for file in files:
            image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB").resize((224, 224))
            pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
            model((pixels - 0.45) / 0.225)
    return len(files) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="seenit_vits14")
    options = parser.parse_args()
    assert options.images < FIT_SAMPLE
    sources = sorted(options.photos.rglob("*.jpg"))
    backbone = Backbone.load(options.backbone)
    from indexer.backbone.cache import backbone_path
    from indexer.descriptor.embedder import Embedder

    layers = Embedder(backbone, 224).layers
    plain = build_model(load_checkpoint(backbone_path(options.backbone)))
    print(f"{os.cpu_count()} cores, {backbone.name} in {backbone.dtype}, medians of {options.rounds} rounds")
    heads = f"{'bare forward':>13} {'end to end':>11} {'share':>6} {'of bound':>8} {'plain loop':>11}"
    print(f"{'photos':<16} {heads} {'gain':>6} {'decoding':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, size in (("12 megapixels", (4000, 3000)), ("500 pixels", None)):
            files = make_photos(sources, Path(scratch) / name.split()[0], options.images, size)
            grids: dict[tuple[int, int], list[np.ndarray]] = {}
            with DecodePool() as pool:
                for outcome in pool.run(Job(str(file)) for file in files):
                    assert isinstance(outcome, Decoded), outcome
                    grids.setdefault(outcome.grid, []).append(outcome.pixels)
            batches = [
                np.stack(pixels[at : at + BATCH]) for pixels in grids.values() for at in range(0, len(pixels), BATCH)
            ]
            bare_forward(backbone, batches[:2], layers)
            figures: dict[str, list[float]] = {"bare": [], "whole": [], "loop": [], "decode": []}
            for _ in range(options.rounds):
                figures["bare"].append(bare_forward(backbone, batches, layers))
                whole, decode_s = end_to_end(files[0].parent, backbone)
                figures["whole"].append(whole)
                figures["decode"].append(decode_s)
                figures["loop"].append(plain_loop(files[:24], plain))
            bare, whole, loop, decode_s = (
                statistics.median(figures[key]) for key in ("bare", "whole", "loop", "decode")
            )
            share, gain, decode_ms = whole / bare, whole / loop, 1000 * decode_s / len(files)
            bound = 1 / (1 / bare + decode_s / len(files) / len(os.sched_getaffinity(0)))
            print(
                f"{name:<16} {bare:>9.1f} /s {whole:>8.1f} /s {share:>6.0%} {whole / bound:>8.0%} {loop:>8.1f} /s"
                f" {gain:>5.1f}x {decode_ms:>6.1f} ms"
            )
    print("share: of the bare forward; bound: forward and decoding on all cores, with nobody ever waiting")
    print("decoding: core-milliseconds of the decoder processes per image, their start included")


if __name__ == "__main__":
    main()
