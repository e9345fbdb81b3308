"""Confirmed pairs to groups: stars around the image to keep, and never chains.

A chain would put a photo and another one into a group because each resembles a third. Here every member was compared
with the keeper itself. Images are taken in the order of keeping; each one that is still free becomes a keeper (or a
copy that shows as much of it and is nearer to the others) and takes all free images that were confirmed against it.

Not every copy may go for its keeper's sake: a collage holds three more photos and is no reason to give up any of them,
and a cut-out that was enlarged shows its part better. Those are named in the keeper's group but stay free, to be
keepers of groups of their own.
"""

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..geometry import inverse_numpy, zoom
from .options import Level

HOLDS_MORE = 0.5  # of a member that the keeper does not show, from which on it is not given up
DETAIL = 0.75  # pixels along a line in the keeper for each in the member, under which the member shows more detail
AS_DETAILED = 0.97  # pixels along a line for each in another image, from which on it shows as much
WHOLE = 0.85  # share of an image that counts as all of it
APART = 0.1  # of the smaller of two parts that the other shares, under which they lie side by side
TURNED_DEGREES = 1.5  # less is not worth a word
SQUEEZED = 1.04
SAME_IMAGE = "the same image in other bytes"


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images that were compared.

    first, second  rows of the two
    level          "near" or "scene"
    similarity     correlation of what they share for "near", else how far their patches agree; in [0, 1]
    transform      (2, 3) from fractions of the first to fractions of the second; None where none is known
    overlap        share of the first, and of the second, that the other one shows
    stays          why the second is not given up for the first, nor the other way round; once grouped, why not for its
                   keeper; empty where it may be
    """

    first: int
    second: int
    level: Level
    similarity: float
    transform: np.ndarray | None
    overlap: tuple[float, float]
    stays: str = ""

    @property
    def is_copy(self) -> bool:
        """Whether pixels confirmed it, so that the way from one to the other is known."""
        return self.level == "near" and self.transform is not None

    @property
    def share_most(self) -> bool:
        """Whether each shows most of the other: a cut-out and a collage do not."""
        return min(self.overlap) >= HOLDS_MORE

    def turned(self) -> "Pair":
        """The same from the second one's side."""
        back = None
        if self.transform is not None:
            back = inverse_numpy(self.transform)
        return Pair(self.second, self.first, self.level, self.similarity, back, self.overlap[::-1], self.stays)


@dataclass(frozen=True, eq=False)
class Star:
    """A keeper, the members that are given up for it, and those that only share something with it.

    members, related  pairs whose `first` is the keeper
    instead_of        the row in whose place the keeper was taken, see `stars`; the keeper itself where it came first
    """

    keeper: int
    members: tuple[Pair, ...]
    related: tuple[Pair, ...]
    instead_of: int


def stars(
    pairs: Iterable[Pair],
    order: Sequence[int],
    sizes: dict[int, tuple[int, int]],
    by_detail: bool = False,
    lesser: Container[int] = (),
    rank: Mapping[int, int] | None = None,
) -> list[Star]:
    """Groups of what was confirmed.

    order      all rows that occur in the pairs, those to keep first
    sizes      width and height of each in pixels
    by_detail  a frame, black corners or three photos beside it add pixels and show no more of a photo: of copies with
               as much detail the one that more was confirmed against is kept
    lesser     rows that are not taken in the place of another one for that
    rank       of the rows' folders; no row is taken in the place of one of a lower rank for that
    """
    ranks = rank or {}
    beside: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        beside[pair.first].append(pair)
        beside[pair.second].append(pair.turned())
    taken: set[int] = set()
    found = []
    waiting = list(reversed(order))
    while waiting:
        row = waiting[-1]
        if row in taken:
            waiting.pop()
            continue
        keeper = _most_confirmed(row, beside, taken, sizes, lesser, ranks) if by_detail else row
        taken.add(keeper)
        members, related = [], []
        apart = _side_by_side(beside[keeper])
        for pair in sorted(beside[keeper], key=lambda pair: (pair.level, -pair.similarity, pair.second)):
            if (
                reason := pair.stays
                or stays(pair, sizes)
                or ("the keeper shows others beside it" if pair.second in apart else "")
            ):
                related.append(replace(pair, stays=reason))
            elif pair.second not in taken:
                taken.add(pair.second)
                members.append(pair)
        if members or related:
            found.append(Star(keeper, tuple(members), tuple(related), row))
    return _without_repeats(found)


def _most_confirmed(
    row: int,
    beside: dict[int, list[Pair]],
    taken: set[int],
    sizes: dict[int, tuple[int, int]],
    lesser: Container[int],
    rank: Mapping[int, int],
) -> int:
    """The row itself, or a free copy of it with as much detail that shares most with more free images.

    What was told apart at full resolution counts as well: it is known only of pairs that were looked at, and an image
    that was not would win.
    """

    def confirmed(row: int) -> list[Pair]:
        return [pair for pair in beside[row] if pair.is_copy and pair.second not in taken]

    detailed = [
        pair.second
        for pair in confirmed(row)
        if not pair.stays
        and zoom_of(pair, sizes) >= AS_DETAILED
        and pair.second not in lesser
        and rank.get(pair.second, 0) == rank.get(row, 0)
    ]
    return max([row, *detailed], key=lambda one: sum(pair.share_most for pair in confirmed(one)))


def _side_by_side(pairs: Sequence[Pair]) -> set[int]:
    """Of the images that show a part of one the rows of those whose parts are apart, as in a collage."""
    parts = [pair for pair in pairs if pair.transform is not None and pair.overlap[0] < WHOLE]
    if len(parts) < 2:
        return set()
    corners = np.array([(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
    places = [corners @ inverse_numpy(pair.transform).T for pair in parts if pair.transform is not None]
    placed = np.stack(places).clip(0, 1)  # (P, 4, 2) in the one
    low, high = placed.min(1), placed.max(1)  # (P, 2)
    shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(0).prod(2)  # (P, P)
    area = (high - low).prod(1)
    apart = (shared < APART * np.minimum(area[:, None], area)).any(1)
    return {pair.second for pair, alone in zip(parts, apart, strict=True) if alone}


def stays(pair: Pair, sizes: dict[int, tuple[int, int]]) -> str:
    """Why the second image is not given up for the first; empty where it may be.

    What merely shows the same scene is no copy, but whoever asks for scenes asks for that.
    """
    if pair.level == "scene" or pair.transform is None:
        return ""
    if pair.overlap[1] < HOLDS_MORE:
        return "it holds more than the keeper"
    if pair.overlap[0] < HOLDS_MORE and 1 / zoom_of(pair, sizes) < DETAIL:
        return "it shows its part of the keeper larger"
    return ""


def zoom_of(pair: Pair, sizes: dict[int, tuple[int, int]]) -> float:
    """Pixels along a line in the second image for each in the first."""
    assert pair.transform is not None
    return zoom(pair.transform, sizes[pair.first], sizes[pair.second])


def describe_change(pair: Pair, sizes: dict[int, tuple[int, int]]) -> str:
    """What was done to the first image to make the second: `mirrored, turned by 90 degrees, cropped to 64 %`."""
    if pair.transform is None:
        return ""
    linear = _in_pixels(pair, sizes)
    mirrored = np.linalg.det(linear) < 0
    upright = linear @ np.diag([-1, 1]) if mirrored else linear
    degrees = math.degrees(math.atan2(upright[1, 0] - upright[0, 1], upright[0, 0] + upright[1, 1]))
    quarter = 90 * round(degrees / 90)
    words = ["mirrored"] if mirrored else []
    if quarter % 360:
        words.append(f"turned by {abs(quarter)} degrees")
    if abs(degrees - quarter) > TURNED_DEGREES:
        words.append(f"tilted by {abs(degrees - quarter):.0f} degrees")
    longer, shorter = np.linalg.svd(linear, compute_uv=False)
    if shorter > 0 and longer / shorter > SQUEEZED:
        words.append(f"squeezed to {100 * shorter / longer:.0f} %")
    of_first, of_second = pair.overlap
    if of_first < WHOLE <= of_second:
        words.append(f"cropped to {100 * of_first:.0f} %")
    elif of_second < WHOLE <= of_first:
        words.append(f"with more around it: {100 * of_second:.0f} % of it")
    elif of_first < WHOLE:
        words.append(f"{100 * of_second:.0f} % of it shared")
    zoom = math.sqrt(longer * shorter)
    if not 0.95 < zoom < 1.05:
        words.append(f"at {100 * zoom:.0f} % of the size")
    return ", ".join(words) or SAME_IMAGE


def _in_pixels(pair: Pair, sizes: dict[int, tuple[int, int]]) -> np.ndarray:
    """The linear part (2, 2) of the transform, from pixels to pixels."""
    assert pair.transform is not None
    return np.diag(sizes[pair.second]) @ pair.transform[:, :2] @ np.diag(1 / np.array(sizes[pair.first], float))


def _without_repeats(found: list[Star]) -> list[Star]:
    """Two images that only share something are told once, in the first group that names them."""
    told: set[frozenset[int]] = set()
    kept = []
    for star in found:
        related = tuple(pair for pair in star.related if frozenset((pair.first, pair.second)) not in told)
        told |= {frozenset((pair.first, pair.second)) for pair in (*star.members, *related)}
        if star.members or related:
            kept.append(replace(star, related=related))
    return kept
