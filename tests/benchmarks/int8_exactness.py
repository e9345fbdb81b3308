"""How near vectors and patches in 8 bits are to those of float32, with ranges of drawn images and of a set's own.

    python tests/benchmarks/int8_exactness.py DATA_FOLDER [--sets grocery paris] [--photos 20]

DATA_FOLDER holds one folder for each set, with a manifest.csv. Ranges are measured on 16 images of a set, as an index
has them of its own; the cosines are of others. The whitening is fitted on all of them, by the backbone's prior.
"""

import argparse
import csv
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer import Backbone
from indexer.descriptor.config import DESCRIPTOR_CONFIGS
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.whitening import apply_whitening
from indexer.descriptor.whitening_fit import fit_whitening
from indexer.errors import ImageError
from indexer.images.decode import decode_file
from indexer.images.preprocess import preprocess
from indexer.sync.embedding import RANGED_ON

RESOLUTION = 224


def images_of(manifest: Path, count: int, patch_size: int) -> list[np.ndarray]:
    """Some of a set's images, in a fixed random order, as the network sees them."""
    with open(manifest, encoding="utf-8") as file:
        paths = [manifest.parent / row["path"] for row in csv.DictReader(file)]
    paths = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    images: list[np.ndarray] = []
    for n in np.random.default_rng(0).permutation(len(paths)):
        if len(images) == count:
            break
        with suppress(ImageError):  # some sets hold broken ones
            pixels = decode_file(paths[n], target_px=RESOLUTION).pixels
            images.append(preprocess(pixels, "aspect", RESOLUTION, patch_size))
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--backbone", default="seenit_vits14")
    parser.add_argument("--photos", type=int, default=20, help="of each set that cosines are of")
    options = parser.parse_args()
    names = options.sets or sorted(file.parent.name for file in options.data.glob("*/manifest.csv"))
    exact, half, drawn = (Backbone.load(options.backbone, dtype=dtype) for dtype in ("float32", "bfloat16", "int8"))
    config = replace(DESCRIPTOR_CONFIGS["full"], colour_bits=0)  # every patch
    images = {name: images_of(options.data / name / "manifest.csv", RANGED_ON + options.photos, 14) for name in names}
    whole = {name: [Embedder(exact, RESOLUTION, config).pooled([image]) for image in images[name]] for name in names}
    fitted = fit_whitening([one for some in whole.values() for one in some], config, exact.prior)
    print("set, precision: global vectors least, median; patches least, 1 %, median")
    for name in names:
        own = drawn.with_own_ranges([Embedder(exact, RESOLUTION, config).lit(one) for one in images[name][:RANGED_ON]])
        for what, backbone in (("bfloat16", half), ("int8, drawn images' ranges", drawn), ("int8, its own", own)):
            vectors, patches = [], []
            for image, of_exact in zip(images[name][RANGED_ON:], whole[name][RANGED_ON:], strict=True):
                ours = apply_whitening(Embedder(backbone, RESOLUTION, config).pooled([image]), fitted)
                theirs = apply_whitening(of_exact, fitted)
                vectors.append(float((ours[0] * theirs[0]).sum()))
                patches.append((ours[1] * theirs[1]).sum(-1).ravel())
            of_all = np.concatenate(patches)
            print(
                f"{name:<18} {what:<27} {min(vectors):.4f} {np.median(vectors):.4f}   {of_all.min():.3f}"
                f" {np.quantile(of_all, 0.01):.4f} {np.median(of_all):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
