"""Which of two copies is no keeper beside the other one, and what one of two images shows that the other lacks."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..geometry import inverse_numpy, zoom
from .groups import AS_DETAILED, Pair
from .provenance import Jpeg, made_from
from .windows import window_means

BORDER_SIDE = 256  # pixels of the sides of the square on which is looked for what only one of two shows
BORDER = 0.03  # of a side, up to which what is not shared is the alignment's doing
STRUCTURE_WINDOW = 5  # pixels of the sides of a place
STRUCTURED = 8.0  # grey levels of deviation, from which on a place shows something
MOST_UNSHARED = 0.01  # of an image, that may show something the other does not have
ONE_COLOUR = 12.0  # levels, within which it is one colour,
MOSTLY = 0.97  # for this share of the pixels
GREY = 6.0  # levels of colour, up to which an image is grey,
COLOURED = 20.0  # and from which on it is not
COVERED = 0.97  # of an image, from which on another one shows all of it
FRAMED = 0.95  # of an image, up to which another one leaves out something at its sides


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """An image upright in RGB, and what its file tells where it is a JPEG.

    readable  False for a JPEG whose steps are not known: it is damaged, or in CMYK
    """

    image: Image.Image
    jpeg: Jpeg | None
    readable: bool

    @property
    def bytes(self) -> int:
        return 3 * self.image.width * self.image.height + (self.jpeg.luma.nbytes if self.jpeg else 0)


def lesser_of(
    pair: Pair, first: OpenedImage, second: OpenedImage, only: tuple[bool, bool] = (False, False)
) -> tuple[int | None, str]:
    """Which of two copies is no keeper beside the other one, and what makes the other one better.

    only  whether the first, and the second, shows something at its sides that the other one lacks
    """
    assert pair.transform is not None
    of_first, of_second = _colour(first.image), _colour(second.image)
    if min(of_first, of_second) < GREY and max(of_first, of_second) > COLOURED:
        return (pair.first if of_first < of_second else pair.second), "it is in colour"
    if min(pair.overlap) >= COVERED and first.readable and second.readable:
        made = [
            source.jpeg is not None
            and made_from(source.jpeg, other.image, way, other.jpeg.steps if other.jpeg else None)
            for source, other, way in (
                (second, first, inverse_numpy(pair.transform)),
                (first, second, pair.transform),
            )
        ]
        if made[0] != made[1]:
            return (pair.first if made[0] else pair.second), "the other was made from it"
    larger = zoom(pair.transform, first.image.size, second.image.size)
    ways = (
        (pair.first, first.image, pair.transform, larger),
        (pair.second, second.image, inverse_numpy(pair.transform), 1 / larger),
    )
    for number, (row, image, way, detail) in enumerate(ways):
        around = pair.overlap[number] <= FRAMED and pair.overlap[1 - number] >= COVERED
        if around and detail >= AS_DETAILED and _is_framed(image, way):
            return row, "it shows as much without a frame or empty corners"
        if around and 1 / detail >= AS_DETAILED and only[number]:
            return (pair.second if number == 0 else pair.first), "it shows more at its sides"
    return None, ""


def _is_framed(image: Image.Image, way: np.ndarray) -> bool:
    """Whether all that lies beside the other image is of one colour."""
    colours, beyond = _beside(image, way)
    outside = np.asarray(colours)[beyond]
    if not len(outside):
        return False
    away = np.abs(outside - np.median(outside, 0)).max(1)
    return bool((away <= ONE_COLOUR).mean() >= MOSTLY)


def _beside(image: Image.Image, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image as a small square (S, S, 3), and what of it lies beside the other one (S, S)."""
    side = BORDER_SIDE
    colours = np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32)
    middle = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(middle, middle)
    places = np.stack([x, y, np.ones_like(x)], -1) @ way.T  # (S, S, 2)
    return colours, np.maximum(-places, places - 1).max(-1) > BORDER


def _colour(image: Image.Image) -> float:
    """How far the most colourful hundredth of an image is from grey, in levels."""
    small = np.asarray(image.convert("YCbCr").resize((64, 64), Image.Resampling.BOX), np.float32)
    return float(np.quantile(np.abs(small[..., 1:] - 128).sum(-1), 0.99))


def shows_more(image: Image.Image, way: np.ndarray) -> bool:
    """Whether there is structure in what of an image lies beside the other one; a frame of one colour has none.

    way  (2, 3)  from fractions of the image to fractions of the other one
    """
    colours, beyond = _beside(image, way)
    grey = colours.mean(-1, dtype=np.float64)
    planes = torch.from_numpy(np.stack([grey, grey**2, beyond]))
    mean, square, whole = window_means(planes, STRUCTURE_WINDOW)
    structured = square - mean.square() > STRUCTURED**2
    return bool((structured & (whole > 0.999)).double().mean() > MOST_UNSHARED)
