"""Brings two images that lie on each other to one sharpness and one tone, so that what remains is what they show.

Sharpness: the sharper one is blurred by the Gaussian that fits best, and then passed through the small linear filter
that fits best, which takes care of the resampling, of sharpening and of a shift by a fraction of a pixel.

Tone: each plane of the one is a sum of three curves, of the red, the green and the blue of the other. So gamma,
contrast with its clipping, saturation, a white balance and grey are no difference, whichever came last.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .windows import blurred

# H, W of the frame; N pixels; K knots of a curve; T taps of a filter

BLURS = (0.0, 0.6, 0.9, 1.3, 1.8, 2.5, 3.5, 5.0, 7.0)  # pixels, that one of the two may be softer by
SAMPLE = 512  # pixels of the sides of the part on which sharpness is compared
TAPS = 5  # of a side of the small filter
FILTER_PIXELS = 65_536  # on which it is fitted at most: 25 numbers need no more
FILTER_RIDGE = 0.02  # of the mean power, that pulls the small filter towards none
KNOTS = (
    0.0,
    8.0,
    16.0,
    32.0,
    64.0,
    96.0,
    128.0,
    160.0,
    192.0,
    224.0,
    256.0,
)  # of a curve; a gamma is steepest in black
TONE_SAMPLE = 180  # pixels along a line, on which curves are fitted
TONE_RIDGE = 1e-4  # of the number of pixels, that keeps curves from bending where there are none
TONE_STEPS = 5  # of reweighting: what the curves do not fit does not pull
TONE_SETTLED = 0.02  # levels; where no curve moves by more, further steps change nothing
FINE = 4  # entries of a table for each level
SLOPE_OVER = 8.0  # levels, over which a curve's slope is taken
TO_RED, TO_BLUE = 1.402, 1.772  # of Cr and Cb, JFIF
TO_GREEN = (-0.344136, -0.714136)


@dataclass(frozen=True)
class Toned:
    """The planes of one image in the other's tone.

    planes  (P, H, W)  in the other's levels
    slope   (H, W)     by how much small differences in luma, noise among them, grew or shrank
    """

    planes: Tensor
    slope: Tensor


def equally_sharp(frame: Tensor, warped: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Both images, one of them filtered until they fit best.

    frame, warped  (3, H, W)  luma and both differences of colour, in [0, 255]
    inside         (H, W)     1 where both are
    What is learnt is learnt from the middle of the frame.
    """
    rows, columns = (slice(max(0, length // 2 - SAMPLE // 2), length // 2 + SAMPLE // 2) for length in inside.shape)
    part = inside[rows, columns]
    base, other = frame[0, rows, columns], in_tone_of(warped, frame[:1], inside).planes[0, rows, columns]

    def misfit(one: tuple[float, int]) -> float:
        sigma, which = one
        one_blurred = blurred(base, sigma) if which == 0 else base
        other_blurred = blurred(other, sigma) if which == 1 else other
        return float(((one_blurred - other_blurred).abs() * part).mean() / one_blurred.std().clamp(min=1e-3))

    sigma, which = min(((sigma, which) for sigma in BLURS for which in (0, 1) if sigma or not which), key=misfit)
    pair = [frame, warped]
    if sigma:
        pair[which] = torch.stack([blurred(plane, sigma) for plane in pair[which]])
        base, other = (blurred(base, sigma), other) if which == 0 else (base, blurred(other, sigma))
    ways = [(which,)] if sigma else [(0,), (1,)]
    fitted = [_small_filter(*((base, other) if way == (0,) else (other, base)), part) for way in ways]
    taps, way = min(((taps, way[0], left) for (taps, left), way in zip(fitted, ways, strict=True)), key=lambda f: f[2])[
        :2
    ]
    pair[way] = torch.stack([_filtered(plane, taps) for plane in pair[way]])
    return pair[0], pair[1]


def _small_filter(source: Tensor, target: Tensor, inside: Tensor) -> tuple[Tensor, float]:
    """The filter (T, T) that brings a plane (H, W) nearest to another one, and what is left, over the structure."""
    reach = TAPS // 2
    height, width = (length - 2 * reach for length in source.shape)
    every = -(-height * width // FILTER_PIXELS)  # rows
    # (T * T, N) of some rows: their neighbours one by one, for `unfold` would copy those of all
    columns = torch.stack(
        [
            source[down : down + height : every, across : across + width].flatten()
            for down in range(TAPS)
            for across in range(TAPS)
        ]
    )
    within = (slice(reach, reach + height, every), slice(reach, reach + width))
    wanted, weight = target[within].flatten(), inside[within].flatten()
    mean = (wanted * weight).sum() / weight.sum().clamp(min=1)
    columns, wanted = columns - mean, wanted - mean
    start = torch.zeros(TAPS * TAPS)
    start[TAPS * TAPS // 2] = 1.0
    taps, weighted = start, torch.empty_like(columns)
    for _ in range(3):
        left = wanted - taps @ columns
        scale = float(left.abs().median()) * 2 + 2
        torch.mul(columns, weight / (1 + (left / scale).square()).square(), out=weighted)
        normal = weighted @ columns.mT
        ridge = FILTER_RIDGE * normal.diagonal().mean().clamp(min=1e-3)
        taps = torch.linalg.solve(normal + ridge * torch.eye(len(taps)), weighted @ wanted + ridge * start)
    remains = float(((wanted - taps @ columns).abs() * weight).mean())
    return taps.view(TAPS, TAPS), remains / max(float((wanted.abs() * weight).mean()), 1e-3)


def _filtered(plane: Tensor, taps: Tensor) -> Tensor:
    reach = TAPS // 2
    middle = plane.mean()
    padded = pad(plane[None, None] - middle, (reach,) * 4, mode="replicate")
    return conv2d(padded, taps[None, None])[0, 0] + middle


def in_tone_of(planes: Tensor, target: Tensor, inside: Tensor) -> Toned:
    """One image in another one's tone.

    planes  (3, H, W)  luma and both differences of colour
    target  (P, H, W)  the first P of them, of the other image
    inside  (H, W)     1 where both are
    """
    step = 1 + int(inside.numel() ** 0.5) // TONE_SAMPLE
    at = inside[::step, ::step] > 0
    colours = _rgb(planes)
    features = _hats(colours[:, ::step, ::step][:, at])  # (3 * K, N)
    tables = [_curves(features, plane[::step, ::step][at]) for plane in target]  # (3, entries) each
    index = (colours * FINE).round().long()  # (3, H, W)
    toned = torch.stack(
        [torch.stack([table[at] for table, at in zip(of, index, strict=True)]).sum(0) for of in tables]
    )  # (P, H, W)
    return Toned(toned, _slope(tables[0], index))


def _curves(features: Tensor, wanted: Tensor) -> Tensor:
    """Tables (3, 256 * FINE + 1) of the three curves whose sum is nearest to what is wanted (N,)."""
    count, middle = len(wanted), wanted.mean()
    bend = TONE_RIDGE * max(count, 1) * _bending()
    weight, solution = torch.ones_like(wanted), torch.zeros(len(features))
    for _ in range(TONE_STEPS):
        weighted = features * weight
        normal = (weighted @ features.mT + bend).double()
        before = solution
        solution = torch.linalg.solve(normal, (weighted @ (wanted - middle)).double()).float()
        if float((solution - before).abs().max()) < TONE_SETTLED:
            break
        left = (wanted - middle - solution @ features).abs()
        scale = float(left.median()) * 2 + 2
        weight = 1 / (1 + (left / scale).square()).square()
    levels = torch.arange(256 * FINE + 1) / FINE
    return (solution.view(3, len(KNOTS)) @ _hat(levels)) + middle / 3


def _slope(tables: Tensor, index: Tensor) -> Tensor:
    """How steep the curves of luma are at each pixel.  (H, W), 0 and more"""
    over = int(SLOPE_OVER * FINE)
    padded = pad(tables[None], (over, over), mode="replicate")[0]
    slopes = (padded[:, 2 * over :] - padded[:, : -2 * over]) / (2 * SLOPE_OVER)
    return torch.stack([slope[at] for slope, at in zip(slopes, index, strict=True)]).sum(0).abs()


def _rgb(planes: Tensor) -> Tensor:
    """(3, ...) in [0, 255]"""
    luma, blue, red = planes[0], planes[1] - 128, planes[2] - 128
    green = luma + TO_GREEN[0] * blue + TO_GREEN[1] * red
    return torch.stack([luma + TO_RED * red, green, luma + TO_BLUE * blue]).clamp(0, 255)


def _hats(colours: Tensor) -> Tensor:
    """The curves' basis at each pixel: (3, N) -> (3 * K, N)."""
    return torch.cat([_hat(channel) for channel in colours])


def _hat(levels: Tensor) -> Tensor:
    """Piecewise linear functions that are 1 at their own knot and 0 at all others: (N,) -> (K, N)."""
    knots = torch.tensor(KNOTS)
    right = torch.bucketize(levels.contiguous(), knots, right=True).clamp(1, len(knots) - 1)
    share = (levels - knots[right - 1]) / (knots[right] - knots[right - 1])
    hats = torch.zeros(len(knots), len(levels))
    hats.scatter_(0, (right - 1)[None], (1 - share)[None])
    return hats.scatter_(0, right[None], share[None])


def _bending() -> Tensor:
    """A quadratic form (3 * K, 3 * K) of three curves' values: how much their slopes change, and a little how large
    they are."""
    knots = torch.tensor(KNOTS)
    slopes = torch.zeros(len(knots) - 1, len(knots))
    for n in range(len(knots) - 1):
        width = (knots[n + 1] - knots[n]) / 32
        slopes[n, n], slopes[n, n + 1] = -1 / width, 1 / width
    change = slopes[1:] - slopes[:-1]
    one = change.mT @ change + 0.01 * torch.eye(len(knots))
    return torch.block_diag(one, one, one)
