"""Images with known answers, and a frozen backbone's features of them.

Classes come from one folder a class or from a CSV. Features are computed once: every probe reads the same ones.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indexer.backbone.backbone import Backbone
from indexer.backbone.layouts import Preprocessing
from indexer.backbone.vit import TokenFeatures, VisionTransformer
from indexer.errors import SeenitError
from indexer.images.batches import of_one_shape
from indexer.images.decode import is_image
from indexer.images.find import Unreadable, find_files
from indexer.images.jobs import Decoded, Job
from indexer.images.pool import DecodePool
from indexer.images.preprocess import Mode
from indexer.messages import Say, say_to_stderr
from indexer.progress_bar import progress_bar

BATCH_PIXELS = 32 * 224 * 224  # of the images that go through the network together


@dataclass(frozen=True)
class LabelledImages:
    """Images of known classes; `labels` are indices into `classes`."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LabelledFeatures:
    """What a backbone outputs for n labelled images, from its last few blocks.

    cls     (n, K, D)  float32, CLS after the last K blocks and the final norm; [:, -1] is the last block's
    mean    (n, D)     float32, mean patch of the last block
    labels  (n,)       int64
    """

    cls: Tensor
    mean: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def read_labelled(path: str | Path, classes: Sequence[str] | None = None) -> LabelledImages:
    """Images and their classes.

    path     a folder with one folder of images a class, or a CSV with the columns `path` (relative to the CSV) and
             `label`
    classes  the classes to number by, those of the training images; None: those found here
    """
    path = Path(path)
    named = _from_csv(path) if path.is_file() else _from_folders(path)
    if not named:
        raise SeenitError(f"no labelled images in {path}; give a folder with a folder for each class, or a CSV")
    known = tuple(classes) if classes is not None else tuple(sorted({label for _, label in named}))
    number = {label: index for index, label in enumerate(known)}
    strange = sorted({label for _, label in named} - number.keys())
    if strange:
        raise SeenitError(f"{path} has the class {strange[0]!r}, which the training images lack; add some of it there")
    return LabelledImages(tuple(p for p, _ in named), tuple(number[label] for _, label in named), known)


def embed_labelled(
    backbone: Backbone,
    images: LabelledImages,
    *,
    resolution: int = 224,
    num_blocks: int = 4,
    workers: int | None = None,
    progress: bool = False,
    say: Say = say_to_stderr,
) -> LabelledFeatures:
    """Features by the official protocol: the shorter side to 256, the middle 224 (or in proportion).

    progress  show a bar on stderr
    """
    num_blocks = min(num_blocks, backbone.depth)
    layers = range(backbone.depth - num_blocks, backbone.depth)
    cls = torch.zeros(len(images.paths), num_blocks, backbone.embed_dim)
    mean = torch.zeros(len(images.paths), backbone.embed_dim)
    seen = []
    for indices, outputs in embed_dataset(
        backbone,
        images.paths,
        layers,
        mode="crop",
        resolution=resolution,
        workers=workers,
        progress=progress,
        say=say,
    ):
        cls[indices] = torch.stack([output.cls for output in outputs], 1).cpu()
        mean[indices] = outputs[-1].patches.mean(1).cpu()
        seen += indices
    if not seen:
        raise SeenitError("none of the labelled images can be read; give others")
    kept = torch.tensor(sorted(seen))
    return LabelledFeatures(cls[kept], mean[kept], torch.tensor(images.labels)[kept], images.classes)


def embed_dataset(
    backbone: Backbone,
    paths: Sequence[str],
    layers: Sequence[int],
    *,
    mode: Mode = "crop",
    resolution: int = 224,
    workers: int | None = None,
    progress: bool = False,
    say: Say = say_to_stderr,
) -> Iterator[tuple[list[int], list[TokenFeatures]]]:
    """Batches of (which of the paths, their tokens after the layers asked), in the order in which they are decoded.

    An image that cannot be read is reported once and left out.
    """
    patch = backbone.patch_size
    places: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        places.setdefault(path, []).append(index)
    size = max(1, round(BATCH_PIXELS / resolution**2))

    def decoded() -> Iterator[Decoded]:
        for outcome in pool.run(Job(path) for path in places):
            bar.update(1)
            if isinstance(outcome, Decoded):
                yield outcome
            else:
                say(f"left out {outcome.path}: {getattr(outcome, 'reason', type(outcome).__name__.lower())}")

    with (
        DecodePool(workers, resolution=resolution, patch_size=patch, mode=mode) as pool,
        progress_bar(len(places), "describing", "photos", progress) as bar,
    ):
        for batch in of_one_shape(decoded(), size):
            yield _forward(backbone, batch, layers, places)


def as_backbone(
    model: VisionTransformer,
    name: str = "in training",
    *,
    dtype: torch.dtype | None = None,
    preprocessing: Preprocessing | None = None,
) -> Backbone:
    """A network in memory as a backbone, for probes in the middle of a run; its weights are not copied."""
    parameter = next(model.parameters())
    return Backbone(
        name=name,
        spec=name,
        hash="",
        architecture=model.architecture,
        preprocessing=preprocessing or Preprocessing(),
        provenance={},
        prior=None,
        model=model,
        device=parameter.device,
        dtype=dtype or parameter.dtype,
    )


def _forward(
    backbone: Backbone, batch: list[Decoded], layers: Sequence[int], places: dict[str, list[int]]
) -> tuple[list[int], list[TokenFeatures]]:
    indices = [index for decoded in batch for index in places[decoded.path]]
    pixels = np.stack([decoded.pixels for decoded in batch for _ in places[decoded.path]])
    return indices, backbone.intermediate(pixels, list(layers))


def _from_folders(folder: Path) -> list[tuple[str, str]]:
    if not folder.is_dir():
        raise SeenitError(f"there is nothing at {folder}; give a folder with a folder for each class, or a CSV")
    return [
        (found.path, kind.name)
        for kind in sorted(folder.iterdir())
        if kind.is_dir() and not kind.name.startswith(".")
        for found in find_files([kind], follow_links=True)
        if not isinstance(found, Unreadable) and is_image(found.path)
    ]


def _from_csv(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"path", "label"} <= set(reader.fieldnames or []):
                raise SeenitError(f"{path} has no columns path and label in its first line; name them there")
            return [(str(path.parent / row["path"]), row["label"]) for row in reader if row["path"] and row["label"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SeenitError(f"cannot read {path}: {error}; give a CSV with the columns path and label") from error
