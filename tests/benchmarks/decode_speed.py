"""Core time from file to the ViT's pixels, stage by stage, and through the pool.

    python tests/benchmarks/decode_speed.py [--resolution 224] [--workers 2] [--formats]

--formats  in place of stages: one 12-megapixel photo in each format that cameras, phones and editors write

The images are made: smooth colours, detail at every scale and the noise of a sensor, so that the files have a
camera's size. Times are medians of processor time (all threads, this process; the pool's: its processes and this one)
in milliseconds an image; `whole` is what a plain loop does: decode at full scale, then resize.
"""

import argparse
import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer.images.decode import decode
from indexer.images.find import open_regular
from indexer.images.jobs import Decoded, Job, Settings, read_image
from indexer.images.metadata import content_id
from indexer.images.pool import DecodePool
from indexer.images.preprocess import detail_px, preprocess
from indexer.images.worker import pack, send

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("jpg", {"quality": 90}),
    "progressive JPEG": ("jpg", {"quality": 90, "progressive": True}),
    "JPEG without halved colours": ("jpg", {"quality": 90, "subsampling": 0}),
    "HEIC": ("heic", {"quality": 70}),
    "AVIF": ("avif", {"quality": 70}),
    "WebP": ("webp", {"quality": 85}),
    "lossless WebP": ("webp", {"lossless": True, "method": 0}),
    "PNG": ("png", {"compress_level": 3}),
    "TIFF, LZW": ("tif", {"compression": "tiff_lzw"}),
}


def make_photo(path: Path, width: int, height: int, seed: int, quality: int) -> None:
    """A JPEG with the statistics of a photo: 1/f detail, flat parts, sensor noise."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height, width, 3), np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256):
        coarse = rng.integers(0, 256, (max(2, height * cells // width), cells, 3), dtype=np.uint8)
        scene += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / cells**0.7
    scene = (scene - scene.min()) * (255 / (scene.max() - scene.min()))
    scene += rng.standard_normal((height, width, 1), dtype=np.float32) * 4
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Maker 12"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    Image.fromarray(scene.clip(0, 255).astype(np.uint8)).save(path, quality=quality, exif=exif)


def core_ms(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times)


def stages(path: Path, repeats: int, resolution: int) -> dict[str, float]:
    with open_regular(str(path)) as file:
        data = file.read()
    image = decode(data, target_px=detail_px(resolution))
    outcome = read_image(Job(str(path)), Settings(resolution))
    assert isinstance(outcome, Decoded)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    size = (outcome.pixels.shape[1], outcome.pixels.shape[0])

    def read() -> None:
        with open_regular(str(path)) as file:
            file.read(len(data) + 1)

    return {
        "read": core_ms(read, repeats),
        "hash": core_ms(lambda: content_id(data), repeats),
        "(sha256)": core_ms(lambda: hashlib.sha256(data).digest(), repeats),
        "decode": core_ms(lambda: decode(data, target_px=detail_px(resolution)), repeats),
        "resize": core_ms(lambda: preprocess(image.image, "aspect", resolution), repeats),
        "send": core_ms(lambda: send(io.BytesIO(), *pack(outcome)), repeats),
        "all": core_ms(lambda: read_image(Job(str(path)), Settings(resolution)), repeats),
        "(whole decode)": core_ms(lambda: Image.open(io.BytesIO(data)).convert("RGB"), max(3, repeats // 4)),
        "(whole resize)": core_ms(lambda: whole.resize(size, Image.Resampling.BICUBIC), max(3, repeats // 4)),
    }


def through_the_pool(paths: list[Path], rounds: int, workers: int, resolution: int) -> tuple[float, float, float]:
    """Images a second; core ms an image in all processes, and in this one alone."""
    with DecodePool(workers, resolution=resolution) as pool:
        for _ in pool.run([Job(str(path)) for path in paths]):
            pass  # the processes are up and the files are in the system's cache
        jobs = [Job(str(path)) for path in paths] * rounds
        own, began = time.process_time(), time.perf_counter()
        children = sum(cpu_seconds(process._popen.pid) for process in pool._running)
        done = sum(isinstance(outcome, Decoded) for outcome in pool.run(jobs))
        wall, own = time.perf_counter() - began, time.process_time() - own
        children = sum(cpu_seconds(process._popen.pid) for process in pool._running) - children
    assert done == len(jobs)
    return done / wall, 1000 * (children + own) / done, 1000 * own / done


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")  # only Linux tells
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def formats_table(folder: Path, resolution: int, workers: int) -> None:
    """One photo in each format: its size, and from file to the ViT's pixels in one process and through the pool."""
    register_heif_opener()
    source = folder / "photo.jpg"
    make_photo(source, 4000, 3000, 0, 90)
    photo = Image.open(source)
    print("| format | MB | core-ms | images/s through the pool |\n|---|---|---|---|")
    for name, (suffix, settings) in FORMATS.items():
        path = folder / f"as{name.replace(' ', '_')}.{suffix}"
        photo.save(path, **settings)
        ms = core_ms(partial(read_image, Job(str(path)), Settings(resolution)), 5)
        rate, _, _ = through_the_pool([path], 8, workers, resolution)
        print(f"| {name} | {path.stat().st_size / 1e6:.1f} | {ms:.0f} | {rate:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=4, help="images made of each size")
    parser.add_argument("--formats", action="store_true", help="a table of formats in place of stages")
    arguments = parser.parse_args()
    if arguments.formats:
        with tempfile.TemporaryDirectory() as made:
            formats_table(Path(made), arguments.resolution, arguments.workers)
        return
    shapes = {"12 MP": (4000, 3000, 88), "8 MP": (3264, 2448, 88), "2 MP": (1920, 1080, 88), "500 px": (500, 375, 90)}
    with tempfile.TemporaryDirectory() as folder:
        for name, (width, height, quality) in shapes.items():
            paths = [Path(folder, f"{width}_{seed}.jpg") for seed in range(arguments.images)]
            for seed, path in enumerate(paths):
                make_photo(path, width, height, seed, quality)
            megabytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
            print(f"\n{name}: {width}x{height} JPEG of {megabytes:.2f} MB, to {arguments.resolution} px")
            repeats = 9 if width > 1000 else 51
            rows = [stages(path, repeats, arguments.resolution) for path in paths]
            for stage in rows[0]:
                print(f"  {stage:16} {statistics.median(row[stage] for row in rows):8.2f} ms")
            rounds = max(4, 80 * 500 // width // len(paths))
            rate, ms, own_ms = through_the_pool(paths, rounds, arguments.workers, arguments.resolution)
            print(f"  pool of {arguments.workers}: {rate:.0f} images/s, {ms:.2f} core-ms each ({own_ms:.2f} here)")


if __name__ == "__main__":
    main()
