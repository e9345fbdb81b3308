"""Readers in processes of their own beside one indexer: errors, wrong answers, and what they cost the indexer.

    python tests/benchmarks/readers_beside_writer.py PHOTO_FOLDER

The photos are indexed. Then crops of them are indexed into copies of that index, each for --seconds: alone, beside
readers that ask about once in --pause seconds each, and beside readers that ask without a pause. A reader takes one of
the first images, reads its vector and searches with it, all in one snapshot: the image itself must come first, with all
its files and patches, and the index may never be smaller than at the start. On two cores 32 readers without a pause
take the indexer's time whatever the store does; their line tells whether answers stay right.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer.store.open import open_store
from indexer.store.protocol import Store
from indexer.sync.sync import sync_folder

CROP = 224  # pixels
NEW = 4000  # crops, more than are embedded in the time
GRACE_S = 60.0  # for readers to begin and to end


def prepare(photos: Path, scratch: Path, new: int) -> int:
    """Index the photos at `scratch/base`, lay crops out in `scratch/new`; how many images are in the index."""
    sources = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not sources:
        raise SystemExit(f"no JPEG files in {photos}")
    (scratch / "photos").mkdir()
    (scratch / "new").mkdir()
    for n, source in enumerate(sources):
        shutil.copy2(source, scratch / "photos" / f"{n}.jpg")
    summary = sync_folder(scratch / "photos", scratch / "base", backbone="seenit_vits14")
    rng = np.random.default_rng(0)
    for n in range(new):
        with Image.open(sources[n % len(sources)]) as image:
            image.draft("RGB", (640, 640))
            width, height = image.size
            share = rng.uniform(0.3, 0.7)
            left, top = rng.uniform(0, 1 - share, 2)
            box = (left * width, top * height, (left + share) * width, (top + share) * height)
            image.convert("RGB").resize((CROP, CROP), box=box).save(scratch / "new" / f"{n:05}.jpg")
    return summary.images


def index_for(scratch: Path, seconds: float) -> tuple[float, float]:
    """Images a second that one indexer embeds into a copy of the first index, and for how long it did."""
    started = time.monotonic()
    summary = sync_folder(scratch / "new", scratch / "index", stop=lambda: time.monotonic() - started > seconds)
    took = time.monotonic() - started
    if not summary.interrupted:
        raise SystemExit("all crops were indexed before the time was over; give more with --new")
    return summary.embedded / took, took


def ask(store: Store, id: str, least: int) -> str:
    """What is wrong with the answer for one image; empty where nothing is."""
    with store.snapshot():
        (record,) = store.retrieve([id], vectors=True)
        assert record.global_vector is not None
        (hits,) = store.search(record.global_vector[None], 10)
        if not hits or hits[0].id != id or abs(hits[0].score - 1) > 0.01:
            return f"{id} was not found first: {hits[:2]}"
        if len(hits) != min(10, store.count()) or store.count() < least:
            return f"{len(hits)} hits among {store.count()} images of {least} at least"
        if store.patches([id]) != {id: record.patches} or not record.files:
            return f"{id} has lost its patches or its files"
    return ""


def read(args: argparse.Namespace) -> None:
    """One reader; prints what it saw as a line of JSON."""
    ids = json.loads((args.scratch / "ids.json").read_text())
    rng = random.Random(args.reader)
    until = time.monotonic() + args.seconds
    times: list[float] = []
    wrong: list[str] = []
    errors: list[str] = []
    store = None
    while time.monotonic() < until:
        try:
            store = store or open_store(args.scratch / "index")
            started = time.monotonic()
            if complaint := ask(store, rng.choice(ids), len(ids)):
                wrong.append(complaint)
            times.append(time.monotonic() - started)
        except Exception as error:  # whatever it is, it is what this counts
            errors.append(f"{type(error).__name__}: {error}")
        if args.pause:
            time.sleep(args.pause * rng.uniform(0.5, 1.5))
    if store is not None:
        store.close()
    print(json.dumps({"times": times, "wrong": wrong, "errors": errors}))


def beside(args: argparse.Namespace, scratch: Path, pause: float) -> tuple[float, list[dict[str, list[Any]]]]:
    """The indexer's rate beside readers, and what each of these saw."""
    # they begin one after the other before the indexer does, so that their start is not measured, and end after it
    seconds = args.seconds + GRACE_S / 2
    given = ["--step", "read", "--scratch", scratch, "--seconds", seconds, "--pause", pause]
    readers = [
        subprocess.Popen(
            [sys.executable, __file__, str(args.photos), *map(str, given), "--reader", str(n)], stdout=subprocess.PIPE
        )
        for n in range(args.readers)
    ]
    time.sleep(GRACE_S / 4)
    rate, _ = index_for(scratch, args.seconds)
    saw = []
    for reader in readers:
        out, _ = reader.communicate(timeout=seconds + GRACE_S)
        saw.append(json.loads(out) if reader.returncode == 0 else {"times": [], "wrong": [], "errors": ["it ended"]})
    return rate, saw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="of each of the three runs")
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between a reader's questions, on average")
    parser.add_argument("--new", type=int, default=NEW, help="crops that there are to index")
    parser.add_argument("--scratch", type=Path, help="what an earlier run prepared; a temporary folder by default")
    parser.add_argument("--step", choices=["read", "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--reader", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "read":
        read(args)
        return
    scratch = args.scratch or Path(tempfile.mkdtemp(prefix="readers_beside_writer."))
    try:
        if not (scratch / "ids.json").exists():
            scratch.mkdir(exist_ok=True)
            prepare(args.photos, scratch, args.new)
            with_base = open_store(scratch / "base")
            (scratch / "ids.json").write_text(json.dumps([one.id for one in with_base.list_files()]))
            with_base.close()
        if args.step == "prepare":
            return
        print(f"{args.readers} readers beside one indexer, {args.seconds:.0f} s each")
        print("| readers | indexer, images/s | of its rate alone | answers | ms, median | p95 | errors | wrong |")
        print("|---|---|---|---|---|---|---|---|")
        alone = 0.0
        for name, pause in (("none", None), (f"ask every {args.pause:g} s", args.pause), ("ask without a pause", 0.0)):
            shutil.rmtree(scratch / "index", ignore_errors=True)
            shutil.copytree(scratch / "base", scratch / "index")
            if pause is None:
                alone, _ = index_for(scratch, args.seconds)
                print(f"| {name} | {alone:.1f} | 100 % | | | | | |", flush=True)
                continue
            rate, saw = beside(args, scratch, pause)
            times = 1e3 * np.array([took for one in saw for took in one["times"]] or [np.nan])
            errors, wrong = ([text for one in saw for text in one[kind]] for kind in ("errors", "wrong"))
            print(
                f"| {name} | {rate:.1f} | {rate / alone:.0%} | {len(times):,} | {np.median(times):.1f} |"
                f" {np.percentile(times, 95):.1f} | {len(errors)} | {len(wrong)} |",
                flush=True,
            )
            for text in dict.fromkeys(errors + wrong):
                print(f"  {text}", file=sys.stderr)
    finally:
        if args.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
