"""Affine transforms of 2 x 3."""

import math

import numpy as np
import torch
from torch import Tensor


def inverse(transforms: Tensor) -> Tensor:
    """The transforms (B, 2, 3) back."""
    return torch.linalg.pinv(_square(transforms))[..., :2, :]


def inverse_numpy(transform: np.ndarray) -> np.ndarray:
    """The transform (2, 3) back."""
    return np.asarray(np.linalg.pinv(square(transform))[:2])


def _square(transforms: Tensor) -> Tensor:
    """(..., 2, 3) -> (..., 3, 3)"""
    last = torch.tensor([0.0, 0.0, 1.0]).expand(*transforms.shape[:-2], 1, 3)
    return torch.cat([transforms, last], -2)


def _area(transforms: Tensor) -> Tensor:
    return torch.linalg.det(transforms[..., :2])


def zoom(transform: np.ndarray, first: tuple[int, int], second: tuple[int, int]) -> float:
    """Pixels along a line in a second image for each in the first.

    transform      (2, 3)  from fractions of the first to fractions of the second
    first, second  width and height in pixels
    """
    return math.sqrt(abs(float(np.linalg.det(transform[:, :2]))) * math.prod(second) / math.prod(first))


def square(transform: np.ndarray) -> np.ndarray:
    """(2, 3) -> (3, 3)"""
    return np.vstack([transform, (0, 0, 1)])
