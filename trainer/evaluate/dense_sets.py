"""Sets with an answer at each pixel, masks or depths, as their authors publish them; and one image's answer.

Known by their folders are Pascal VOC, ADE20K and NYU Depth V2 (in files, as BTS and DINOv2 use it), each with its own
division into images to fit on and images to score. Anything else has `images` and `masks` or `depth`.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin

from indexer.errors import SeenitError
from indexer.images.decode import is_image

Kind = Literal["masks", "depth"]
IGNORED = 255  # the class of pixels that do not count
MAX_TARGET_PIXELS = 100_000_000
TARGET_SUFFIXES = {"masks": (".png",), "depth": (".npy", ".png")}
NYU_SIZE = (480, 640)
NYU_MAX_DEPTH = 10.0  # metres
NYU_CROP = (slice(45, 471), slice(41, 601))  # what Eigen et al. (2014) score of a map of that size, and all after them


@dataclass(frozen=True)
class ImagePairs:
    """Images and, for each, the file of what is true at each of its pixels."""

    images: tuple[str, ...]
    targets: tuple[str, ...]
    from_one: bool = False  # classes are numbered from 1, and 0 does not count
    eigen_crop: bool = False  # only NYU_CROP counts


@dataclass(frozen=True)
class DenseSet:
    """What heads are fitted on, and what they are scored on; None: the same in folds."""

    train: ImagePairs
    val: ImagePairs | None = None
    max_depth: float = math.inf  # metres, beyond which nothing counts


def read_dense_set(folder: str | Path, kind: Kind, most: int | None = None) -> DenseSet:
    """The pairs of a set.

    folder  masks: VOC2012 (JPEGImages, SegmentationClass, ImageSets) or VOCdevkit around it; ADEChallengeData2016
            (images and annotations, each with training and validation) or a folder around it
            depth: train and test with scenes of rgb_*.jpg and sync_depth_*.png, or official_splits around them
            either: see `read_pairs`
    most    of each division so many images, evenly spread; None: all

    SeenitError in one line where pairs lack or there are fewer than 2.
    """
    folder = Path(folder)
    found = _voc(folder) or _ade(folder) if kind == "masks" else _nyu(folder)
    found = found or DenseSet(read_pairs(folder, kind))
    return replace(found, train=_thinned(found.train, most), val=found.val and _thinned(found.val, most))


def read_pairs(folder: str | Path, kind: Kind) -> ImagePairs:
    """The images of FOLDER/images that have a file of the same stem in FOLDER/masks or FOLDER/depth.

    masks  PNG of class numbers, one channel; 255 does not count
    depth  NPY of metres, or 16-bit PNG of millimetres; 0 is unknown
    """
    folder = Path(folder)
    if not (folder / "images").is_dir() or not (folder / kind).is_dir():
        others = "a folder of Pascal VOC or ADE20K" if kind == "masks" else "the splits of NYU Depth V2"
        raise SeenitError(
            f"{folder} needs the folders images and {kind}; put images in one and their {kind} in the other,"
            f" or give {others}"
        )
    targets = {p.stem: p for p in sorted((folder / kind).iterdir()) if p.suffix.lower() in TARGET_SUFFIXES[kind]}
    images = [p for p in sorted((folder / "images").iterdir()) if p.stem in targets and is_image(p)]
    if len(images) < 2:
        raise SeenitError(f"{len(images)} images in {folder}/images have a file in {kind}; at least 2 are needed")
    return ImagePairs(tuple(map(str, images)), tuple(str(targets[p.stem]) for p in images))


def read_target(path: str | Path, side: int, pairs: ImagePairs | None = None) -> np.ndarray:
    """A mask's class numbers (R, R) uint8, or depths in metres (R, R) float32, at R = side, by nearest neighbours.

    pairs  the set that it is of, for how classes are numbered and what counts
    """
    path = Path(path)
    try:
        values = _read_values(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SeenitError(f"cannot read {path}: {error}; give one channel of class numbers or of depths") from error
    if pairs is not None and pairs.eigen_crop and values.shape == NYU_SIZE:
        counted = np.zeros_like(values)
        counted[NYU_CROP] = values[NYU_CROP]
        values = counted
    rows, cols = ((np.arange(side) + 0.5) * length // side for length in values.shape)
    values = values[np.ix_(rows.astype(int), cols.astype(int))]
    if pairs is not None and pairs.from_one:
        values = np.where(values == 0, IGNORED, values - 1).astype(values.dtype)
    return values


def _read_values(path: Path) -> np.ndarray:
    """All of a file: (H, W) uint8 class numbers or float32 metres."""
    if path.suffix.lower() == ".npy":
        values = np.load(path, allow_pickle=False, mmap_mode="r").astype(np.float32)
    else:
        with open(path, "rb") as file:
            image = PngImagePlugin.PngImageFile(file, "")
            if image.width * image.height > MAX_TARGET_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels")
            values = np.asarray(image)
        if image.mode.startswith("I"):
            values = values.astype(np.float32) / 1000
        elif values.ndim == 2 and values.size:
            values = values.astype(np.uint8)  # palettes and greys have no more than 256 values
    if values.ndim != 2 or not values.size:
        raise ValueError(f"its shape is {values.shape}, where height and width are expected")
    return values


def _voc(folder: Path) -> DenseSet | None:
    inside = [folder, *sorted(folder.glob("VOC20??")), *sorted(folder.glob("VOCdevkit/VOC20??"))]
    root = next((one for one in inside if (one / "SegmentationClass").is_dir()), None)
    if root is None:
        return None

    def listed(division: str) -> ImagePairs:
        names = _names(root / "ImageSets" / "Segmentation" / f"{division}.txt")
        images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
        return _all_there(images, [root / "SegmentationClass" / f"{name}.png" for name in names])

    return DenseSet(listed("train"), listed("val"))


def _names(path: Path) -> list[str]:
    try:
        names = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise SeenitError(f"cannot read {path}: {error}; Pascal VOC has its divisions there") from error
    wrong = [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]
    if wrong:
        raise SeenitError(f"{path} has {wrong[0]!r}, which is no image's name; fetch the set again")
    return names


def _ade(folder: Path) -> DenseSet | None:
    around = (folder, folder / "ADEChallengeData2016")
    root = next((one for one in around if (one / "annotations" / "training").is_dir()), None)
    if root is None:
        return None

    def division(name: str) -> ImagePairs:
        masks = sorted((root / "annotations" / name).glob("*.png"))
        pairs = _all_there([root / "images" / name / f"{mask.stem}.jpg" for mask in masks], masks)
        return replace(pairs, from_one=True)

    return DenseSet(division("training"), division("validation"))


def _nyu(folder: Path) -> DenseSet | None:
    around = (folder, folder / "official_splits")
    root = next((one for one in around if (one / "train").is_dir() and (one / "test").is_dir()), None)
    if root is None:
        return None

    def division(name: str) -> ImagePairs:
        images = sorted((root / name).glob("*/rgb_*.jpg"))
        depths = [path.with_name(f"sync_depth_{path.stem.removeprefix('rgb_')}.png") for path in images]
        return replace(_all_there(images, depths), eigen_crop=True)

    return DenseSet(division("train"), division("test"), NYU_MAX_DEPTH)


def _all_there(images: list[Path], targets: list[Path]) -> ImagePairs:
    missing = [path for path in (*images, *targets) if not path.is_file()]
    if missing:
        raise SeenitError(f"{len(missing)} files of the set are not there, the first is {missing[0]}; put them there")
    if len(images) < 2:
        raise SeenitError(f"a division of the set has {len(images)} images; at least 2 are needed")
    return ImagePairs(tuple(map(str, images)), tuple(map(str, targets)))


def _thinned(pairs: ImagePairs, most: int | None) -> ImagePairs:
    if most is None or most >= len(pairs.images):
        return pairs
    kept = [n * len(pairs.images) // most for n in range(most)]
    return replace(pairs, images=tuple(pairs.images[n] for n in kept), targets=tuple(pairs.targets[n] for n in kept))
