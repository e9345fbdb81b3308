"""What is to be given up is looked at once more, at full resolution, beside the image that stays."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from indexer.errors import ImageError
from indexer.images.decode import decode_file

from .groups import Pair, inverse
from .local import Box, Place, compare_locally

BORDER_SIDE = 256  # pixels of the sides of the square on which is looked for what only one of two shows
BORDER = 0.03  # of a side, up to which what is not shared is the alignment's doing
STRUCTURED = 8.0  # grey levels of deviation, from which on a place shows something
MOST_UNSHARED = 0.01  # of an image, that may show something the other does not have
GREY = 6.0  # levels of colour, up to which an image is grey,
COLOURED = 20.0  # and from which on it is not
MAY_BE = "may be a copy: what was done to it would hide a small difference"


@dataclass(frozen=True)
class Closer:
    """What full resolution says of two images, `first` < `second`; `places` where they differ.

    only_first, only_second  whether that image shows something at its sides that the other one lacks
    why                      why nothing can be told; empty where it can
    lesser                   which of the two is no keeper beside the other one, by what it really holds: it is grey
    """

    first: int
    second: int
    places: tuple[Place, ...] = ()
    only_first: bool = False
    only_second: bool = False
    why: str = ""
    lesser: int | None = None

    @property
    def reason(self) -> str:
        """Why neither is given up for the other; empty where one may be."""
        return self.why or ("they differ" if self.places else "")

    def stays(self, member: int, width: int, height: int) -> str:
        """Why the member is not given up for the other one, whose size in pixels is given; empty where it may be."""
        if self.why:
            return self.why
        if self.places:
            boxes = (
                in_pixels(place.in_second if member == self.first else place.in_first, width, height)
                for place in self.places
            )
            named = ", ".join(f"{left},{top} ({across} x {down} pixels)" for left, top, across, down in boxes)
            return f"it differs from the keeper, there at {named}"
        if self.only_first if member == self.first else self.only_second:
            return "it shows more at its sides than the keeper"
        return ""


def in_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels of an image of that size."""
    x, y, across, down = box
    return round(x * width), round(y * height), max(1, round(across * width)), max(1, round(down * height))


def look_closely(pairs: Sequence[Pair], path_of: Callable[[int], str], workers: int | None = None) -> Iterator[Closer]:
    """Compare pairs with a transform, as many at a time as `workers` (default: half of the cores, for each holds two
    images in memory). What cannot be read any more cannot be told.
    """
    threads = workers or max(1, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda pair: _looked_at(pair, path_of), pairs)


def _looked_at(pair: Pair, path_of: Callable[[int], str]) -> Closer:
    pair = pair if pair.first < pair.second else pair.turned()
    assert pair.transform is not None
    try:
        first, second = (decode_file(path_of(row)).image for row in (pair.first, pair.second))
    except ImageError as error:
        return Closer(pair.first, pair.second, why=f"may be a copy: it could not be compared ({error.reason})")
    found = compare_locally(first, second, pair.transform)
    return Closer(
        pair.first,
        pair.second,
        found.places if found.can_tell else (),
        _shows_more(first, pair.transform),
        _shows_more(second, inverse(pair.transform)),
        "" if found.can_tell else MAY_BE,
        _lesser(pair, first, second),
    )


def _lesser(pair: Pair, first: Image.Image, second: Image.Image) -> int | None:
    """The grey one beside one in colour."""
    of_first, of_second = _colour(first), _colour(second)
    if min(of_first, of_second) < GREY and max(of_first, of_second) > COLOURED:
        return pair.first if of_first < of_second else pair.second
    return None


def _colour(image: Image.Image) -> float:
    """How far the most colourful hundredth of an image is from grey, in levels."""
    small = np.asarray(image.convert("YCbCr").resize((64, 64), Image.Resampling.BOX), np.float32)
    return float(np.quantile(np.abs(small[..., 1:] - 128).sum(-1), 0.99))


def _shows_more(image: Image.Image, way: np.ndarray) -> bool:
    """Whether there is structure in what of an image lies beside the other one; a frame of one colour has none.

    way  (2, 3)  from fractions of the image to fractions of the other one
    """
    side = BORDER_SIDE
    grey = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), np.float32)
    middle = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(middle, middle)
    places = np.stack([x, y, np.ones_like(x)], -1) @ way.T  # (S, S, 2)
    beyond = np.maximum(-places, places - 1).max(-1) > BORDER  # (S, S)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (5, 5))  # (S - 4, S - 4, 5, 5)
    whole = np.lib.stride_tricks.sliding_window_view(beyond, (5, 5)).all((2, 3))
    return bool(((windows.std((2, 3)) > STRUCTURED) & whole).mean() > MOST_UNSHARED)
