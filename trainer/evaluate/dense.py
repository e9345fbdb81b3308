"""How good frozen patch features are for saying what is where: linear segmentation and linear depth.

Images are squashed to a square, so that each target pixel has its patch. Without a set of its own to be scored on, a
set is divided into folds, each scored by a head that was fitted on the others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from indexer.backbone.backbone import Backbone
from indexer.errors import SeenitError
from indexer.messages import Say, say_to_stderr

from .dense_sets import IGNORED, ImagePairs, read_target
from .depth_bins import STEPS as BINS_STEPS
from .depth_bins import fit_bins, known_depths
from .labelled import embed_dataset
from .probes import format_table

SEGMENTATION_STEPS = 300
PATCHES_A_STEP = 2048
RIDGE = 100.0  # on standardised features, for each 1,000 patches
MOMENT_ROWS = 500_000  # patches that mean and deviation are taken of, evenly spread where there are more
DepthHead = Literal["log", "bins"]


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
    """A linear map from a patch to its depth, stretched to the depth map's pixels."""

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
    cls      (n, D)         float16, last block; None where nobody needs it
    """

    patches: Tensor
    targets: tuple[np.ndarray, ...]
    resolution: int
    cls: Tensor | None = None

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
    cls: dict[int, Tensor] = {}
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
        cls |= zip(indices, output.cls.half().cpu(), strict=True)
    if len(patches) < 2:
        raise SeenitError("fewer than 2 of the images can be read; give others")
    kept = sorted(patches)
    targets = tuple(read_target(pairs.targets[index], resolution, pairs) for index in kept)
    stacked = (torch.stack([found[index] for index in kept]) for found in (patches, cls))
    return DenseFeatures(next(stacked), targets, resolution, next(stacked))


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
            truth = torch.from_numpy(target.astype(np.int64))
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


def depth(
    train: DenseFeatures,
    val: DenseFeatures | None = None,
    *,
    head: DepthHead = "log",
    max_depth: float = math.inf,
    folds: int = 5,
    steps: int = BINS_STEPS,
    seed: int = 0,
) -> DepthScores:
    """Linear depth; pixels of unknown depth (0) or beyond `max_depth` metres do not count.

    head   log: ridge regression from standardised patches to the logarithm of depth, in closed form; answers are kept
           within the depths that the training images have
           bins: the paper's 256 bins up to `max_depth`, or to the greatest depth of the training images where that
           is infinite, see `depth_bins`
    steps  of fitting bins
    """
    squares = within = relative = 0.0
    count = 0
    for fit_on, score_on in _divided(train, val, folds, seed):
        guess_of = _fit_log(fit_on, max_depth) if head == "log" else _fit_bins(fit_on, max_depth, steps, seed)
        for index, target in enumerate(score_on.targets):
            guess = guess_of(score_on, index)  # (R, R)
            truth = torch.from_numpy(target)
            known = known_depths(truth, max_depth)
            guess, truth = guess[known].double(), truth[known].double()
            squares += float((guess - truth).square().sum())
            within += float((torch.maximum(guess / truth, truth / guess) < 1.25).sum())
            relative += float(((guess - truth).abs() / truth).sum())
            count += len(truth)
    if not count:
        raise SeenitError(
            f"no depth of the images to score is known up to {max_depth:g} m; give maps of metres above 0"
        )
    scored = val or train
    return DepthScores(
        math.sqrt(squares / count), within / count, relative / count, len(scored.targets), scored.resolution
    )


Guess = Callable[[DenseFeatures, int], Tensor]  # of which image -> metres (R, R)


def _fit_log(features: DenseFeatures, max_depth: float) -> Guess:
    head, extremes = _fit_depth(features, max_depth), _extremes(features, max_depth)

    def guess(scored: DenseFeatures, index: int) -> Tensor:
        return _stretched(head(scored.patches[index].float()), scored)[0].exp().clamp(*extremes)

    return guess


def _fit_bins(features: DenseFeatures, max_depth: float, steps: int, seed: int) -> Guess:
    assert features.cls is not None, "bins need CLS"
    max_depth = max_depth if math.isfinite(max_depth) else _extremes(features, max_depth)[1]
    head = fit_bins(features.patches, features.cls, features.targets, max_depth, steps=steps, seed=seed)

    def guess(scored: DenseFeatures, index: int) -> Tensor:
        assert scored.cls is not None
        rows = slice(index, index + 1)
        return head(scored.patches[rows].float(), scored.cls[rows].float(), scored.resolution)[0]

    return guess


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
    kinds = _patch_pixels(features)  # (P, pixels)
    mean, scale = _moments(rows)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(rows.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(rows), (min(PATCHES_A_STEP, len(rows)),), generator=generator)
        x = (rows[chosen].float() - mean) / scale
        shares = _class_shares(kinds[chosen], num_classes)  # (p, C)
        loss = -(shares * (x @ weight + bias).log_softmax(1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return _Head(mean, scale, weight.detach(), bias.detach())


def _fit_depth(features: DenseFeatures, max_depth: float) -> _Head:
    targets = [torch.from_numpy(target) for target in features.targets]
    known = torch.stack([known_depths(target, max_depth) for target in targets])  # (n, R, R)
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


def _extremes(features: DenseFeatures, max_depth: float) -> tuple[float, float]:
    """The least and the greatest known depth."""
    known = torch.cat([truth[known_depths(truth, max_depth)] for truth in map(torch.from_numpy, features.targets)])
    if not len(known):
        raise SeenitError("the depth maps say nothing; give maps of metres above 0")
    return float(known.min()), float(known.max())


def _patch_pixels(features: DenseFeatures) -> Tensor:
    """The class numbers of each patch's pixels.  (P, pixels) uint8"""
    truth = torch.from_numpy(np.stack(features.targets).astype(np.uint8))  # (n, R, R)
    block = features.resolution // features.side
    return truth.unfold(1, block, block).unfold(2, block, block).reshape(-1, block * block)


def _class_shares(kinds: Tensor, num_classes: int) -> Tensor:
    """Which share of each patch's pixels (p, pixels) is of which class; ignored pixels are of none.  (p, C)"""
    counts = torch.zeros(len(kinds), num_classes)
    valid = kinds != IGNORED
    counts.scatter_add_(1, kinds.long().where(valid, 0), valid.float())
    return counts / kinds.shape[1]


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of (P, D)."""
    deviation, mean = torch.std_mean(rows[:: -(-len(rows) // MOMENT_ROWS)].float(), 0)
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
    cls = None if features.cls is None else features.cls[kept]
    return DenseFeatures(features.patches[kept], tuple(features.targets[i] for i in kept), features.resolution, cls)
