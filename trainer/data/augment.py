"""Multi-crop augmentation: what is drawn for each crop, and the engine that does it with Pillow.

Drawing and doing are apart. `draw_views` decides everything by chance (box, flip, light, blur, ...) and writes it
into a table, one row a crop; two engines carry the same table out, Pillow here and torch in `augment_torch.py`. So
they have one distribution by construction, and a test can hold them together image by image. Order and constants
are those of DINOv2's augmentation: crop, flip, jitter in random order, grey, blur, solarise.

This module does not import torch: the decoder processes import it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageEnhance

ASPECT = (3 / 4, 4 / 3)  # of a crop's box, width over height
BRIGHTNESS = CONTRAST = 0.4  # factors are drawn from 1 - this to 1 + this
SATURATION = 0.2
HUE = 0.1  # turns of the colour wheel, either way
BLUR_SIGMA = (0.1, 2.0)  # pixels of the crop
BLUR_TAPS = 9
SOLARISE_FROM = 128  # brighter values are inverted
CROP_ATTEMPTS = 10
BRIGHTEN, CONTRASTEN, SATURATE, TURN_HUE = range(4)  # the numbers in a view's `order`

# One row of the table: what happens to one crop
VIEW = np.dtype(
    [
        ("top", "<i4"),  # the box, in pixels of the decoded image
        ("left", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("flip", "?"),
        ("jitter", "?"),  # whether the next five apply
        ("order", "<i4", (4,)),
        ("brightness", "<f4"),
        ("contrast", "<f4"),
        ("saturation", "<f4"),
        ("hue", "<f4"),
        ("grey", "?"),
        ("sigma", "<f4"),  # of the blur; 0: none
        ("solarise", "?"),
    ]
)


@dataclass(frozen=True)
class Crop:
    """One of the crops made of every image; probabilities in [0, 1]."""

    size: int  # pixels, side of the square
    scale: tuple[float, float]  # share of the image's area
    blur: float
    solarise: float


@dataclass(frozen=True)
class Augmentation:
    """Everything that the distribution of the crops follows from, besides this module's constants."""

    crops: tuple[Crop, ...]
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2

    @property
    def detail_px(self) -> int:
        """How far an image's shorter side may shrink before it is cropped, so that no crop is enlarged for it."""
        return max((math.ceil(crop.size / math.sqrt(crop.scale[0])) for crop in self.crops), default=1)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Augmentation":
        crops = tuple(Crop(**{**crop, "scale": tuple(crop["scale"])}) for crop in fields["crops"])
        return cls(**{**fields, "crops": crops})


# V crops of one image of H x W pixels
def draw_views(rng: np.random.Generator, height: int, width: int, augmentation: Augmentation) -> np.ndarray:
    """Draw what happens to each crop of one image.  (V,) VIEW

    A box has an area uniform in the crop's scale and the logarithm of its aspect uniform in ASPECT; the first of ten
    that fits into the image is taken, else the largest centred one of an aspect allowed.
    """
    crops = augmentation.crops
    chance = rng.random((len(crops), 2 * CROP_ATTEMPTS + 16))  # each use has its own columns
    areas, aspects, rest = np.split(chance, [CROP_ATTEMPTS, 2 * CROP_ATTEMPTS], axis=1)
    views = np.zeros(len(crops), VIEW)

    low, high = np.array([crop.scale for crop in crops]).reshape(-1, 2, 1).transpose(1, 0, 2)  # (V, 1) each
    area = height * width * (low + (high - low) * areas)  # (V, attempts)
    aspect = np.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspects)
    box_width = np.rint(np.sqrt(area * aspect)).astype(int)
    box_height = np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (box_width >= 1) & (box_width <= width) & (box_height >= 1) & (box_height <= height)
    row, first = np.arange(len(crops)), fits.argmax(1)
    found = fits[row, first]
    whole_height, whole_width = _largest_box(height, width)
    views["height"] = np.where(found, box_height[row, first], whole_height)
    views["width"] = np.where(found, box_width[row, first], whole_width)
    free_height, free_width = height - views["height"], width - views["width"]
    views["top"] = np.where(found, rest[:, 0] * (free_height + 1), free_height // 2)
    views["left"] = np.where(found, rest[:, 1] * (free_width + 1), free_width // 2)

    views["flip"] = rest[:, 2] < augmentation.flip
    views["jitter"] = rest[:, 3] < augmentation.jitter
    views["order"] = rest[:, 4:8].argsort(1)
    views["brightness"] = 1 + BRIGHTNESS * (2 * rest[:, 8] - 1)
    views["contrast"] = 1 + CONTRAST * (2 * rest[:, 9] - 1)
    views["saturation"] = 1 + SATURATION * (2 * rest[:, 10] - 1)
    views["hue"] = HUE * (2 * rest[:, 11] - 1)
    views["grey"] = rest[:, 12] < augmentation.grey
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * rest[:, 13]
    views["sigma"] = np.where(rest[:, 14] < [crop.blur for crop in crops], sigma, 0)
    views["solarise"] = rest[:, 15] < [crop.solarise for crop in crops]
    return views


def cut_with_pillow(pixels: np.ndarray, views: np.ndarray, crops: Sequence[Crop]) -> list[np.ndarray]:
    """Carry the table out on one image.

    pixels   (H, W, 3) uint8 RGB
    views    (V,) VIEW
    returns  V arrays (S, S, 3) uint8, S each crop's size
    """
    image = Image.fromarray(pixels)
    return [_distort(_cut(image, view, crop.size), view) for view, crop in zip(views, crops, strict=True)]


def blur_kernel(sigma: float) -> np.ndarray:
    """The weights of a Gaussian at BLUR_TAPS whole pixels, which sum to 1.  (T,) float32"""
    offsets = np.arange(BLUR_TAPS) - BLUR_TAPS // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def _largest_box(height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest box of an aspect allowed."""
    if width < ASPECT[0] * height:
        return max(1, round(width / ASPECT[0])), width
    if width > ASPECT[1] * height:
        return height, max(1, round(height * ASPECT[1]))
    return height, width


def _cut(image: Image.Image, view: np.void, size: int) -> Image.Image:
    top, left, height, width = (int(view[name]) for name in ("top", "left", "height", "width"))
    cut = image.crop((left, top, left + width, top + height))  # first: a crop does not see what is around it
    cut = cut.resize((size, size), Image.Resampling.BICUBIC)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view["flip"] else cut


def _distort(cut: Image.Image, view: np.void) -> np.ndarray:
    if view["jitter"]:
        for step in view["order"]:
            if step == BRIGHTEN:
                cut = ImageEnhance.Brightness(cut).enhance(float(view["brightness"]))
            elif step == CONTRASTEN:
                cut = ImageEnhance.Contrast(cut).enhance(float(view["contrast"]))
            elif step == SATURATE:
                cut = ImageEnhance.Color(cut).enhance(float(view["saturation"]))
            else:
                cut = _turn_hue(cut, float(view["hue"]))
    if view["grey"]:
        cut = cut.convert("L").convert("RGB")
    values = np.asarray(cut)
    if view["sigma"] > 0:
        values = _blur(values, float(view["sigma"]))
    if view["solarise"]:
        values = np.where(values >= SOLARISE_FROM, 255 - values, values)
    return values


def _turn_hue(cut: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = cut.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + int(turns * 255)).astype(np.uint8)  # wraps around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (S, S, 3) uint8; the image is mirrored at its borders, without the border itself."""
    kernel, margin = blur_kernel(sigma), BLUR_TAPS // 2
    mode: Literal["reflect", "edge"] = (
        "reflect" if min(values.shape[:2]) > margin else "edge"
    )  # a crop of few pixels has nothing to mirror
    blurred = values.astype(np.float32)
    for axis in (0, 1):
        around = [(margin, margin) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(blurred, around, mode=mode)
        length = values.shape[axis]
        blurred = np.zeros_like(blurred)
        for tap, weight in enumerate(kernel):
            shifted = slice(tap, tap + length)
            blurred += weight * (padded[shifted] if axis == 0 else padded[:, shifted])
    return np.rint(blurred).astype(np.uint8)
