"""How long looking for duplicates takes in an index that is there, stage by stage, and its peak memory.

    python tests/benchmarks/duplicates_speed.py --records 10000 100000 [--every 50 --copies 1] [--work FOLDER]

Images are drawn noise of several scales at 320 x 240. Of each `--every` of them the last `--copies` are copies of the
one before (half the size or a little more, mirrored every other time): two in a hundred by default, half of all with
`--every 2`, many of one image with `--every 500 --copies 499`. Vectors and patches are made up: kinds of 50 images with
cosines around .3, so that every image has about as many candidates as there can be. Decoding photos of a camera takes
some milliseconds more for each image; see decode_speed.py. With --work the indexes are kept for another run. On two
cores 10,000 take two minutes to search and one to make; 100,000 take fifteen and ten.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from rerank_speed import GRID, PATCHES, unit
from store_speed import PeakMemory

from indexer.descriptor.config import DESCRIPTOR_CONFIGS
from indexer.descriptor.patch_codec import PatchTokens, pack_patches
from indexer.images.metadata import Metadata, content_id
from indexer.index.manifest import Manifest, write_manifest
from indexer.store.open import open_store
from indexer.store.protocol import Record, Schema, StoredFile
from retrieval.duplicates import find_duplicates

DIM = 384
KIND = 50  # images of one kind
CHUNK = 1000


@dataclass(frozen=True)
class Copied:
    """Of each `every` images the last `copies` are copies of the one before them."""

    every: int
    copies: int

    def number(self, place: int) -> int:
        """Of a copy from 0; below 0 for what is none, -1 for what copies are of."""
        return place % self.every - (self.every - self.copies)

    def are_copies(self, one: int, other: int) -> bool:
        return one // self.every == other // self.every and min(self.number(one), self.number(other)) >= -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000])
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    copied = Copied(args.every, args.copies)
    if not 0 < copied.copies < copied.every:
        parser.error("--copies: at least one, and fewer than --every")
    if args.search is not None:
        search(args.search, copied)
        return
    print("| images | s in all | of them | copies found | wrong | peak memory, MB |\n|---|---|---|---|---|---|")
    for count in args.records:
        with tempfile.TemporaryDirectory() as own:
            folder = (args.work or Path(own)) / f"{count}-{copied.every}-{copied.copies}"
            if not (folder / "made").exists():
                make(folder, count, copied)
            # a process of its own, so that the memory is the search's
            answer = subprocess.run(
                [
                    *(sys.executable, __file__, "--search", str(folder)),
                    *("--every", str(copied.every), "--copies", str(copied.copies)),
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            print(tell(count, copied, json.loads(answer.stdout)), flush=True)


def tell(count: int, copied: Copied, result: dict[str, float | dict[str, float]]) -> str:
    stages = result["stages"]
    assert isinstance(stages, dict)
    told = ", ".join(f"{name} {seconds:.0f}" for name, seconds in stages.items() if seconds >= 0.5)
    wanted = count // copied.every * copied.copies
    return (
        f"| {count:,} | {result['seconds']:.0f} | {told} | {result['found']} of {wanted} | {result['wrong']} |"
        f" {result['anonymous']:.0f} and {result['file_backed']:.0f} of files |"
    )


def search(folder: Path, copied: Copied) -> None:
    """Prints the figures as JSON."""
    started: dict[str, float] = {}

    def note(what: str, done: int, total: int) -> None:
        started.setdefault(what, time.monotonic())

    begun = time.monotonic()
    with PeakMemory() as memory:
        found = find_duplicates(folder / "index", progress=note)
    ended = time.monotonic()
    ends = [*list(started.values())[1:], ended]
    stages = {what: end - start for (what, start), end in zip(started.items(), ends, strict=True)}
    numbers = [(number(group.file.path), number(file.path)) for group in found.groups for file in group.spare]
    right = sum(copied.are_copies(one, other) for one, other in numbers)
    print(
        json.dumps(
            {
                "seconds": ended - begun,
                "stages": stages,
                "found": right,
                "wrong": len(numbers) - right,
                "anonymous": memory.anonymous,
                "file_backed": memory.file_backed,
            }
        )
    )


def number(path: str) -> int:
    return int(Path(path).stem)


def make(folder: Path, count: int, copied: Copied) -> None:
    """Images in folder/photos, their index in folder/index."""
    store = open_store(folder / "index", write=True)
    roots = {"0": str(folder / "photos")}
    descriptor_config = DESCRIPTOR_CONFIGS["balanced"]
    write_manifest(store, Manifest("none", "0" * 32, 224, descriptor_config.settings, "synthetic", count, roots))
    store.ensure(Schema(DIM))
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    with Pool() as pool:
        chunk = copied.every * -(-CHUNK // copied.every)  # copies lie in the chunk of what they are of
        starts = ((folder / "photos", start, min(chunk, count - start), copied) for start in range(0, count, chunk))
        for records in pool.imap(make_records, starts):
            store.upsert(records)
    store.optimize()
    store.close()
    (folder / "made").touch()


def make_records(job: tuple[Path, int, int, Copied]) -> list[Record]:
    photos, start, count, copied = job
    rng = np.random.default_rng(start)
    descriptor_config = DESCRIPTOR_CONFIGS["balanced"]
    records: list[Record] = []
    original, vector_of, tokens_of = Image.new("RGB", (1, 1)), np.zeros(DIM, np.float32), np.zeros((0, 0), np.float32)
    positions = np.zeros((0, 2), np.uint8)
    for place in range(start, start + count):
        number = copied.number(place)
        if number >= 0:
            image = ImageOps.mirror(original) if (place // copied.every + number) % 2 == 0 else original
            image = image.resize((160 + 8 * (number % 20), 120 + 6 * (number % 20)))
            vector = normal(vector_of + 0.3 * unit(rng, DIM))
            tokens = normal(tokens_of + 0.3 * unit(rng, *tokens_of.shape))
        else:
            image = original = drawn(rng)
            vector = vector_of = normal(0.65 * centre(place // KIND) + unit(rng, DIM))
            tokens = tokens_of = unit(rng, min(descriptor_config.num_tokens, PATCHES), descriptor_config.token_dim)
            cells = np.sort(rng.choice(PATCHES, len(tokens), replace=False))
            positions = np.stack(np.divmod(cells, GRID[1]), axis=1).astype(np.uint8)
        path = photos / f"{place:07d}.jpg"
        image.save(path, quality=85 - max(number, 0) // 20 % 40)
        status, data = path.stat(), path.read_bytes()
        records.append(
            Record(
                content_id(data),
                (StoredFile(f"0/{path.name}", status.st_size, status.st_mtime_ns),),
                Metadata(image.width, image.height, "JPEG"),
                whitening_id="synthetic",
                global_vector=vector.astype(np.float32),
                patches=pack_patches(
                    PatchTokens(tokens.astype(np.float32), positions, GRID), descriptor_config.token_bits
                ),
            )
        )
    return records


def centre(kind: int) -> np.ndarray:
    return unit(np.random.default_rng([7, kind]), DIM)


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def drawn(rng: np.random.Generator) -> Image.Image:
    layers = np.zeros((240, 320), np.float32)
    for cells, strength in ((4, 110), (12, 90), (40, 70)):
        noise = Image.fromarray(rng.random((cells, cells), np.float32)).resize((320, 240), Image.Resampling.BICUBIC)
        layers += strength * np.asarray(noise)
    return Image.fromarray(layers.clip(0, 255).astype(np.uint8)).convert("RGB")


if __name__ == "__main__":
    main()
