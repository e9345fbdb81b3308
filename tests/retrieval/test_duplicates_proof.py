"""The proof's arithmetic against slow twins: images laid in eight positions, one step of refinement, a small filter."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from indexer.images.metadata import content_id
from retrieval.duplicates import proof
from retrieval.duplicates.appearance import FILTER_PIXELS, TAPS, _small_filter
from retrieval.duplicates.thumbnails import Thumbnails
from retrieval.geometry import _square


def smooth(count: int, side: int, seed: int) -> Tensor:
    """Noise of two sizes, (count, 1, side, side) in [0, 255]."""
    rng = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.rand(count, 1, cells, cells, generator=rng) for cells in (5, 13))
    grown = [torch.nn.functional.interpolate(one, (side, side), mode="bicubic") for one in (coarse, fine)]
    return (128 * grown[0] + 90 * grown[1]).clamp(0, 255)


def test_the_start_is_the_hypothesis_that_correlates_best() -> None:
    second = smooth(8, proof.COARSE, 0)
    ways = torch.eye(3)[None, :2].repeat(8, 1, 1)
    ways[:, :, :2] *= torch.linspace(0.5, 0.9, 8)[:, None, None]
    ways[:, :, 2] = torch.linspace(0.1, 0.05, 8)[:, None]
    _, frame, _ = proof._overlaid(second, second, ways)  # a larger part of each next image
    every = ways.expand(8, -1, -1, -1)  # (8, 8, 2, 3), of which the n-th is right for the n-th pair
    start, score = proof.best_start(frame[:, 0], second[:, 0], every)
    slow = torch.stack(
        [
            proof._correlations(*proof._overlaid(frame, second, ways[n].expand(8, -1, -1)), proof.COARSE_WINDOW)[:, 0]
            for n in range(8)
        ],
        1,
    )
    assert torch.allclose(score, slow.amax(1), atol=1e-5) and bool((score > 0.95).all())
    assert torch.equal(slow.argmax(1), torch.arange(8)) and torch.equal(start, ways)


def test_a_step_solves_the_normal_equations_of_all_six_slopes() -> None:
    frame, moving = smooth(3, 32, 1), smooth(3, 32, 1).roll(1, -1)
    transform = torch.eye(3)[None, :2].repeat(3, 1, 1)
    found = proof.refined(frame, moving, transform, 1)

    still = proof.normalised(frame, 2 * proof.WINDOW + 1)
    _, warped, inside = proof._overlaid(still, moving, transform)
    warped = proof.normalised(warped, 2 * proof.WINDOW + 1)
    middle = (torch.arange(32) + 0.5) / 32
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    basis = torch.stack([x, y, torch.ones_like(x)])
    slopes = torch.cat(proof._gradients((still + warped) / 2), 1) * 32
    slopes = (slopes[:, :, None] * basis).flatten(1, 2).flatten(2)  # (B, 6, S * S)
    weighted = slopes * (inside / (1 + ((still - warped) / proof.FAR).square()).square()).flatten(2)
    normal = weighted @ slopes.mT
    normal = normal + (1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-6) * torch.eye(6)
    step = torch.linalg.solve(normal, weighted @ (still - warped).flatten(2).mT).view(-1, 2, 3)
    step = step * (0.1 / step.abs().amax((1, 2), keepdim=True).clamp(min=0.1))
    slow = (_square(transform) @ _square(step + torch.eye(3)[:2]))[:, :2]
    assert torch.allclose(found, slow, atol=1e-5) and not torch.allclose(found, transform, atol=1e-3)


def test_a_small_filter_is_found_from_some_rows_of_a_large_image() -> None:
    source = 255 * torch.rand(600, 600, generator=torch.Generator().manual_seed(3))
    assert source.numel() > 3 * FILTER_PIXELS
    kernel = torch.zeros(TAPS, TAPS)
    kernel[1:4, 1:4] = torch.tensor([[1.0, 2, 0], [2, 6, 2], [0, 2, 1]]) / 16
    target = conv2d(pad(source[None, None], (2,) * 4, mode="replicate"), kernel[None, None])[0, 0]
    taps, left = _small_filter(source, target, torch.ones_like(source))
    assert torch.allclose(taps, kernel, atol=0.02) and left < 0.05


def test_thumbnails_are_kept_in_every_size(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)).save(path)
    thumbnails = Thumbnails(1, workers=1)
    assert list(thumbnails.read([(7, str(path), content_id(path.read_bytes()))])) == [1]
    squares, full = thumbnails.squares([7, 7]), thumbnails.of([7])
    for side in proof.HOPEFUL:
        assert torch.equal(squares(torch.tensor([1]), side), avg_pool2d(full[:, None], proof.SIDE // side)[:, 0])
