"""What is to be given up is looked at once more, at full resolution, beside the image that stays."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from indexer.errors import ImageError
from indexer.images.decode import decode, read_image_file

from ..geometry import inverse_numpy, zoom
from .groups import AS_DETAILED, Pair
from .local import PixelBox, Place, compare_locally
from .provenance import Jpeg, made_from, read_jpeg

BORDER_SIDE = 256  # pixels of the sides of the square on which is looked for what only one of two shows
BORDER = 0.03  # of a side, up to which what is not shared is the alignment's doing
STRUCTURED = 8.0  # grey levels of deviation, from which on a place shows something
MOST_UNSHARED = 0.01  # of an image, that may show something the other does not have
ONE_COLOUR = 12.0  # levels, within which it is one colour,
MOSTLY = 0.97  # for this share of the pixels
GREY = 6.0  # levels of colour, up to which an image is grey,
COLOURED = 20.0  # and from which on it is not
COVERED = 0.97  # of an image, from which on another one shows all of it
FRAMED = 0.95  # of an image, up to which another one leaves out something at its sides
MAY_BE = "may be a copy: what was done to it would hide a small difference"
NEARER = 0.75  # of the difference from a rival, up to which a member is a copy of its keeper and not of the rival


@dataclass(frozen=True)
class Closer:
    """What full resolution says of two images, `first` < `second`; `places` where they differ.

    only_first, only_second  whether that image shows something at its sides that the other one lacks
    why                      why it cannot be told whether one is a copy; empty where it can
    lesser                   which of the two is no keeper beside the other one, by what it really holds
    better                   what makes the other one the better, in words that follow `kept:`; empty where none is
    """

    first: int
    second: int
    places: tuple[Place, ...] = ()
    only_first: bool = False
    only_second: bool = False
    why: str = ""
    lesser: int | None = None
    better: str = ""

    @property
    def reason(self) -> str:
        """Why neither is given up for the other; empty where one may be."""
        return self.why or ("they differ" if self.places else "")

    def stays(self, member: int, width: int, height: int) -> str:
        """Why the member is not given up for the other one, whose size in pixels is given; empty where it may be."""
        boxes = (
            in_pixels(place.in_second if member == self.first else place.in_first, width, height)
            for place in self.places
        )
        named = ", ".join(f"{left},{top} ({across} x {down} pixels)" for left, top, across, down in boxes)
        if self.why:
            return f"{self.why}; in the keeper most of all at {named}" if named else self.why
        if named:
            return f"it differs from the keeper, there at {named}"
        if self.only_first if member == self.first else self.only_second:
            return "it shows more at its sides than the keeper"
        return ""


def in_pixels(box: PixelBox, width: int, height: int) -> tuple[int, int, int, int]:
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
        first, second = (_read(path_of(row)) for row in (pair.first, pair.second))
    except ImageError as error:
        return Closer(pair.first, pair.second, why=f"may be a copy: it could not be compared ({error.reason})")
    found = compare_locally(first.image, second.image, pair.transform)
    only = _shows_more(first.image, pair.transform), _shows_more(second.image, inverse_numpy(pair.transform))
    lesser, better = _lesser(pair, first, second)
    return Closer(pair.first, pair.second, found.places, *only, "" if found.can_tell else MAY_BE, lesser, better)


@dataclass(frozen=True, eq=False)
class _Opened:
    """An image upright in RGB, and what its file tells where it is a JPEG.

    readable  False for a JPEG whose steps are not known: it is damaged, or in CMYK
    """

    image: Image.Image
    jpeg: Jpeg | None
    readable: bool


def _read(path: str) -> _Opened:
    """ImageError where it cannot be read any more."""
    data = read_image_file(path)
    decoded, jpeg = decode(data, path=path), read_jpeg(data)
    return _Opened(decoded.image, jpeg, jpeg is not None or decoded.format != "JPEG")


def is_nearer(member: int, keeper: Pair, rival: Pair, places: Sequence[Place], path_of: Callable[[int], str]) -> bool:
    """Whether a member is a copy of its keeper and not of a rival that differs from the keeper in a few places.

    keeper, rival  pairs from the keeper, and from the rival, to the member
    places         where the two differ: in the keeper, in the rival
    Where they can hardly be told apart in the member, it is nobody's.
    """
    assert keeper.second == rival.second == member and keeper.transform is not None and rival.transform is not None
    try:
        image = _read(path_of(member)).image
        of_keeper = compare_locally(
            _read(path_of(keeper.first)).image, image, keeper.transform, [place.in_first for place in places]
        )
        of_rival = compare_locally(
            _read(path_of(rival.first)).image, image, rival.transform, [place.in_second for place in places]
        )
    except ImageError:
        return False
    return of_keeper.within <= NEARER * of_rival.within


def _lesser(pair: Pair, first: _Opened, second: _Opened) -> tuple[int | None, str]:
    """Which of two copies is no keeper beside the other one, and what makes the other one better."""
    assert pair.transform is not None
    of_first, of_second = _colour(first.image), _colour(second.image)
    if min(of_first, of_second) < GREY and max(of_first, of_second) > COLOURED:
        return (pair.first if of_first < of_second else pair.second), "it is in colour"
    if min(pair.overlap) >= COVERED and first.readable and second.readable:
        made = [
            source.jpeg is not None and made_from(source.jpeg, other.image, way, _steps(other))
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
    return None, ""


def _steps(opened: _Opened) -> np.ndarray | None:
    return opened.jpeg.steps if opened.jpeg else None


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


def _shows_more(image: Image.Image, way: np.ndarray) -> bool:
    """Whether there is structure in what of an image lies beside the other one; a frame of one colour has none.

    way  (2, 3)  from fractions of the image to fractions of the other one
    """
    colours, beyond = _beside(image, way)
    grey = colours.mean(-1)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (5, 5))  # (S - 4, S - 4, 5, 5)
    whole = np.lib.stride_tricks.sliding_window_view(beyond, (5, 5)).all((2, 3))
    return bool(((windows.std((2, 3)) > STRUCTURED) & whole).mean() > MOST_UNSHARED)
