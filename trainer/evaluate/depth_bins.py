"""Linear depth as DINOv2's paper has it (section 7.4): a linear layer that says how likely each of 256 depths is.

A patch's feature is its token beside CLS. Scores of bins that divide the range of depths evenly are stretched four
times, made shares (ReLU, a floor, sum to 1; AdaBins, Bhat et al. 2021), and the depth is the mean of the bins' depths.
Fitted by AdaBins' loss, which forgives a common factor for the most part. What differs from the paper: some hundred
steps in place of 38,400, on standardised features, without augmentation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from indexer.errors import SeenitError

BINS = 256
LEAST_M = 1e-3  # metres, the first bin
STRETCH = 4  # of the grid of patches
FLOOR = 0.1  # of a bin's score
MEAN_WEIGHT = 0.15  # of a common factor's square, in the loss
EPS_M = 1e-3
STEPS = 400
IMAGES_A_STEP = 4
RATE = 1e-3


# B images of N = G * G patches, D channels, K bins, R pixels along a target's side
@dataclass(frozen=True)
class BinsHead:
    """Depth of images from their frozen features."""

    mean: Tensor  # (2 * D,)
    scale: Tensor  # (2 * D,)
    weight: Tensor  # (2 * D, K)
    bias: Tensor  # (K,)
    max_depth: float  # metres, the last bin

    def __call__(self, patches: Tensor, cls: Tensor, side: int) -> Tensor:
        """patches (B, N, D), cls (B, D) -> metres (B, R, R) at R = side"""
        features = (_beside_cls(patches, cls) - self.mean) / self.scale  # (B, N, 2 * D)
        scores = features @ self.weight + self.bias  # (B, N, K)
        grid = math.isqrt(patches.shape[1])
        square = scores.transpose(1, 2).unflatten(2, (grid, grid))  # (B, K, G, G)
        # a linear layer on stretched features is the stretched output of the layer
        metres = depth_of(F.interpolate(square, scale_factor=STRETCH, mode="bilinear"), self.max_depth)
        return F.interpolate(metres[:, None], size=(side, side), mode="bilinear")[:, 0]


def depth_of(scores: Tensor, max_depth: float) -> Tensor:
    """Scores of the bins (B, K, H, W) -> metres (B, H, W).

    share[k] = (relu(score[k]) + FLOOR) / sum over k;  depth = sum_k share[k] * bin[k]
    """
    bins = torch.linspace(LEAST_M, max_depth, scores.shape[1])  # (K,)
    shares = scores.relu() + FLOOR
    return torch.einsum("bkhw,k->bhw", shares, bins) / shares.sum(1)


def scale_invariant_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """Of known depths (M,) in metres: sqrt(var(g) + MEAN_WEIGHT mean(g)^2), g the difference of logarithms."""
    gap = torch.log(guess + EPS_M) - torch.log(truth + EPS_M)
    return torch.sqrt(gap.var() + MEAN_WEIGHT * gap.mean().square())


def fit_bins(
    patches: Tensor, cls: Tensor, targets: Sequence[np.ndarray], max_depth: float, *, steps: int = STEPS, seed: int = 0
) -> BinsHead:
    """Fit the linear layer; depths beyond `max_depth` and unknown ones (0) do not count.

    patches  (n, N, D) float16
    cls      (n, D)
    targets  n arrays (R, R) of metres
    """
    usable = [n for n, target in enumerate(targets) if known_depths(torch.from_numpy(target), max_depth).sum() > 1]
    if not usable:
        raise SeenitError(f"the depth maps say next to nothing up to {max_depth:g} m; give maps of metres above 0")
    features = _beside_cls(patches, cls).flatten(0, 1)  # (n * N, 2 * D)
    scale, mean = torch.std_mean(features.float(), 0)
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(features.shape[1], BINS, generator=generator) * 0.01).requires_grad_()
    bias = torch.zeros(BINS, requires_grad=True)
    head = BinsHead(mean, scale.clamp_min(1e-6), weight, bias, max_depth)
    optimiser = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        drawn = torch.randperm(len(usable), generator=generator)[:IMAGES_A_STEP].tolist()
        chosen = [usable[n] for n in drawn]
        truth = torch.from_numpy(np.stack([targets[n] for n in chosen]))  # (b, R, R)
        known = known_depths(truth, max_depth)
        guess = head(patches[chosen].float(), cls[chosen].float(), truth.shape[-1])
        loss = scale_invariant_loss(guess[known], truth[known])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return BinsHead(head.mean, head.scale, weight.detach(), bias.detach(), max_depth)


def _beside_cls(patches: Tensor, cls: Tensor) -> Tensor:
    """(B, N, D), (B, D) -> (B, N, 2 * D)"""
    return torch.cat([patches, cls[:, None].to(patches.dtype).expand_as(patches)], -1)


def known_depths(truth: Tensor, max_depth: float) -> Tensor:
    """Which pixels of a map of metres count."""
    return truth.isfinite() & (truth > 0) & (truth <= max_depth)
