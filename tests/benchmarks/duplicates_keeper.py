"""How often it is told which of two copies was made from the other, and how often wrongly.

    python tests/benchmarks/duplicates_keeper.py ../shared/data [--photos 24] [--seed 1]

JPEGs of three qualities are saved again, mirrored, enlarged; and larger images are shrunk to JPEGs of these qualities.
In the first kind the JPEG is the original, in the second the other one is. Constants of provenance.py were chosen on 12
photos that are not among those of seed 1 or higher.
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from duplicates_local import document

from retrieval.duplicates.provenance import made_from, read_jpeg

SAME = np.array([[1.0, 0, 0], [0, 1, 0]])
MIRROR = np.array([[-1.0, 0, 1], [0, 1, 0]])
CHOSEN_ON = set(range(0, 120, 5))  # of the sorted photos


def packed(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def resized(image: Image.Image, share: float, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)), how)


def made(quality: int, image: Image.Image, edit: Callable[[Image.Image], Image.Image], again: int) -> list[bytes]:
    """An original of that quality, and what was made from it."""
    original = packed(image, quality)
    return [original, packed(edit(opened(original)), again)]


BICUBIC = Image.Resampling.BICUBIC
EDITS: dict[str, tuple[Callable[[Image.Image], Image.Image], int, np.ndarray]] = {
    "saved again at 98": (lambda image: image, 98, SAME),
    "mirrored, saved at 98": (ImageOps.mirror, 98, MIRROR),
    "enlarged to 200 %, saved at 90": (lambda image: resized(image, 2), 90, SAME),
    "enlarged to 200 % (bicubic), saved at 60": (lambda image: resized(image, 2, BICUBIC), 60, SAME),
    "enlarged to 150 %, saved at 85": (lambda image: resized(image, 1.5), 85, SAME),
    "toned, saved at 90": (
        lambda image: image.point([round(255 * (v / 255) ** 0.7) for v in range(256)] * 3),
        90,
        SAME,
    ),
    "saved again at 60": (lambda image: image, 60, SAME),
    "shrunk to 66 %, saved at 75": (lambda image: resized(image, 0.66), 75, SAME),
    "shrunk to 50 %, saved at 90": (lambda image: resized(image, 0.5), 90, SAME),
    "shrunk to 50 % (bicubic), saved at 75": (lambda image: resized(image, 0.5, BICUBIC), 75, SAME),
    "shrunk to 33 %, saved at 95": (lambda image: resized(image, 0.33), 95, SAME),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    files = [
        path
        for name in ("distractors", "paris")
        for n, path in enumerate(sorted((args.data / name).rglob("*.jpg")))
        if n not in CHOSEN_ON
    ]
    rng = np.random.default_rng(args.seed)
    chosen = rng.permutation(len(files))[: args.photos]
    photos = [Image.open(files[n]).convert("RGB") for n in chosen]
    for subject, images in (("photos", photos), ("pages", [document(rng)[0] for _ in range(len(photos) // 2)])):
        table(subject, images)


def table(subject: str, photos: list[Image.Image]) -> None:
    """What is told of each edit of some images."""
    print(f"{len(photos)} {subject}; in what is left nothing is told\n")
    print("| what was made from an original of quality | " + " | ".join(("75", "90", "95")) + " |\n|---|---|---|---|")
    for name, (edit, again, way) in EDITS.items():
        cells = []
        for quality in (75, 90, 95):
            right = wrong = 0
            for photo in photos:
                original, copy = made(quality, photo, edit, again)
                told = [_made(original, copy, way), _made(copy, original, way)]
                right += told == [True, False]
                wrong += told == [False, True]
            cells.append(f"{right} right, {wrong} wrong")
        print(f"| {name} | {' | '.join(cells)} |")
    print()


def _made(source: bytes, other: bytes, way: np.ndarray) -> bool:
    """Whether the other was made from the source; each way is its own inverse."""
    jpeg, own = read_jpeg(source), read_jpeg(other)
    assert jpeg is not None and own is not None
    return made_from(jpeg, opened(other), way, own.steps)


if __name__ == "__main__":
    main()
