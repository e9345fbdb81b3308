"""Cosines of near-copies and of different photos, for the threshold of `seenit search --group`.

    python tests/benchmarks/group_threshold.py FOLDER...

Takes up to 60 photos of each folder, makes of every third a smaller, recompressed copy and one cropped by a twelfth at
each side, indexes all, and prints percentiles of the cosine of global vectors.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from indexer import sync_folder
from indexer.images.find import FoundFile, find_files
from indexer.index.index import Index

MOST = 60  # photos of a folder


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        number = 0
        for source in sys.argv[1:]:
            found = [file.path for file in find_files([source]) if isinstance(file, FoundFile)]
            found = [path for path in found if path.lower().endswith((".jpg", ".jpeg"))]
            for path in found[:: max(1, len(found) // MOST)][:MOST]:
                save_with_copies(Path(path), target, number)
                number += 1
        sync_folder(target)
        with Index.open(target / ".seenit") as index:
            records = list(index.store.scroll(vectors=True))
    names = [Path(record.files[0].key).name for record in records]
    vectors = np.stack([record.global_vector for record in records if record.global_vector is not None])
    cosines: dict[str, list[float]] = {"resized": [], "cropped": [], "different photos": []}
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        kinds = {names[i][4], names[j][4]}
        same = names[i][:4] == names[j][:4]
        kind = "different photos" if not same else "cropped" if "c" in kinds else "resized"
        cosines[kind].append(float(vectors[i] @ vectors[j]))
    for kind, values in cosines.items():
        print(
            f"{kind:<16} {len(values):>6} pairs: "
            + ", ".join(
                f"{percent} % {value:.3f}"
                for percent, value in zip(PERCENTS, np.percentile(values, PERCENTS), strict=True)
            )
        )


PERCENTS = (0, 10, 50, 99, 100)


def save_with_copies(path: Path, target: Path, number: int) -> None:
    image = Image.open(path).convert("RGB")
    image.thumbnail((700, 700))
    width, height = image.size
    image.save(target / f"{number:04}a.jpg", quality=90)
    if number % 3 == 0:
        image.resize((width // 2, height // 2)).save(target / f"{number:04}b.jpg", quality=70)
        box = (width // 12, height // 12, width - width // 12, height - height // 12)
        image.crop(box).save(target / f"{number:04}c.jpg", quality=80)


if __name__ == "__main__":
    main()
