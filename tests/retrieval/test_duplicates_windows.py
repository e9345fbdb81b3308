"""Means over windows and blur by shifted sums, against torch's own pooling and convolution."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from retrieval.duplicates.windows import blurred, half_overlapping_means, means_around, window_means


def planes(*shape: int) -> Tensor:
    return 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0))


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-5, atol=1e-3))


@pytest.mark.parametrize("width", [1, 2, 5, 9, 19, 21])
def test_whole_windows(width: int) -> None:
    images = planes(2, 1, 21, 33)
    assert close(window_means(images, width), avg_pool2d(images, width, 1))
    assert close(window_means(images[0, 0], width), avg_pool2d(images, width, 1)[0, 0])


@pytest.mark.parametrize("width", [1, 3, 9, 19, 43])
def test_windows_around_each_pixel_are_cut_at_the_border(width: int) -> None:
    images = planes(2, 1, 24, 31)
    expected = avg_pool2d(images, width, 1, min(width // 2, width), count_include_pad=False)
    assert close(means_around(images, width), expected)


@pytest.mark.parametrize("width", [2, 8, 16, 24])
def test_windows_that_overlap_by_half(width: int) -> None:
    for images in (planes(3, 1, 48, 71), planes(1, 1, 24, 24)):
        expected = avg_pool2d(images, width, width // 2)
        assert close(half_overlapping_means(images, width), expected)
        assert close(half_overlapping_means(images[0, 0], width), expected[0, 0])


@pytest.mark.parametrize("sigma", [0.0, 0.6, 1.3, 5.0])
def test_blur(sigma: float) -> None:
    plane = planes(30, 41)
    reach = max(1, math.ceil(2.5 * sigma))
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2) / 2)
    kernel = weights[:, None] * weights / weights.sum() ** 2
    expected = conv2d(pad(plane[None, None], (reach,) * 4, mode="replicate"), kernel[None, None])[0, 0]
    assert close(blurred(plane, sigma), expected)
