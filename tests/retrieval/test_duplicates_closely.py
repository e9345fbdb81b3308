"""Pairs at full resolution: several at one time, in order, each image decoded once, and not more in memory than there
is room for."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.bounded_cache import BoundedCache
from retrieval.duplicates.closely import CloseLook, Contest, _Room
from retrieval.duplicates.groups import Pair
from retrieval.duplicates.lesser import shows_more
from retrieval.duplicates.local import PixelBox, Place, compare_locally

SAME = np.array([[1.0, 0, 0], [0, 1, 0]])
BOX: PixelBox = (0.4, 0.4, 0.2, 0.2)


def drawn(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    return Image.fromarray(coarse).resize((240, 160), Image.Resampling.BICUBIC)


def with_patch(image: Image.Image, seed: int) -> Image.Image:
    changed = image.copy()
    changed.paste(drawn(seed).resize((40, 30)), (100, 65))
    return changed


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An image, three with another patch in the middle, and copies of the first two at half the size."""
    images = [drawn(1), *(with_patch(drawn(1), seed) for seed in (2, 3, 4))]
    images += [image.resize((120, 80), Image.Resampling.BICUBIC) for image in images[:2]]
    for n, image in enumerate(images):
        image.save(tmp_path / f"{n}.png")
    return [tmp_path / f"{n}.png" for n in range(len(images))]


def pair(first: int, second: int) -> Pair:
    return Pair(first, second, "near", 0.9, SAME, (1.0, 1.0))


def look(files: list[Path], read: list[int], workers: int) -> CloseLook:
    def path_of(row: int) -> str:
        read.append(row)
        return str(files[row])

    return CloseLook(path_of, {n: (240, 160) if n < 4 else (120, 80) for n in range(len(files))}, workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_each_pair_is_told_in_order_as_by_itself(files: list[Path], workers: int) -> None:
    pairs = [pair(0, n) for n in (1, 4, 3, 2)] + [pair(2, 1)]
    read: list[int] = []
    told = list(look(files, read, workers).compare(pairs))
    assert [(one.first, one.second) for one in told] == [(0, 1), (0, 4), (0, 3), (0, 2), (1, 2)]
    assert [bool(one.places) for one in told] == [True, False, True, True, True]
    for one in told:
        with Image.open(files[one.first]) as first, Image.open(files[one.second]) as second:
            assert one.places == compare_locally(first, second, SAME).places
    if workers == 1:
        assert sorted(read) == [0, 1, 2, 3, 4]


def test_what_is_gone_cannot_be_told(files: list[Path]) -> None:
    files[1].unlink()
    gone, there = look(files, [], 2).compare([pair(0, 1), pair(0, 4)])
    assert "could not be compared" in gone.reason and not there.reason


@pytest.mark.slow
def test_a_small_copy_belongs_to_what_it_was_made_of(files: list[Path]) -> None:
    places = (Place(BOX, BOX),)
    contests = [
        Contest(pair(0, 4), ((pair(1, 4), places), (pair(2, 4), places))),  # of the first, which is its keeper
        Contest(pair(0, 5), ((pair(2, 5), places), (pair(1, 5), places))),  # of the second, which is no keeper
        Contest(pair(0, 4), ()),
    ]
    assert list(look(files, [], 2).rival_of(contests)) == [None, 2, None]  # the third is as near as the first


def test_whoever_stops_does_not_wait_for_the_rest(files: list[Path]) -> None:
    read: list[int] = []
    told = look(files, read, 1).compare([pair(0, 1 + n % 3) for n in range(50)])
    next(told)
    del told
    assert len(read) < 10


def test_there_is_room_for_so_many_pixels() -> None:
    room, inside, most, lock = _Room(10), 0, 0, threading.Lock()

    def work(amount: int) -> None:
        nonlocal inside, most
        with room.taken(amount):
            with lock:
                inside += min(amount, 10)
                most = max(most, inside)
            threading.Event().wait(0.005)
            with lock:
                inside -= min(amount, 10)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in [4, 30, 3, 7, 10, 2] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 10 and inside == 0


def test_what_was_not_asked_for_longest_is_dropped() -> None:
    class Thing:
        bytes = 4

    kept, made = BoundedCache[int, Thing](10, lambda one: one.bytes), []

    def ask(key: int) -> None:
        kept.get_or_make(key, lambda: made.append(key) or Thing())  # type: ignore[func-returns-value]

    for key in (1, 2, 1, 3, 1, 2):
        ask(key)
    assert made == [1, 2, 3, 2]


def test_structure_beside_the_other_image_is_told_from_a_plain_frame() -> None:
    way = np.array([[1.5, 0, -0.25], [0, 1.5, -0.25]])  # the other image is the middle two thirds
    framed = Image.new("RGB", (240, 160), (90, 20, 160))
    framed.paste(drawn(1).resize((160, 106)), (40, 27))
    assert shows_more(drawn(1), way) and not shows_more(framed, way) and not shows_more(drawn(1), SAME)
