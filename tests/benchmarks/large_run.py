"""A large run for real: image files, `seenit index`, searches, duplicates; rate and memory over time.

    python tests/benchmarks/large_run.py PHOTOS [PHOTOS ...] --images 100000 --work FOLDER --json FILE
    python tests/benchmarks/large_run.py --draw FILE [FILE ...] --svg docs/large-run.svg

Images of 64 to 96 pixels are cut out of photos, with their colours changed; one in a hundred is a copy of the one
before in other quality. The network is a tiny one with random weights and sees 56 x 56 pixels, so that what is measured
is everything but the network: listing, decoding, statistics, books, writes, the graph, searches. Among its vectors all
images are alike to some degree: for `seenit duplicates` take a network that tells images apart, such as seenit_vits14.

`seenit index` runs as a command with one thread. Meanwhile a watcher asks every few seconds how many images the index
holds and how much memory the command's processes have of their own (RssAnon).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageEnhance

EVERY_S = 2.0
PER_FOLDER = 1000
COPY_EVERY = 100
QUERIES = 200
WARM = 5  # searches before those that count
RESOLUTION = 56


@dataclass(frozen=True)
class Moment:
    """What the watcher saw.

    s         since the command began
    images    in the index
    own_gb    memory of the command and its decoders, without mapped files
    """

    s: float
    images: int
    own_gb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--backbone", help="[a tiny one with random weights]")
    parser.add_argument("--no-duplicates", dest="duplicates", action="store_false")
    parser.add_argument("--duplicates-of", type=int, help="only of so many images, in an index of their own [all]")
    parser.add_argument("--draw", type=Path, nargs="+")
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    if args.draw:
        args.svg.write_text(draw([json.loads(file.read_text("utf-8")) for file in args.draw]), "utf-8")
        return
    folder, index = args.work / "images", args.work / "index"
    began = time.perf_counter()
    make_images(args.photos, folder, args.images)
    print(f"{args.images:,} images drawn in {time.perf_counter() - began:,.0f} s", flush=True)
    weights = args.backbone or str(tiny_weights(args.work))
    arguments = ["index", str(folder), "--index", str(index), "--backbone", weights]
    moments, index_s = watched([*arguments, "--resolution", str(RESOLUTION), "--workers", "1"], index)
    again, again_s = watched(["index", "--index", str(index)], index)
    found = {
        "images": args.images,
        "backbone": args.backbone or "tiny",
        "load": round(os.getloadavg()[0], 1),
        "index_s": round(index_s, 1),
        "again_s": round(again_s, 1),
        "bytes": sizes(index),
        "moments": [asdict(moment) for moment in moments],
        "again_own_gb": max((moment.own_gb for moment in again), default=0.0),
        "search": searches(index, folder, args.images),
    }
    args.json.write_text(json.dumps(found, indent=1), "utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "moments"}, indent=1), flush=True)
    if args.duplicates:
        found |= duplicates(args, index, folder, weights)
        args.json.write_text(json.dumps(found, indent=1), "utf-8")
        print({name: value for name, value in found.items() if name.startswith("duplicates")})


def duplicates(args: argparse.Namespace, index: Path, folder: Path, weights: str) -> dict[str, float]:
    """Seconds, memory, groups, and the share of the copies that were drawn which are in a group."""
    count = args.images
    if args.duplicates_of is not None and args.duplicates_of < count:
        count = args.duplicates_of // PER_FOLDER * PER_FOLDER
        index = args.work / "few"
        folders = [str(path_of(folder, n).parent) for n in range(0, count, PER_FOLDER)]
        usual = ["--backbone", weights, "--resolution", str(RESOLUTION), "--workers", "1"]
        watched(["index", *folders, "--index", str(index), *usual], index)
    told = args.work / "duplicates.json"
    with told.open("wb") as output:
        seen, took = watched(["duplicates", str(index), "--json"], index, output)
    groups = json.loads(told.read_text("utf-8"))["groups"]
    numbers = [{int(Path(one["path"]).stem) for one in (group["keeper"], *group["members"])} for group in groups]
    copies = range(COPY_EVERY, count, COPY_EVERY)
    together = {n for group in numbers for n in group if n - 1 in group}
    return {
        "duplicates_of": count,
        "duplicates_s": round(took, 1),
        "duplicates_own_gb": max((moment.own_gb for moment in seen), default=0.0),
        "duplicates_groups": len(groups),
        "duplicates_of_drawn": sum(n in together for n in copies) / max(1, len(copies)),
    }


def make_images(photos: Sequence[Path], folder: Path, count: int) -> None:
    """Draw images into sub-folders of PER_FOLDER; those that are there are kept."""
    files = sorted(file for one in photos for file in one.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"no photos in {', '.join(map(str, photos))}")
    per_photo = -(-count // len(files))
    number = 0
    for order, file in enumerate(files):
        missing = [n for n in range(number, min(number + per_photo, count)) if not path_of(folder, n).is_file()]
        number += per_photo
        if missing:
            with Image.open(file) as opened:
                opened.draft("RGB", (320, 320))
                photo = opened.convert("RGB")
            photo.thumbnail((320, 320))
            for n in missing:
                rng = np.random.default_rng([order, n])
                path_of(folder, n).parent.mkdir(parents=True, exist_ok=True)
                crop(photo, rng).save(path_of(folder, n), quality=int(rng.integers(60, 95)))
    for n in range(COPY_EVERY, count, COPY_EVERY):
        Image.open(path_of(folder, n - 1)).save(path_of(folder, n), quality=40)


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number // PER_FOLDER:04d}" / f"{number:07d}.jpg"


def crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of a photo, from a third of its shorter side on, in changed colours, 64 to 96 pixels wide and high."""
    side = int(min(photo.size) * rng.uniform(0.33, 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    part = photo.crop((left, top, left + side, top + side)).resize(tuple(rng.integers(64, 97, 2).tolist()))
    for kind in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        part = kind(part).enhance(rng.uniform(0.6, 1.5))
    return part


def tiny_weights(work: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import save_tiny

    path = work / "tiny.safetensors"
    return path if path.is_file() else save_tiny(path)


def watched(
    arguments: Sequence[str], index: Path, output: BinaryIO | int = subprocess.DEVNULL
) -> tuple[list[Moment], float]:
    """Run a command of seenit with one thread; what was seen meanwhile, and its seconds. Ends where it fails.

    output  where what it prints goes
    """
    from indexer.errors import SeenitError
    from indexer.store.open import open_store

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import cli; cli.main()", *arguments, "-q"]
    moments: list[Moment] = []
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=output) as process:
        while process.poll() is None:
            time.sleep(EVERY_S)
            images = 0
            try:
                store = open_store(index)
                images = store.count()
                store.close()
            except SeenitError:  # it is not there yet
                pass
            moments.append(Moment(round(time.perf_counter() - began, 1), images, own_gb(process.pid)))
    if process.returncode not in (0, 3):
        sys.exit(f"seenit {' '.join(arguments)} ended with {process.returncode}")
    return moments, time.perf_counter() - began


def own_gb(pid: int) -> float:
    """RssAnon of a process and its children, which decode."""
    total = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1])
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it ended
            continue
    return round(total / 1e6, 3)


def sizes(index: Path) -> dict[str, int]:
    from indexer.store.open import open_store

    store = open_store(index)
    parts = store.size().parts
    store.close()
    return dict(parts)


def searches(index: Path, folder: Path, count: int) -> dict[str, Any]:
    """Milliseconds of searches with drawn images whose border is cut off, by the clock and of the processor, and how
    often the image or its copy comes first."""
    from retrieval import Searcher

    rng = np.random.default_rng(7)
    took, used, first = [], [], 0
    with Searcher.open(index) as searcher:
        for n in rng.choice(count, QUERIES + WARM, replace=False).tolist():
            query = Image.open(path_of(folder, n)).convert("RGB")
            width, height = query.size
            query = query.crop((4, 4, width - 4, height - 4))
            began, processor = time.perf_counter(), time.process_time()
            results = searcher.search(query)
            took.append(1000 * (time.perf_counter() - began))
            used.append(1000 * (time.process_time() - processor))
            first += bool(results) and abs(int(Path(results[0].path).stem) - n) <= 1
    found = {"first": first / (QUERIES + WARM)}
    for name, times in (("", took[WARM:]), ("processor_", used[WARM:])):
        found[f"{name}p50_ms"] = statistics.median(times)
        found[f"{name}p95_ms"] = statistics.quantiles(times, n=20)[-1]
    return found


# ---- the plot ----

WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 210, 50, 24, 20
COLOURS = ("#2a6fb0", "#c05020", "#4a8f3c", "#7a4fa0")


def draw(runs: Sequence[dict[str, Any]]) -> str:
    """Images a second, and memory, over the images that the index holds; a line for each run."""
    panels = (
        panel("images a second, over images in the index", [(name(run), rates(run)) for run in runs], 0),
        panel("memory of its own, GB", [(name(run), memory(run)) for run in runs], 1),
    )
    width, height = GAP + len(panels) * (WIDTH + GAP), HEIGHT + 2 * GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    return f'{head} font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>{"".join(panels)}</svg>\n'


def name(run: dict[str, Any]) -> str:
    return f"{run['images']:,} images"


def rates(run: dict[str, Any]) -> list[tuple[float, float]]:
    """Over ten parts of the run in which the index grew."""
    seen = [one for one in run["moments"] if one["images"] > 0]
    growing = [one for one in seen if one["images"] < seen[-1]["images"]] + [seen[-1]]
    parts = [growing[at] for at in np.linspace(0, len(growing) - 1, min(21, len(growing))).astype(int)]
    pairs = pairwise(parts)
    return [(b["images"], (b["images"] - a["images"]) / (b["s"] - a["s"])) for a, b in pairs if b["s"] > a["s"]]


def memory(run: dict[str, Any]) -> list[tuple[float, float]]:
    return [(one["images"], one["own_gb"]) for one in run["moments"]]


def panel(title: str, lines: Sequence[tuple[str, list[tuple[float, float]]]], number: int) -> str:
    across = max(x for _, points in lines for x, _ in points)
    most = 1.1 * max(y for _, points in lines for _, y in points)
    base = HEIGHT - TOP
    parts = [f'<text x="{LEFT}" y="12">{title}</text>']
    parts.append(f'<path d="M{LEFT} {TOP}V{base}H{WIDTH}" fill="none" stroke="#888"/>')
    for share in (0, 0.5, 1):
        x, y = LEFT + share * (WIDTH - LEFT), base - share * (base - TOP)
        parts.append(f'<text x="{x}" y="{base + 16}" text-anchor="middle">{share * across:,.0f}</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{share * most:.3g}</text>')
    for order, (label, points) in enumerate(lines):
        at = " ".join(
            f"{LEFT + x / across * (WIDTH - LEFT):.1f},{base - y / most * (base - TOP):.1f}" for x, y in points
        )
        colour = COLOURS[order % len(COLOURS)]
        parts.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH}" y="{TOP + 12 * order}" text-anchor="end" fill="{colour}">{label}</text>')
    return f'<g transform="translate({GAP + number * (WIDTH + GAP)},{GAP})">{"".join(parts)}</g>'


if __name__ == "__main__":
    main()
