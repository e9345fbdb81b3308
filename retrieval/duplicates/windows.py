"""Means over windows and Gaussian blur of large planes, from sums of shifted planes.

torch's own pooling and convolution of a single channel take 5 to 30 times as long on a CPU. A window of 19 is five
additions: of two pixels, of two such sums, and so on, as 19 = 1 + 2 + 16 in binary.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

# B images or none, H rows, W columns


def window_means(images: Tensor, width: int) -> Tensor:
    """The mean of each whole window of `width` x `width`.  (..., H, W) -> (..., H - width + 1, W - width + 1)"""
    return _sums(_sums(images, width, -1), width, -2) / width**2


def means_around(images: Tensor, width: int) -> Tensor:
    """Each pixel's mean over the window of an odd `width` around it, of which only what lies in the image counts.

    (..., H, W) -> (..., H, W)
    """
    reach = width // 2
    for dim in (-1, -2):
        length = images.shape[dim]
        padded = pad(images, (reach, reach) if dim == -1 else (0, 0, reach, reach))
        at = torch.arange(length)
        count = (at + reach).clamp(max=length - 1) - (at - reach).clamp(min=0) + 1
        images = _sums(padded, width, dim) / (count if dim == -1 else count[:, None])
    return images


def half_overlapping_means(images: Tensor, width: int) -> Tensor:
    """Means of windows of an even `width` that overlap by half.

    (..., H, W) -> (..., 2 * H // width - 1, 2 * W // width - 1)
    """
    quarters = avg_pool2d(images.reshape(-1, 1, *images.shape[-2:]), width // 2)
    quarters = quarters.view(*images.shape[:-2], *quarters.shape[-2:])
    across = quarters[..., 1:] + quarters[..., :-1]
    return (across[..., 1:, :] + across[..., :-1, :]) / 4


def blurred(plane: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (H, W) by `sigma` pixels; 0 is none. The border's pixels are repeated beyond it."""
    if not sigma:
        return plane
    reach = max(1, math.ceil(2.5 * sigma))
    weights = torch.exp(-((torch.arange(reach + 1) / sigma) ** 2) / 2)
    first, *others = (weights / (weights[0] + 2 * weights[1:].sum())).tolist()
    plane = pad(plane[None, None], (reach,) * 4, mode="replicate")[0, 0]
    for dim in (1, 0):
        length = plane.shape[dim] - 2 * reach
        total = plane.narrow(dim, reach, length) * first
        for away, weight in enumerate(others, start=1):
            beside = plane.narrow(dim, reach - away, length) + plane.narrow(dim, reach + away, length)
            total.add_(beside, alpha=weight)
        plane = total
    return plane


def _sums(images: Tensor, width: int, dim: int) -> Tensor:
    """Sums of `width` neighbours along a dimension, which gets `width` - 1 shorter."""
    length = images.shape[dim] - width + 1
    total, start, size = None, 0, 1
    while size <= width:
        if width & size:
            part = images.narrow(dim, start, length)
            total = part if total is None else total + part
            start += size
        size *= 2
        if size <= width:  # sums of `size` neighbours from those of half as many
            left = images.shape[dim] - size // 2
            images = images.narrow(dim, 0, left) + images.narrow(dim, size // 2, left)
    assert total is not None
    return total
