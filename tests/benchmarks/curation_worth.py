"""What curation is worth on a pool that is unbalanced and full of copies by construction.

    python tests/benchmarks/curation_worth.py ../shared/data --work FOLDER [--steps 300] [--set KEY=VALUE ...]
        [--photos FOLDER --most 400 --size 600]

From the ten classes of `imagenette_probe`, or from another folder with a folder a class: the first class whole, the
others ever fewer down to a hundredth, and of each image three copies with edits. Printed for the pool, for a random
list and for the curated list of equal size: how many classes of equal frequency have the same entropy, and how many
images have a copy in the list. With --steps a small network is trained on both lists from random weights, as often as
there are seeds, and judged on the probe's photos: by k-NN, and by finding photos from synthetic views of them.
"""

import argparse
import csv
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from indexer.backbone.backbone import Backbone
from indexer.images.colour import to_rgb
from trainer.config import make_config
from trainer.curation.balance import effective
from trainer.curation.choices import Choices
from trainer.curation.pipeline import curate, describe_selection
from trainer.data.sources import open_source
from trainer.evaluate.labelled import LabelledImages, embed_labelled
from trainer.evaluate.probes import knn
from trainer.evaluate.views import JUDGED_DIFFICULTY, embed_views, view_retrieval
from trainer.train import train

COPIES = 3  # of each image, each with two edits
RATIO = 100  # of the most frequent class to the rarest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--backbone", default="seenit_vits14")
    parser.add_argument("--size", type=int, default=60, help="images in each list")
    parser.add_argument("--steps", type=int, default=0, help="of training; 0: none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--photos", type=Path, help="a folder of photos per class to make the pool of")
    parser.add_argument("--most", type=int, default=1_000_000, help="photos of the most frequent class")
    parser.add_argument("--set", action="append", default=[], help="of the trained network's configuration")
    args = parser.parse_args()
    torch.set_num_threads(1)

    images = by_class(args.photos) if args.photos else labelled(args.data / "imagenette_probe", "train")
    images = {name: paths[: args.most] for name, paths in images.items()}
    pool = args.work / "pool"
    if not pool.is_dir():
        make_pool(images, pool)
    files = sorted(map(str, pool.rglob("*.jpg")))
    lists: dict[str, list[list[str]]] = {"pool": [files], "random": [], "curated": []}
    for seed in range(args.seeds):
        out, html = args.work / f"curated_{seed}.txt", args.work / f"curated_{seed}.html"
        choices = Choices(size=args.size, seed=seed)
        work = args.work / "work"
        summary = curate([pool], out, choices=choices, backbone=args.backbone, work=work, html=html, say=print)
        lists["curated"].append(out.read_text().split("\n")[:-1])
        lists["random"].append(random.Random(seed).sample(files, summary.written))
    print(describe_selection(summary))
    print("list      images  worth classes  originals  with a copy in the list  rarest class   (means over seeds)")
    for name, found in lists.items():
        means = np.mean([facts(paths) for paths in found], axis=0)
        print(f"{name:9} {means[0]:8.0f} {means[1]:14.2f} {means[2]:10.1f} {means[3]:24.1f} {means[4]:13.1f}")
    undetected = missed_copies(args.work / "work" / "fates.csv")
    print(f"copies that the deduplication left: {undetected} of {len(files) - len(files) // (COPIES + 1)}")
    if args.steps:
        compare_training(args, lists)


def labelled(folder: Path, role: str) -> dict[str, list[Path]]:
    """Paths by class."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = [entry for entry in csv.DictReader(file) if entry["role"] == role]
    classes = sorted({entry["instance"] for entry in rows})
    return {name: [folder / entry["path"] for entry in rows if entry["instance"] == name] for name in classes}


def by_class(folder: Path) -> dict[str, list[Path]]:
    """Paths by class, of a folder of photos per class."""
    return {one.name: sorted(path for path in one.iterdir()) for one in sorted(folder.iterdir()) if one.is_dir()}


def make_pool(images: dict[str, list[Path]], folder: Path) -> None:
    """FOLDER/CLASS/NUMBER_COPY.jpg; copy 0 is the photo itself, scaled to 256 pixels."""
    rng = random.Random(0)
    counts = np.geomspace(1, 1 / RATIO, len(images)) * max(map(len, images.values()))
    for (name, paths), count in zip(images.items(), counts, strict=True):
        (folder / name).mkdir(parents=True)
        for number, path in enumerate(paths[: max(1, round(count))]):
            with Image.open(path) as opened:
                photo = Image.fromarray(to_rgb(opened))
            photo.thumbnail((256, 256))
            photo.save(folder / name / f"{number:03d}_0.jpg", quality=92)
            for copy in range(1, COPIES + 1):
                edited = photo
                for edit in rng.sample(EDITS, 2):
                    edited = edit(edited)
                edited.save(folder / name / f"{number:03d}_{copy}.jpg", quality=rng.choice([40, 60, 80]))


def cropped(photo: Image.Image) -> Image.Image:
    width, height = photo.size
    return photo.crop((width // 12, height // 12, width - width // 16, height - height // 20))


EDITS = [
    cropped,
    ImageOps.mirror,
    lambda photo: photo.resize((photo.width // 2, photo.height // 2)),
    lambda photo: photo.filter(ImageFilter.GaussianBlur(1.2)),
    lambda photo: ImageEnhance.Brightness(photo).enhance(1.3),
    lambda photo: ImageEnhance.Color(photo).enhance(0.4),
    lambda photo: ImageOps.expand(photo, photo.width // 20, "white"),
    lambda photo: photo.rotate(4, Image.Resampling.BICUBIC),
]


def facts(paths: list[str]) -> tuple[float, ...]:
    """Images, effective classes, originals, images with a copy in the list, images of the rarest class there."""
    classes = Counter(Path(path).parent.name for path in paths)
    originals = Counter((Path(path).parent.name, Path(path).stem.split("_")[0]) for path in paths)
    with_copy = sum(count for count in originals.values() if count > 1)
    even = effective(np.array(list(classes.values())))
    return len(paths), even, len(originals), with_copy, min(classes.values())


def missed_copies(fates: Path) -> int:
    """Images left after deduplication whose original, or another copy of it, is left as well."""
    with fates.open(newline="") as file:
        left = [Path(entry["path"]) for entry in csv.DictReader(file) if not entry["fate"].startswith("a copy")]
    return sum(count - 1 for count in Counter((path.parent.name, path.stem.split("_")[0]) for path in left).values())


def compare_training(args: argparse.Namespace, lists: dict[str, list[list[str]]]) -> None:
    splits = {role: labelled(args.data / "imagenette_probe", role) for role in ("train", "val")}
    scores: dict[str, list[tuple[float, float]]] = {"random": [], "curated": []}
    for seed in range(args.seeds):
        for name, collected in scores.items():
            listed = args.work / f"{name}_{seed}.txt"
            listed.write_text("".join(f"{path}\n" for path in lists[name][seed]))
            changes = ["batch_size=16", *args.set, f"steps={args.steps}", f"seed={seed}"]
            config = make_config("tiny", changes=changes)
            out = args.work / f"run_{name}_{seed}"
            done = train(listed, out, config, progress=False, resume=True, say=lambda line: None)
            found = accuracy(done.backbone, splits, config.global_size), found_again(done.backbone, splits)
            collected.append(found)
            print(f"seed {seed} {name}: k-NN {found[0]:.3f}, retrieval {found[1]:.3f}", flush=True)
    print("list       k-NN  retrieval (mean reciprocal rank)   (means over seeds, and their spread)")
    for name, collected in scores.items():
        values = np.array(collected)
        mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(2)
        print(f"{name:9} {mean[0]:.3f} ± {spread[0]:.3f}  {mean[1]:.3f} ± {spread[1]:.3f}")


def found_again(backbone: Path, splits: dict[str, dict[str, list[Path]]]) -> float:
    """Mean reciprocal rank of photos of the probe for synthetic views of them."""
    loaded = Backbone.load(backbone, say=lambda line: None)
    photos = [path for paths in splits["val"].values() for path in paths[::2]]
    views = embed_views(loaded, open_source(photos), num_views=2, difficulty=JUDGED_DIFFICULTY, resolution=112)
    return view_retrieval(views).mean_reciprocal_rank


def accuracy(backbone: Path, splits: dict[str, dict[str, list[Path]]], resolution: int) -> float:
    """k-NN on the classes' images, half of them for speed."""
    loaded = Backbone.load(backbone, say=lambda line: None)
    features = []
    for classes in splits.values():
        some = [(path, number) for number, paths in enumerate(classes.values()) for path in paths[::2]]
        images = LabelledImages(
            tuple(str(path) for path, _ in some), tuple(number for _, number in some), tuple(classes)
        )
        features.append(embed_labelled(loaded, images, resolution=resolution))
    return knn(*features).best


if __name__ == "__main__":
    main()
