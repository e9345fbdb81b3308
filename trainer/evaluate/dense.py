"""How good frozen patch features are for saying what is where: linear segmentation and linear depth.

Images are squashed to a square, so that each target pixel has its patch. Without a set of its own to be scored on, a
set is divided into folds, each scored by a head that was fitted on the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from torch import Tensor

from indexer.backbone.backbone import Backbone
from indexer.errors import SeenitError
from indexer.messages import Say, say_to_stderr

from .labelled import ImagePairs, embed_dataset
from .probes import format_table

IGNORED = 255  # the class of pixels that do not count
MAX_TARGET_PIXELS = 100_000_000
SEGMENTATION_STEPS = 300
PATCHES_A_STEP = 2048
RIDGE = 100.0  # on standardised features, for each 1,000 patches


@dataclass(frozen=True)
class SegmentationScores:
    """A linear classifier of patches; its logits are stretched to the masks' pixels."""

    mean_iou: float  # [0, 1], over the classes that are in the true masks
    pixel_accuracy: float  # [0, 1]
    iou: dict[int, float]  # class -> intersection over union
    num_images: int
    resolution: int

    def table(self) -> str:
        rows = [
            [
                f"{100 * self.mean_iou:.1f}",
                f"{100 * self.pixel_accuracy:.1f}",
                str(len(self.iou)),
                str(self.num_images),
            ]
        ]
        return format_table(["mIoU %", "pixels right %", "classes", "images"], rows)


@dataclass(frozen=True)
class DepthScores:
    """A linear map from a patch to the logarithm of its depth, stretched to the depth map's pixels."""

    rmse: float  # metres
    within_25_percent: float  # share of pixels with max(guess / truth, truth / guess) < 1.25
    relative_error: float  # mean of |guess - truth| / truth
    num_images: int
    resolution: int

    def table(self) -> str:
        cells = [f"{self.rmse:.3f}", f"{100 * self.within_25_percent:.1f}", f"{100 * self.relative_error:.1f}"]
        return format_table(["RMSE m", "delta<1.25 %", "relative error %", "images"], [[*cells, str(self.num_images)]])


@dataclass(frozen=True)
class DenseFeatures:
    """Patches of n images, squashed to a square, and what is true at their pixels.

    patches  (n, G * G, D)  float16, last block
    targets  n arrays (R, R): class numbers, or metres
    """

    patches: Tensor
    targets: tuple[np.ndarray, ...]
    resolution: int

    @property
    def side(self) -> int:
        """G, patches along a side."""
        return math.isqrt(self.patches.shape[1])


def embed_pairs(
    backbone: Backbone,
    pairs: ImagePairs,
    *,
    resolution: int = 448,
    workers: int | None = None,
    progress: bool = False,
    say: Say = say_to_stderr,
) -> DenseFeatures:
    """Patch features of each readable image, and its target brought to the same square by nearest neighbours.

    progress  show a bar on stderr
    """
    resolution = max(1, round(resolution / backbone.patch_size)) * backbone.patch_size
    patches: dict[int, Tensor] = {}
    batches = embed_dataset(
        backbone,
        pairs.images,
        [backbone.depth - 1],
        mode="squash",
        resolution=resolution,
        workers=workers,
        progress=progress,
        say=say,
    )
    for indices, (output,) in batches:
        patches |= zip(indices, output.patches.half().cpu(), strict=True)
    if len(patches) < 2:
        raise SeenitError("fewer than 2 of the images can be read; give others")
    kept = sorted(patches)
    targets = tuple(read_target(pairs.targets[index], resolution) for index in kept)
    return DenseFeatures(torch.stack([patches[index] for index in kept]), targets, resolution)


def read_target(path: str | Path, side: int) -> np.ndarray:
    """A mask's class numbers (R, R) int64, or depths in metres (R, R) float32, at R = side, by nearest neighbours."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False, mmap_mode="r").astype(np.float32)
        else:
            with open(path, "rb") as file:
                image = PngImagePlugin.PngImageFile(file, "")
                if image.width * image.height > MAX_TARGET_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels")
                is_depth = image.mode.startswith("I")
                values = np.asarray(image)
            values = values.astype(np.float32) / 1000 if is_depth else values.astype(np.int64)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"its shape is {values.shape}, where height and width are expected")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SeenitError(f"cannot read {path}: {error}; give one channel of class numbers or of depths") from error
    rows, cols = ((np.arange(side) + 0.5) * length // side for length in values.shape)
    return values[np.ix_(rows.astype(int), cols.astype(int))]


# n images, N = G * G patches each, D channels, C classes, R target pixels along a side, P = N * n patches of all
def segmentation(
    train: DenseFeatures,
    val: DenseFeatures | None = None,
    *,
    folds: int = 5,
    steps: int = SEGMENTATION_STEPS,
    seed: int = 0,
) -> SegmentationScores:
    """Linear segmentation: standardised patches, one linear layer, cross-entropy over the pixels.

    val  what to score on; None: `train` in folds
    """
    targets = [*train.targets, *(val.targets if val else ())]
    num_classes = 1 + max(int(t[t != IGNORED].max(initial=0)) for t in targets)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # truth, answer
    for fit_on, score_on in _divided(train, val, folds, seed):
        head = _fit_classes(fit_on, num_classes, steps, seed)
        for patches, target in zip(score_on.patches, score_on.targets, strict=True):
            answer = _stretched(head(patches.float()), score_on).argmax(0)  # (R, R)
            truth = torch.from_numpy(target)
            counted = truth != IGNORED
            pairs = truth[counted] * num_classes + answer[counted]
            confusion += torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    present = torch.nonzero(confusion.sum(1))[:, 0].tolist()
    if not present:
        raise SeenitError(f"every pixel of the masks is {IGNORED}, which does not count; give masks with classes")
    iou = {label: float(right[label] / union[label]) for label in present}
    scored = val or train
    return SegmentationScores(
        mean_iou=sum(iou.values()) / len(iou),
        pixel_accuracy=float(right.sum() / confusion.sum()),
        iou=iou,
        num_images=len(scored.targets),
        resolution=scored.resolution,
    )


def depth(train: DenseFeatures, val: DenseFeatures | None = None, *, folds: int = 5, seed: int = 0) -> DepthScores:
    """Linear depth: ridge regression from standardised patches to the logarithm of depth, in closed form.

    Answers are kept within the depths that the training images have.
    """
    squares = within = relative = 0.0
    count = 0
    for fit_on, score_on in _divided(train, val, folds, seed):
        head, extremes = _fit_depth(fit_on), _extremes(fit_on)
        for patches, target in zip(score_on.patches, score_on.targets, strict=True):
            guess = _stretched(head(patches.float()), score_on)[0].exp().clamp(*extremes)  # (R, R)
            truth = torch.from_numpy(target)
            known = truth.isfinite() & (truth > 0)
            guess, truth = guess[known].double(), truth[known].double()
            squares += float((guess - truth).square().sum())
            within += float((torch.maximum(guess / truth, truth / guess) < 1.25).sum())
            relative += float(((guess - truth).abs() / truth).sum())
            count += len(truth)
    scored = val or train
    return DepthScores(
        math.sqrt(squares / count), within / count, relative / count, len(scored.targets), scored.resolution
    )


@dataclass(frozen=True)
class _Head:
    """(N, D) patches -> (N, outputs)"""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weight: Tensor  # (D, outputs)
    bias: Tensor  # (outputs,)

    def __call__(self, patches: Tensor) -> Tensor:
        return (patches - self.mean) / self.scale @ self.weight + self.bias


def _fit_classes(features: DenseFeatures, num_classes: int, steps: int, seed: int) -> _Head:
    """Cross-entropy of a patch against the shares of classes in its pixels, which is that of its pixels on average."""
    rows = features.patches.flatten(0, 1)  # (P, D) float16
    shares = torch.cat([_class_shares(target, features.side, num_classes) for target in features.targets])  # (P, C)
    mean, scale = _moments(rows)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(rows.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(rows), (min(PATCHES_A_STEP, len(rows)),), generator=generator)
        x = (rows[chosen].float() - mean) / scale
        loss = -(shares[chosen] * (x @ weight + bias).log_softmax(1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return _Head(mean, scale, weight.detach(), bias.detach())


def _fit_depth(features: DenseFeatures) -> _Head:
    targets = [torch.from_numpy(target) for target in features.targets]
    known = torch.stack([target.isfinite() & (target > 0) for target in targets])  # (n, R, R)
    logs = torch.stack([t.log() for t in targets]).where(known, 0.0)
    block = features.resolution // features.side
    counts = F.avg_pool2d(known[:, None].float(), block).flatten()  # (P,)
    wanted = F.avg_pool2d(logs[:, None], block).flatten() / counts  # the patch's mean logarithm
    usable = counts > 0.5
    if usable.sum() < 2:
        raise SeenitError("the depth maps say next to nothing; give maps of metres above 0")
    rows, wanted = features.patches.flatten(0, 1)[usable].float(), wanted[usable]
    mean, scale = _moments(rows)
    x = (rows - mean) / scale  # (P, D)
    centre = wanted.mean()
    gram = x.T @ x + RIDGE * len(x) / 1000 * torch.eye(x.shape[1])
    weight = torch.linalg.solve(gram, x.T @ (wanted - centre))  # (D,)
    return _Head(mean, scale, weight[:, None], centre[None])


def _extremes(features: DenseFeatures) -> tuple[float, float]:
    """The least and the greatest known depth."""
    known = np.concatenate([target[np.isfinite(target) & (target > 0)] for target in features.targets])
    return float(known.min()), float(known.max())


def _class_shares(target: np.ndarray, side: int, num_classes: int) -> Tensor:
    """Which share of each patch's pixels is of which class; ignored pixels are of none.  (N, C)"""
    truth = torch.from_numpy(target)
    block = len(truth) // side
    kinds = truth.unfold(0, block, block).unfold(1, block, block).reshape(side * side, -1)  # (N, pixels)
    counts = torch.zeros(side * side, num_classes)
    valid = kinds != IGNORED
    counts.scatter_add_(1, kinds.where(valid, 0), valid.float())
    return counts / kinds.shape[1]


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of (P, D)."""
    deviation, mean = torch.std_mean(rows.float(), 0)
    return mean, deviation.clamp_min(1e-6)


def _stretched(outputs: Tensor, features: DenseFeatures) -> Tensor:
    """(N, C) at the patches -> (C, R, R) at the pixels"""
    grid = outputs.T.unflatten(1, (features.side, features.side))[None]
    return F.interpolate(grid, size=(features.resolution,) * 2, mode="bilinear")[0]


def _divided(
    train: DenseFeatures, val: DenseFeatures | None, folds: int, seed: int
) -> list[tuple[DenseFeatures, DenseFeatures]]:
    """Pairs of what to fit on and what to score."""
    if val is not None:
        return [(train, val)]
    count = len(train.targets)
    folds = min(folds, count)
    order = np.random.default_rng(seed).permutation(count)
    parts = [sorted(order[fold::folds].tolist()) for fold in range(folds)]
    return [(_rows(train, [i for i in range(count) if i not in part]), _rows(train, part)) for part in parts]


def _rows(features: DenseFeatures, rows: Sequence[int]) -> DenseFeatures:
    kept = list(rows)
    return DenseFeatures(features.patches[kept], tuple(features.targets[i] for i in kept), features.resolution)
