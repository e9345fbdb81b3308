"""Images that have the statistics of photos, drawn the same way every time: what 8-bit scales are measured on.

Shapes of all sizes that hide each other ("dead leaves", Lee, Mumford and Huang, 2001), some of them striped, all with
a texture as clouds have it.
"""

import math

import numpy as np
import torch
from torch import Tensor

SHAPES = 160
SMALLEST_PX = 3.0
MEAN, STD = 0.45, 0.226  # of photos, about


def calibration_images(count: int, side: int) -> Tensor:
    """(count, 3, side, side) float32, with the mean and deviation of photos taken out."""
    rng = np.random.default_rng(0)
    images = np.stack([_leaves(rng, side) for _ in range(count)])
    return torch.from_numpy((images - MEAN) / STD).float()


def _leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """(3, side, side) in [0, 1]."""
    texture = _clouds(rng, side)  # (2, side, side)
    image = np.clip(0.5 + 0.25 * rng.normal(size=(3, 1, 1)) + 0.25 * texture[:1], 0, 1)
    image = np.broadcast_to(image, (3, side, side)).copy()
    for number in range(SHAPES):
        radius = SMALLEST_PX / max(rng.uniform(), 2 * SMALLEST_PX / side)  # as many of each size as photos have
        row, col = rng.uniform(0, side, 2)
        stretch, angle = math.exp(0.5 * rng.normal()), rng.uniform(0, math.pi)
        reach = radius * max(stretch, 1 / stretch) * 1.5
        top, bottom = max(0, int(row - reach)), min(side, int(row + reach) + 1)
        left, right = max(0, int(col - reach)), min(side, int(col + reach) + 1)
        y, x = np.mgrid[top:bottom, left:right] - np.array([row, col])[:, None, None]
        along = (x * math.cos(angle) + y * math.sin(angle)) / stretch
        across = (y * math.cos(angle) - x * math.sin(angle)) * stretch
        if rng.uniform() < 0.5:
            inside = np.maximum(np.abs(along), np.abs(across)) < radius
        else:
            inside = np.hypot(along, across) < radius
        fill = (
            rng.uniform()
            + 0.25 * rng.normal(size=(3, 1, 1))
            + rng.uniform(0, 0.2) * texture[number % 2, top:bottom, left:right]
        )
        if rng.uniform() < 0.3:
            fill = fill + 0.3 * np.sign(np.sin(along * rng.uniform(0.2, 2)))
        part = image[:, top:bottom, left:right]
        part[:, inside] = np.clip(fill, 0, 1)[:, inside]
    return image


def _clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Two textures of all sizes alike, (2, side, side), of mean 0 and deviation 1."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    spectrum = rng.normal(size=(2, *frequency.shape)) + 1j * rng.normal(size=(2, *frequency.shape))
    spectrum[:, 0, 0] = 0
    clouds = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / side), s=(side, side))
    return clouds / clouds.std(axis=(1, 2), keepdims=True)
