"""What is to be given up is looked at once more, at full resolution, beside the image that stays."""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from indexer.errors import ImageError
from indexer.images.decode import decode, read_image_file

from ..bounded_cache import BoundedCache
from ..geometry import inverse_numpy
from ..rerank.rerank import one_threaded_workers
from .groups import Pair
from .lesser import OpenedImage, lesser_of, shows_more
from .local import MOST_PIXELS, Measured, PixelBox, Place, measure_locally
from .provenance import read_jpeg

MAY_BE = "may be a copy: what was done to it would hide a small difference"
NEARER = 0.75  # of the difference from a rival, up to which a member is a copy of its keeper and not of the rival
PIXELS_AT_ONCE = 16_000_000  # of frames that are compared at one time, each with some 150 bytes
IMAGE_BYTES = 256_000_000  # of decoded images that are kept for further pairs,
MEASURED_BYTES = 64_000_000  # and of what was measured of pairs
AHEAD = 2  # pairs that wait for each thread


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


@dataclass(frozen=True)
class Contest:
    """A member of a keeper, and the images that differ from the keeper in a few places.

    pair    from the keeper to the member
    rivals  pairs from a rival to the member, and where the keeper and the rival differ: in the keeper, in the rival
    """

    pair: Pair
    rivals: tuple[tuple[Pair, tuple[Place, ...]], ...]


X = TypeVar("X", Pair, Contest)
Y = TypeVar("Y")


class CloseLook:
    """Compares pairs at full resolution, on all cores. Images are decoded once while their pairs follow each other.

    path_of  a file of a row
    sizes    width and height of each row in pixels
    workers  pairs that are compared at one time; fewer where the images are large. Default: as many as cores
    """

    def __init__(
        self, path_of: Callable[[int], str], sizes: dict[int, tuple[int, int]], workers: int | None = None
    ) -> None:
        self._path_of = path_of
        self._sizes = sizes
        self._workers = workers or os.cpu_count() or 1
        self._room = _Room(PIXELS_AT_ONCE)
        self._images: BoundedCache[int, OpenedImage] = BoundedCache(IMAGE_BYTES, lambda one: one.bytes)
        self._measured: BoundedCache[tuple[int, int], Measured] = BoundedCache(MEASURED_BYTES, lambda one: one.bytes)

    def compare(self, pairs: Sequence[Pair]) -> Iterator[Closer]:
        """What is to be said of each pair with a transform. What cannot be read any more cannot be told."""
        return self._each(self._compared, pairs)

    def rival_of(self, contests: Sequence[Contest]) -> Iterator[int | None]:
        """Of each member the first rival that it may as well be a copy of; None where it is nearer to its keeper.

        Where they can hardly be told apart in the member, it is nobody's.
        """
        return self._each(self._rival_of, contests)

    def _compared(self, pair: Pair) -> Closer:
        pair = _ordered(pair)
        assert pair.transform is not None
        try:
            first, second = self._opened(pair.first), self._opened(pair.second)
        except ImageError as error:
            return Closer(pair.first, pair.second, why=f"may be a copy: it could not be compared ({error.reason})")
        found = self._measure(pair).told()
        only = shows_more(first.image, pair.transform), shows_more(second.image, inverse_numpy(pair.transform))
        lesser, better = lesser_of(pair, first, second, only)
        return Closer(pair.first, pair.second, found.places, *only, "" if found.can_tell else MAY_BE, lesser, better)

    def _rival_of(self, contest: Contest) -> int | None:
        for rival, places in contest.rivals:
            try:
                of_keeper = self._within(contest.pair, [place.in_first for place in places])
                of_rival = self._within(rival, [place.in_second for place in places])
            except ImageError:
                return rival.first
            if of_keeper > NEARER * of_rival:
                return rival.first
        return None

    def _within(self, pair: Pair, boxes: Sequence[PixelBox]) -> float:
        """The plainest difference of two images in some boxes of the pair's first."""
        return self._measure(_ordered(pair)).within(boxes, of_second=pair.first > pair.second)

    def _measure(self, pair: Pair) -> Measured:
        """Of a pair in order; ImageError where an image cannot be read any more."""
        transform = pair.transform
        assert transform is not None

        def measured() -> Measured:
            first, second = self._opened(pair.first).image, self._opened(pair.second).image
            return measure_locally(first, second, transform)

        return self._measured.get_or_make((pair.first, pair.second), measured)

    def _opened(self, row: int) -> OpenedImage:
        """ImageError where it cannot be read any more."""
        return self._images.get_or_make(row, lambda: _read(self._path_of(row)))

    def _pixels(self, pair: Pair) -> int:
        """Of the frame, at most."""
        return min(MOST_PIXELS, max(math.prod(self._sizes[row]) for row in (pair.first, pair.second)))

    def _each(self, call: Callable[[X], Y], items: Sequence[X]) -> Iterator[Y]:
        """Of each in order, some of them at one time."""

        def within_room(item: X) -> Y:
            with self._room.taken(self._pixels(item.pair if isinstance(item, Contest) else item)):
                return call(item)

        waiting: deque[Future[Y]] = deque()
        pool = one_threaded_workers(self._workers)
        try:
            for item in items:
                waiting.append(pool.submit(within_room, item))
                if len(waiting) > AHEAD * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever interrupts waits for the pairs in hand only
            for one in waiting:
                one.cancel()


class _Room:
    """A number of pixels that may be in memory at one time."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._changed = most, 0, threading.Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Waits until there is room; more than there is at all is taken alone."""
        amount = min(amount, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + amount <= self._most)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()


def _ordered(pair: Pair) -> Pair:
    return pair if pair.first < pair.second else pair.turned()


def _read(path: str) -> OpenedImage:
    """ImageError where it cannot be read any more."""
    data = read_image_file(path)
    decoded, jpeg = decode(data, path=path), read_jpeg(data)
    return OpenedImage(decoded.image, jpeg, jpeg is not None or decoded.format != "JPEG")
