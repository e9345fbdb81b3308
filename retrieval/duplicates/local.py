"""Whether a copy differs from its original somewhere: a number, a word, a selected row, a face.

The proof in pixels looks at small grey squares, in which two screenshots that differ in one digit are the same. So what
is to be given up is compared once more at full resolution: both images are laid on each other, the sharper one is
blurred to the other's sharpness and toned like it, and what remains is looked at in small windows.

Surprising: no fixed threshold says how much may remain. A strong recompression leaves more in every window than a
changed digit does in a clean file. What is expected is therefore learnt from the pair itself, by how much structure a
window holds: a copy leaves about as much in all windows of the same kind, a change leaves more in a few. Where what is
expected is so much that a change could hide in it, the answer is that it cannot be told.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d

from ..geometry import inverse, zoom
from .appearance import Toned, equally_sharp, in_tone_of
from .proof import better, pixels_moved, refined
from .windows import blurred, half_overlapping_means

# H, W of the frame: the image that shows the shared part with fewer pixels

MOST_PIXELS = 12_000_000  # of the frame; larger ones are shrunk to it
REFINED_ON = (384, 768)  # sides of the squares on which the alignment is refined, up to the frame's own size
REFINE_STEPS = 4
WINDOWS = (8, 16, 40)  # pixels of the sides of windows
FLOOR = 3.0  # grey levels that may remain in any window
LEAST_RATIO = 0.10  # of a window's structure that may remain in any window
LEAST_SLOPE = 0.4  # of a tone curve; where it is flatter a difference is hidden, but not all of a large one
MOST_GROWN = 4.0  # times, that a tone's steepness excuses: a larger slope is a misfit
ONE_TONE = 0.3  # of an image in a single one of TONES shades, as in a page: there a curve's slope is a guess
TONES = 32
KINDS = 24  # of windows, by structure
# chosen on drawn documents and photos, duplicates_local.py
DIFFERS = 4.0  # times what is expected, from which on a window differs
GROWN = 0.6  # of that, up to which its surroundings belong to the place
BLIND = 0.75  # of a window's structure, from which on a change could hide in what is expected
VISIBLE = 8.0  # grey levels, under which what is expected hides nothing that a reader would see
MOST_PLACES = 8  # that are named
EDGE = 3  # pixels at the border of what is shared that are not looked at


PixelBox = tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class Place:
    """Where two images differ, in fractions of the first and of the second."""

    in_first: PixelBox
    in_second: PixelBox


@dataclass(frozen=True)
class Local:
    """What the comparison says.

    places    where they differ, the plainest first; empty where they do not, or where it cannot be told
    strength  of the plainest difference, in times of what is expected; 1 and less for a copy
    blind     what is expected, as a share of a window's structure: at BLIND and above it cannot be told
    """

    places: tuple[Place, ...]
    strength: float
    blind: float

    @property
    def can_tell(self) -> bool:
        return self.blind < BLIND


@dataclass(frozen=True, eq=False)
class Measured:
    """How much more two images differ than is expected, window by window.

    excess  of each size of window: (h, w), in times of what is expected
    size    height and width of the frame in pixels
    way     (1, 2, 3), from fractions of the frame to fractions of the other image
    swap    whether the frame is the second image
    blind   as in Local
    """

    excess: tuple[Tensor, ...]
    size: tuple[int, int]
    way: Tensor
    swap: bool
    blind: float

    @property
    def bytes(self) -> int:
        return sum(4 * one.numel() for one in self.excess)

    def told(self) -> Local:
        """Where they differ, as far as it can be told."""
        strength = self._strength()
        places = tuple(_place(box, self.way, self.size, self.swap) for box in _boxes(strength.numpy()))
        return Local(places, float(strength.max()), self.blind)

    def within(self, boxes: Sequence[PixelBox], of_second: bool) -> float:
        """The plainest difference in some boxes in fractions of the first image, or of the second; 0 where none is."""
        to_frame = torch.eye(3)[None, :2] if of_second == self.swap else inverse(self.way)
        strength = self._strength()
        asked = [_part(strength, _moved(box, to_frame)) for box in boxes]
        return max((float(part.max()) for part in asked if part.numel()), default=0.0)

    def _strength(self) -> Tensor:
        """At each pixel of the frame.  (H, W)"""
        strength = torch.zeros(self.size)
        for excess in self.excess:
            spread = torch.nn.functional.interpolate(excess[None, None], size=self.size, mode="nearest")[0, 0]
            strength = torch.maximum(strength, spread)
        return strength


def compare_locally(first: Image.Image, second: Image.Image, transform: np.ndarray) -> Local:
    """Compare what two RGB images share.

    transform  (2, 3)  from fractions of the first to fractions of the second, as the proof found it
    """
    return measure_locally(first, second, transform).told()


def measure_locally(first: Image.Image, second: Image.Image, transform: np.ndarray) -> Measured:
    """The same, for whoever asks more than once."""
    larger = max(zoom(transform, first.size, second.size), 1e-3)
    swap = larger < 1
    frame, moving = (second, first) if swap else (first, second)
    way = torch.from_numpy(np.asarray(transform, np.float32))[None]
    way = inverse(way) if swap else way
    share = min(1.0, math.sqrt(MOST_PIXELS / (frame.width * frame.height)))
    frame = _sized(frame, share)
    moving = _sized(moving, share * (larger if swap else 1 / larger))
    way = _refined_on_squares(frame, moving, way)
    colours, others = _planes(frame), _planes(moving)  # (3, H, W)
    warped, inside = _warped(others, way, colours.shape[1:])
    inside = 1 - max_pool2d(1 - inside[None], 2 * EDGE + 1, 1, EDGE)[0]  # (1, H, W)
    excess, blind = _differences(colours, warped, inside[0])
    return Measured(excess, (frame.height, frame.width), way, swap, blind)


def _part(values: Tensor, box: PixelBox) -> Tensor:
    """What of (H, W) lies in a box."""
    height, width = values.shape
    rows = slice(math.floor(box[1] * height), math.ceil((box[1] + box[3]) * height))
    return values[rows, math.floor(box[0] * width) : math.ceil((box[0] + box[2]) * width)]


def _sized(image: Image.Image, share: float) -> Image.Image:
    """Shrunk by a share, never enlarged."""
    if share >= 0.995:
        return image
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _refined_on_squares(frame: Image.Image, moving: Image.Image, way: Tensor) -> Tensor:
    """The proof's transform (1, 2, 3), which is right to a tenth of a pixel of a thumbnail, right to one of these."""
    for side in REFINED_ON:
        if side > 1.3 * max(frame.size):
            break
        one, other = (
            torch.from_numpy(np.asarray(image.convert("L").resize((side, side), Image.Resampling.BICUBIC), np.float32))[
                None, None
            ]
            for image in (frame, moving)
        )
        way = better(one, other, way, refined(one, other, way, REFINE_STEPS))
    return way


def _planes(image: Image.Image) -> Tensor:
    """Luma and both differences of colour.  (3, H, W) float32"""
    return torch.from_numpy(np.asarray(image.convert("YCbCr"), np.float32)).permute(2, 0, 1).contiguous()


def _warped(planes: Tensor, way: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """The planes as they lie on a frame of that size, (3, H, W), and where they do, (1, H, W)."""
    places = pixels_moved(way, *size)  # (1, H, W, 2)
    inside = ((places > 0) & (places < 1)).all(-1).float()
    moved = grid_sample(planes[None], 2 * places - 1, "bicubic", "border", align_corners=False)
    return moved[0].clamp(0, 255), inside


def _differences(frame: Tensor, warped: Tensor, inside: Tensor) -> tuple[tuple[Tensor, ...], float]:
    """What remains in each window, in times of what is expected, and how blind the comparison is; see Measured."""
    if float(inside.sum()) < 4 * min(WINDOWS) ** 2:
        return (), 1.0
    frame, warped = equally_sharp(frame, warped, inside)
    remains = _remains(frame, warped, inside)
    worst = torch.maximum(*(left.square().sum(0) for left in remains))
    energy = (frame[0] - blurred(frame[0], 4)).square() + (warped[0] - blurred(warped[0], 4)).square()
    found: list[Tensor] = []
    blind = 0.0
    for window in WINDOWS:
        if min(inside.shape) < window:
            continue
        whole = half_overlapping_means(inside, window) > 0.999
        if not bool(whole.any()):
            continue
        structure = (half_overlapping_means(energy, window) / 2).clamp(min=0).sqrt()
        rms = half_overlapping_means(worst, window).sqrt()
        expected, ratio = _expected(rms[whole], structure[whole], structure, LEAST_RATIO)
        blind = max(blind, ratio)
        found.append(rms / expected * whole)
    return tuple(found), blind


def _remains(frame: Tensor, warped: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """What remains between two images in one tone, both ways, for a colour that only one image has could be toned away,
    but not be made out of white.  (P, H, W) each, P = 1 where one is grey
    """
    grey = any(float((planes[1:] - 128).abs().mul(inside).sum() / inside.sum()) < 1 for planes in (frame, warped))
    targets = [planes[:1] if grey else planes for planes in (frame, warped)]
    toned = [in_tone_of(warped, targets[0], inside), in_tone_of(frame, targets[1], inside)]

    least = LEAST_SLOPE if all(_has_many_tones(planes[0], inside) for planes in (frame, warped)) else 1.0

    def left(this: Toned, other: Toned, target: Tensor) -> Tensor:
        # noise that the tone enlarged is no difference, nor in full what the tone of the other image flattened
        grown = torch.maximum(this.slope, 1 / other.slope.clamp(min=least)).clamp(1, MOST_GROWN)
        return (this.planes - target) / grown

    return left(toned[0], toned[1], targets[0]), left(toned[1], toned[0], targets[1])


def _has_many_tones(luma: Tensor, inside: Tensor) -> bool:
    """Whether a plane (H, W) is no drawing or page with one ground."""
    shades = torch.histc(luma[inside > 0], TONES, 0, 255)
    return float(shades.max() / shades.sum()) < ONE_TONE


def _expected(left: Tensor, structure: Tensor, everywhere: Tensor, least_ratio: float) -> tuple[Tensor, float]:
    """What may remain in each window, from what remains in most windows of as much structure; and that as a share of
    the structure where there is much.

    left, structure  (N,)    of the windows that count
    everywhere       (h, w)  structure of all
    least_ratio      of a window's structure that may remain in any case
    """
    bounds = torch.quantile(_sample(structure), torch.linspace(0, 1, KINDS + 1))[1:-1].unique()
    kind, kinds = torch.bucketize(structure, bounds), len(bounds) + 1
    middle = torch.zeros(kinds)
    typical = torch.zeros(kinds)
    for number in range(kinds):
        here = kind == number
        if bool(here.any()):
            middle[number], typical[number] = _sample(left[here]).quantile(0.6), structure[here].median()
    middle = middle.cummax(0).values
    floor = FLOOR + least_ratio * everywhere
    strong = typical >= typical.max() / 2
    share = middle[strong] / typical[strong].clamp(min=FLOOR)
    ratio = float((share * (middle[strong] >= VISIBLE)).median())
    return torch.maximum(middle[torch.bucketize(everywhere.flatten(), bounds)].view_as(everywhere), floor), ratio


def _sample(values: Tensor) -> Tensor:
    """At most 100,000 of them, evenly taken."""
    return values[:: 1 + len(values) // 100_000]


def _boxes(strength: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Connected places of a strength (H, W): left, top, right, bottom, the plainest first."""
    grid = 8
    rows, columns = (math.ceil(length / grid) for length in strength.shape)
    padded = np.zeros((rows * grid, columns * grid), np.float32)
    padded[: strength.shape[0], : strength.shape[1]] = strength
    cells = padded.reshape(rows, grid, columns, grid).max((1, 3))
    open_cells = cells >= DIFFERS * GROWN
    boxes = []
    for row, column in zip(*np.nonzero(cells >= DIFFERS), strict=True):
        if not open_cells[row, column]:
            continue
        waiting, reached, peak = [(row, column)], [], 0.0
        open_cells[row, column] = False
        while waiting:
            y, x = waiting.pop()
            reached.append((y, x))
            peak = max(peak, float(cells[y, x]))
            for beside in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= beside[0] < rows and 0 <= beside[1] < columns and open_cells[beside]:
                    open_cells[beside] = False
                    waiting.append(beside)
        low, high = np.min(reached, 0), np.max(reached, 0) + 1
        right, bottom = min(high[1] * grid, strength.shape[1]), min(high[0] * grid, strength.shape[0])
        boxes.append((peak, (int(low[1] * grid), int(low[0] * grid), int(right), int(bottom))))
    return [box for _, box in sorted(boxes, key=lambda one: -one[0])][:MOST_PLACES]


def _place(box: tuple[int, int, int, int], way: Tensor, size: tuple[int, int], swap: bool) -> Place:
    """A box in pixels of the frame as fractions of both images."""
    height, width = size
    left, top, right, bottom = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    here = (left, top, right - left, bottom - top)
    there = _moved(here, way)
    return Place(there, here) if swap else Place(here, there)


def _moved(box: PixelBox, way: Tensor) -> PixelBox:
    """The box around a box that a transform (1, 2, 3) moved."""
    left, top, width, height = box
    corners = np.array([(x, y, 1) for x in (left, left + width) for y in (top, top + height)])
    moved = corners @ way[0].numpy().astype(float).T
    low, high = moved.min(0).clip(0, 1), moved.max(0).clip(0, 1)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])
