"""Proof in pixels: whether one image, moved, is the same photograph as another, or only shows the same thing.

Two photos of one cover, or two shots of a burst, agree in their patches as well as a photo and its copy do. What tells
them apart is detail: a copy lies on its original exactly, for it was moved by an affine transform and by nothing else,
while in a second photo, taken from a hand's breadth away, near and far have shifted. So the transform that the patches
suggest is refined until the pixels fit as well as they can. Then small windows of both are correlated, which does not
see brightness, contrast or tone, and it is measured how far each block would still have to drift to fit better: some
hundredths of a pixel in a copy, some tenths in the steadiest second photo. A caption or a thumb costs only the blocks
that it covers.

Every image is looked at as a small grey square, whatever its shape: an affine transform takes care of that as well.
Places are fractions of an image, x to the right and y down, and a transform (2, 3) carries (x, y, 1) of one image
to a place in the other. It may mirror.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from ..geometry import _area, _square, inverse
from .windows import half_overlapping_means, means_around, window_means

# B pairs of images, H hypotheses for each, S pixels on a side

SIDE = 192  # pixels of a thumbnail's sides
COARSE = 32  # and of the one on which hypotheses are compared
WINDOW = 9  # pixels of a window's sides
LEAST_DEVIATION = 2.5  # grey levels; a window with less in either image shows nothing
LEAST_SHOWN = 0.02  # share of the windows that must show something
STEPS = {32: 12, 64: 8, 96: 5, SIDE: 4}  # of refinement, on small thumbnails first: they can come from further away
HOPEFUL = {32: 0.35, 64: 0.5, 96: 0.5}  # correlation after them, under which a pair is not looked at any further
FAR = 1.2  # normalised grey levels: what differs by more does not pull (a caption, somebody who walked on)
BLOCK = 24  # pixels of the blocks whose drift is measured, half of which overlap
LEAST_BLOCKS = 10  # that must have structure in both directions
STRUCTURE = 0.01  # least eigenvalue of a block's mean squared slopes


@dataclass(frozen=True, eq=False)
class Fits:
    """How B second images lie on their first ones.

    transform    (B, 2, 3)  from fractions of the first to fractions of the second
    correlation  (B,)       mean over windows, in [-1, 1]; -1 where too little is shared to tell
    drift        (B,)       median over blocks, in pixels of a thumbnail; infinite where too few have structure
    overlap      (B, 2)     share of the first and of the second image that the other shows
    """

    transform: Tensor
    correlation: Tensor
    drift: Tensor
    overlap: Tensor


def best_of(first: Tensor, second: Tensor, hypotheses: Tensor) -> Tensor:
    """The hypothesis (B, 2, 3) under which each pair's coarse thumbnails correlate best.

    first, second  (B, S, S)     grey thumbnails, float32 in [0, 255]
    hypotheses     (B, H, 2, 3)  transforms
    """
    count, tried = hypotheses.shape[:2]
    one, other = (avg_pool2d(image[:, None], SIDE // COARSE).repeat_interleave(tried, 0) for image in (first, second))
    scores = _correlation(*_overlaid(one, other, hypotheses.flatten(0, 1)), window=7)  # (B * H,)
    best = scores.view(count, tried).argmax(1)
    return hypotheses[torch.arange(count), best]


def fit_affine(first: Tensor, second: Tensor, start: Tensor) -> Fits:
    """Refine the transforms (B, 2, 3) on the pixels of both images (B, S, S), and judge what they bring together."""
    zoom = _area(start).abs().clamp(1 / 64, 64)  # of the second image, in its own pixels
    swap = zoom < 1  # the image that shows the shared part smaller is the frame, the other one is shrunk to it
    transform = torch.where(swap[:, None, None], inverse(start), start)
    frame = torch.where(swap[:, None, None], second, first)[:, None]  # (B, 1, S, S)
    moving = torch.where(swap[:, None, None], first, second)[:, None]
    moving = _shrunk(moving, torch.where(swap, 1 / zoom, zoom).sqrt())
    correlation, drift = torch.full((len(frame),), -1.0), torch.full((len(frame),), torch.inf)
    covered = torch.zeros(len(frame))
    alive = torch.arange(len(frame))
    for side, steps in STEPS.items():
        small, beside = (avg_pool2d(image[alive], SIDE // side) for image in (frame, moving))
        moved = better(small, beside, transform[alive], refined(small, beside, transform[alive], steps))
        overlaid = _overlaid(small, beside, moved)
        transform[alive], correlation[alive] = moved, _correlation(*overlaid)
        covered[alive] = overlaid[2].mean((1, 2, 3))
        if side == SIDE:
            drift[alive] = _drift(*overlaid)
        alive = alive[correlation[alive] >= HOPEFUL.get(side, -1)]
        if not alive.numel():
            break
    of_moving = (covered * _area(transform).abs()).clamp(max=1)
    overlap = torch.stack([torch.where(swap, of_moving, covered), torch.where(swap, covered, of_moving)], 1)
    transform = torch.where(swap[:, None, None], inverse(transform), transform)
    return Fits(transform, correlation, drift, overlap)


def better(frame: Tensor, moving: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Of two transforms for each pair the one under which it correlates better: refinement may run away."""
    scores = [_correlation(*_overlaid(frame, moving, transform)) for transform in (one, other)]
    return torch.where((scores[1] > scores[0])[:, None, None], other, one)


def whole_turns() -> Tensor:
    """The eight ways to lay a whole image on a whole image: turned by quarters, mirrored or not.  (8, 2, 3)"""
    turns = []
    for a, b, c, d in ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)):
        for sign in (1, -1):
            linear = torch.tensor([[a * sign, b], [c * sign, d]], dtype=torch.float32)
            middle = torch.full((2,), 0.5)
            turns.append(torch.cat([linear, (middle - linear @ middle)[:, None]], 1))
    return torch.stack(turns)


def _overlaid(frame: Tensor, moving: Tensor, transform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The frame, the other image as it lies on it, and where it does.  (B, 1, S, S) each"""
    places = pixels_moved(transform, *frame.shape[-2:])  # (B, S, S, 2) in fractions
    inside = ((places > 0) & (places < 1)).all(-1)[:, None]
    warped = grid_sample(moving, 2 * places - 1, align_corners=False, padding_mode="border")
    return frame, warped, inside.float()


def pixels_moved(transform: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of a frame lie in the other image, in fractions of it.  (B, 2, 3) -> (B, H, W, 2)"""
    x = (torch.arange(width, dtype=torch.float32) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    by_x, by_y, shift = transform[:, None, None].unbind(-1)  # (B, 1, 1, 2) each
    return by_x * x[:, None] + (by_y * y[:, None, None] + shift)


def _correlation(frame: Tensor, warped: Tensor, inside: Tensor, window: int = WINDOW) -> Tensor:
    """Mean correlation in windows, -1 where too few show anything.  (B,)"""

    whole = window_means(inside, window) > 0.999
    of_frame, of_warped = window_means(frame, window), window_means(warped, window)
    variance = (window_means(frame.square(), window) - of_frame.square()).clamp(min=0)
    other = (window_means(warped.square(), window) - of_warped.square()).clamp(min=0)
    shared = window_means(frame * warped, window) - of_frame * of_warped
    floor = LEAST_DEVIATION**2
    correlation = shared / ((variance + floor / 4) * (other + floor / 4)).sqrt()
    shows = (whole & (torch.maximum(variance, other) > floor)).float()
    share = shows.mean((1, 2, 3)).clamp(min=1e-9)
    average = (correlation * shows).mean((1, 2, 3)) / share
    return torch.where(share >= LEAST_SHOWN, average, -1.0)


def _drift(frame: Tensor, warped: Tensor, inside: Tensor) -> Tensor:
    """How far blocks of the one would have to move to fit the other better: one step of Lucas and Kanade for each.

    Returns the median over the blocks that have structure in both directions.  (B,)
    """
    frame, warped = (normalised(means_around(one, 3), WINDOW + 2) for one in (frame, warped))
    x, y = _gradients((frame + warped) / 2)
    difference = frame - warped
    safe = (avg_pool2d(inside, WINDOW + 2, 1, (WINDOW + 2) // 2) > 0.999).float()

    def summed(values: Tensor) -> Tensor:
        return half_overlapping_means(values * safe, BLOCK)

    xx, yy, xy, dx, dy = (summed(one) for one in (x * x, y * y, x * y, x * difference, y * difference))
    determinant = (xx * yy - xy * xy).clamp(min=1e-9)
    step = ((yy * dx - xy * dy).square() + (xx * dy - xy * dx).square()).sqrt() / determinant
    least = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    usable = (summed(torch.ones_like(x)) > 0.8) & (least > STRUCTURE)
    median = torch.where(usable, step, torch.nan).flatten(1).nanmedian(1).values
    return torch.where(usable.flatten(1).sum(1) >= LEAST_BLOCKS, median, torch.inf)


def refined(frame: Tensor, moving: Tensor, transform: Tensor, steps: int) -> Tensor:
    """Gauss-Newton (Lucas and Kanade, 1981) on all six numbers of each transform, composed step by step.

    Both images are normalised as they lie on each other, for surroundings of other sizes would pull the transform
    away from where the pixels fit.
    """
    side = frame.shape[-1]
    frame = normalised(frame, 2 * WINDOW + 1)
    middle = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    basis = torch.stack([x, y, torch.ones_like(x)])  # (3, S, S)
    for _ in range(steps):
        _, warped, inside = _overlaid(frame, moving, transform)
        warped = normalised(warped, 2 * WINDOW + 1)
        slopes_at = torch.cat(_gradients((frame + warped) / 2), 1) * side  # (B, 2, S, S), per fraction of the frame
        difference = frame - warped  # (B, 1, S, S)
        weight = inside / (1 + (difference / FAR).square()).square()  # Geman and McClure's
        slopes = (slopes_at[:, :, None] * basis).flatten(1, 2).flatten(2)  # (B, 6, S * S)
        weighted = slopes * weight.flatten(2)
        normal = weighted @ slopes.mT  # (B, 6, 6)
        normal = (
            normal + 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(6) + 1e-6 * torch.eye(6)
        )
        step = torch.linalg.solve(normal, weighted @ difference.flatten(2).mT)  # (B, 6, 1)
        step = torch.nan_to_num(step.view(-1, 2, 3))
        step = step * (0.1 / step.abs().amax((1, 2), keepdim=True).clamp(min=0.1))  # never far in one go
        transform = (_square(transform) @ _square(step + torch.eye(3)[:2]))[:, :2]
    return transform


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes along x and y in grey levels a pixel.  (B, 1, S, S) each"""
    x, y = torch.zeros_like(images), torch.zeros_like(images)
    x[..., :, 1:-1] = (images[..., :, 2:] - images[..., :, :-2]) / 2
    y[..., 1:-1, :] = (images[..., 2:, :] - images[..., :-2, :]) / 2
    return x, y


def normalised(images: Tensor, around: int) -> Tensor:
    """Each pixel less its surroundings' mean, over their deviation: tone is gone, structure stays."""
    mean, square = means_around(images, around), means_around(images.square(), around)
    return (images - mean) / ((square - mean.square()).clamp(min=0) + LEAST_DEVIATION**2).sqrt()


def _shrunk(images: Tensor, zoom: Tensor) -> Tensor:
    """Each image blurred as shrinking it by its zoom (1 or more) would."""
    level = zoom.clamp(1, 8).log2().round().long()
    result = images.clone()
    for number in range(1, 4):
        at = (level == number).nonzero()[:, 0]
        if len(at):
            result[at] = means_around(images[at], 2**number + 1)
    return result
