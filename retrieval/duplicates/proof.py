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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from ..geometry import _area, _square, inverse
from .windows import half_overlapping_means, means_around, window_means

# B pairs of images, H hypotheses for each, S pixels on a side

SIDE = 192  # pixels of a thumbnail's sides
COARSE = 32  # and of the one on which hypotheses are compared,
COARSE_WINDOW = 7  # by windows of so many pixels
WINDOW = 9  # pixels of a window's sides
LEAST_DEVIATION = 2.5  # grey levels; a window with less in either image shows nothing
LEAST_SHOWN = 0.02  # share of the windows that must show something
# Refinement begins on small thumbnails: they can come from further away. Before it and after so many steps a pair is
# given up where it correlates less than the first number, or less than the second one together with what
# is known of it beforehand (`evidence`). Of 2,571 made copies of both halves the least alone are .174, .249, .379, .458
# and .512 on 32 pixels, .362, .493 and .600 on 64; with evidence .356, .515, .569, .574, .569 and .572, .685, .719. Of
# other photos of like subjects 66 % are turned away within two steps, 80 % on 32 pixels and 98 % on 64.
LEAST_COARSE = (0.12, 0.31)  # of the start, in smaller windows; of those copies the least are .167 and .351
HOPEFUL = {
    32: {0: (0.14, 0.31), 2: (0.2, 0.47), 4: (0.32, 0.53), 8: (0.41, 0.53), 12: (0.46, 0.53)},
    64: {0: (0.3, 0.53), 4: (0.44, 0.63), 8: (0.54, 0.66)},
    96: {5: (0.5, 0.5)},
    SIDE: {4: (-1.0, -1.0)},
}
FAR = 1.2  # normalised grey levels: what differs by more does not pull (a caption, somebody who walked on)
BLOCK = 24  # pixels of the blocks whose drift is measured, half of which overlap
LEAST_BLOCKS = 10  # that must have structure in both directions
# Of images of fewer pixels than a thumbnail has a block shows little, and a JPEG's own blocks are large in it. So from
# so few pixels on blocks are twice as wide. Of 150 photos of 64 and 96 pixels, saved again at a JPEG quality of 40, .79
# and .99 are copies in place of .01 and .81; of 69 second photos of paintings 8 and 10 in place of 1 and 4 (5 at full
# size).
SMALL = 110**2
SQUARE = ([0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2])  # which products of x, y and 1 a symmetric matrix of them holds,
ENTRIES = torch.tensor([[0, 1, 2], [1, 3, 4], [2, 4, 5]])  # and where; the same
SLOPES = torch.tensor([[0, 1], [1, 2]])  # of the two slopes
STRUCTURE = 0.01  # least eigenvalue of a block's mean squared slopes


# Gives some of B images, by their places (L,), as grey squares: (L, side, side) float32 in [0, 255]
Squares = Callable[[Tensor, int], Tensor]


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


def best_start(first: Tensor, second: Tensor, hypotheses: Tensor) -> tuple[Tensor, Tensor]:
    """The hypothesis under which each pair's coarse thumbnails correlate best, and how well.

    first, second  (B, C, C)     grey thumbnails of COARSE pixels, float32 in [0, 255]
    hypotheses     (B, H, 2, 3)  transforms
    returns        (B, 2, 3), (B,)
    """
    count, tried = hypotheses.shape[:2]
    frame = first[:, None]
    _, warped, inside = _overlaid(frame, second[:, None].repeat_interleave(tried, 0), hypotheses.flatten(0, 1))
    warped, inside = (one.view(count, tried, COARSE, COARSE) for one in (warped, inside))
    score, best = _correlations(frame, warped, inside, COARSE_WINDOW).max(1)
    return hypotheses[torch.arange(count), best], score


def hopeful(correlation: Tensor, evidence: Tensor, least: tuple[float, float]) -> Tensor:
    """Whether what pairs (B,) have come to is enough to go on.  (B,) bool"""
    return (correlation >= least[0]) & (correlation + evidence >= least[1])


def fit_affine(first: Squares, second: Squares, start: Tensor, evidence: Tensor, small: Tensor) -> Fits:
    """Refine transforms on the pixels of B pairs of images, and judge what they bring together.

    start     (B, 2, 3)
    evidence  (B,)  what else speaks for each pair, in terms of correlation; 1 where it is to be looked at in any case
    small     (B,)  bool, whether one of them has at most SMALL pixels

    A pair that does not come close enough on its way is given up: its correlation is what it had come to, its drift
    infinite. Most are on the smallest squares, so only what is left is asked for on larger ones.
    """
    zoom = _area(start).abs().clamp(1 / 64, 64)  # of the second image, in its own pixels
    swap = zoom < 1  # the image that shows the shared part smaller is the frame, the other one is shrunk to it
    transform = torch.where(swap[:, None, None], inverse(start), start)
    softer = torch.where(swap, 1 / zoom, zoom).sqrt().clamp(1, 8).log2().round().long()  # halvings of the moving one
    count = len(start)
    correlation, drift, covered = torch.full((count,), -1.0), torch.full((count,), torch.inf), torch.zeros(count)
    alive = torch.arange(count)
    for side in HOPEFUL:
        frame, moving = _laid_out(first, second, swap, softer, alive, side)
        transform[alive], correlation[alive], left = _refined_while_hopeful(
            frame, moving, transform[alive], evidence[alive], HOPEFUL[side]
        )
        alive, frame, moving = alive[left], frame[left], moving[left]
        if not alive.numel():
            break
        if side == SIDE:
            frame, warped, inside = _overlaid(frame, moving, transform[alive])
            covered[alive] = inside.mean((1, 2, 3))
            for these, block in ((small[alive], 2 * BLOCK), (~small[alive], BLOCK)):
                drift[alive[these]] = _drift(frame[these], warped[these], inside[these], block)
    of_moving = (covered * _area(transform).abs()).clamp(max=1)
    overlap = torch.stack([torch.where(swap, of_moving, covered), torch.where(swap, covered, of_moving)], 1)
    transform = torch.where(swap[:, None, None], inverse(transform), transform)
    return Fits(transform, correlation, drift, overlap)


def _laid_out(
    first: Squares, second: Squares, swap: Tensor, softer: Tensor, at: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """Of some pairs the frames and the images that are moved onto them, blurred as shrinking them would.

    swap, softer  (B,)  whether the second is the frame; how often the other one is to be halved
    at            (L,)  int64, which pairs
    returns       (L, 1, side, side) each
    """
    frame, moving = torch.empty(len(at), side, side), torch.empty(len(at), side, side)
    for swapped, (still, moved) in ((False, (first, second)), (True, (second, first))):
        here = (swap[at] == swapped).nonzero()[:, 0]
        frame[here] = still(at[here], side)
        for halvings in softer[at[here]].unique().tolist():
            these = here[softer[at[here]] == halvings]
            if halvings:
                blurred = means_around(moved(at[these], SIDE), 2**halvings + 1)
                moving[these] = avg_pool2d(blurred[:, None], SIDE // side)[:, 0]
            else:
                moving[these] = moved(at[these], side)
    return frame[:, None], moving[:, None]


def _refined_while_hopeful(
    frame: Tensor, moving: Tensor, start: Tensor, evidence: Tensor, least_after: Mapping[int, tuple[float, float]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The better of each start and what refinement makes of it, its correlation, and which pairs are still hopeful.

    frame, moving  (B, 1, S, S)
    least_after    by steps
    returns        (B, 2, 3), (B,), (L,) int64
    """
    at_start = _correlation(*_overlaid(frame, moving, start))
    moved, reached, correlation = start.clone(), at_start, at_start
    left, done = torch.arange(len(frame)), 0
    for steps, least in least_after.items():
        if steps:
            moved[left] = refined(frame[left], moving[left], moved[left], steps - done)
            reached = reached.index_put((left,), _correlation(*_overlaid(frame[left], moving[left], moved[left])))
            correlation, done = torch.maximum(at_start, reached), steps  # refinement may run away
        left = left[hopeful(correlation[left], evidence[left], least)]
        if not left.numel():
            break
    transform = torch.where((reached > at_start)[:, None, None], moved, start)
    return transform, correlation, left


def better(frame: Tensor, moving: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Of two transforms for each pair the one under which it correlates better: refinement may run away."""
    scores = [_correlation(*_overlaid(frame, moving, transform)) for transform in (one, other)]
    return torch.where((scores[1] > scores[0])[:, None, None], other, one)


def _overlaid(frame: Tensor, moving: Tensor, transform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The frame, the other image as it lies on it, and where it does.  (B, 1, S, S) each"""
    places = 2 * pixels_moved(transform, *frame.shape[-2:]) - 1  # (B, S, S, 2)
    across, down = (places.abs() < 1).unbind(-1)
    inside = (across & down)[:, None]
    warped = grid_sample(moving, places, align_corners=False, padding_mode="border")
    return frame, warped, inside.float()


def pixels_moved(transform: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of a frame lie in the other image, in fractions of it.  (B, 2, 3) -> (B, H, W, 2)"""
    x = (torch.arange(width, dtype=torch.float32) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    by_x, by_y, shift = transform[:, None, None].unbind(-1)  # (B, 1, 1, 2) each
    return by_x * x[:, None] + (by_y * y[:, None, None] + shift)


def _correlation(frame: Tensor, warped: Tensor, inside: Tensor) -> Tensor:
    """Mean correlation in windows, -1 where too few show anything.  (B, 1, S, S) each -> (B,)"""
    return _correlations(frame, warped, inside, WINDOW)[:, 0]


def _correlations(frame: Tensor, warped: Tensor, inside: Tensor, window: int) -> Tensor:
    """The same of H images on one frame each, in windows of a size.  (B, 1, S, S), (B, H, S, S) twice -> (B, H)"""
    (of_frame, variance), (of_warped, other) = (_moments(one, window) for one in (frame, warped))
    whole = window_means(inside, window) > 0.999
    shared = window_means(frame * warped, window) - of_frame * of_warped
    floor = LEAST_DEVIATION**2
    correlation = shared / ((variance + floor / 4) * (other + floor / 4)).sqrt()
    shows = (whole & (torch.maximum(variance, other) > floor)).float()
    share = shows.mean((-2, -1)).clamp(min=1e-9)
    average = (correlation * shows).mean((-2, -1)) / share
    return torch.where(share >= LEAST_SHOWN, average, -1.0)


def _moments(images: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each window.  (..., S, S) -> (..., W, W) each"""
    mean = window_means(images, window)
    return mean, (window_means(images.square(), window) - mean.square()).clamp(min=0)


def _drift(frame: Tensor, warped: Tensor, inside: Tensor, block: int) -> Tensor:
    """How far blocks of the one would have to move to fit the other better: one step of Lucas and Kanade for each.

    Returns the median over the blocks that have structure in both directions.  (B,)
    """
    frame, warped = (normalised(means_around(one, 3), WINDOW + 2) for one in (frame, warped))
    x, y = _gradients((frame + warped) / 2)
    difference = frame - warped
    safe = (avg_pool2d(inside, WINDOW + 2, 1, (WINDOW + 2) // 2) > 0.999).float()

    def summed(values: Tensor) -> Tensor:
        return half_overlapping_means(values * safe, block)

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
    monomials = (basis[SQUARE[0]] * basis[SQUARE[1]]).flatten(1).mT  # (S * S, 6)
    basis = basis.flatten(1).mT  # (S * S, 3)
    for _ in range(steps):
        _, warped, inside = _overlaid(frame, moving, transform)
        warped = normalised(warped, 2 * WINDOW + 1)
        x_slope, y_slope = _gradients((frame + warped) / 2)  # a pixel
        difference = frame - warped  # (B, 1, S, S)
        weight = inside / (1 + (difference / FAR).square()).square()  # Geman and McClure's
        by_x, by_y = weight * x_slope, weight * y_slope
        squares = torch.cat([by_x * x_slope, by_x * y_slope, by_y * y_slope], 1).flatten(2) @ monomials  # (B, 3, 6)
        pulls = torch.cat([by_x * difference, by_y * difference], 1).flatten(2) @ basis  # (B, 2, 3)
        blocks = squares[:, SLOPES][..., ENTRIES]  # (B, 2, 2, 3, 3)
        normal = (
            blocks.transpose(2, 3).flatten(3).flatten(1, 2) * side**2
        )  # (B, 6, 6), slopes per fraction of the frame
        normal = (
            normal + 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(6) + 1e-6 * torch.eye(6)
        )
        step = torch.linalg.solve(normal, pulls.flatten(1)[..., None] * side)  # (B, 6, 1)
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
