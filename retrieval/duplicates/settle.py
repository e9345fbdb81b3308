"""Confirmed pairs to groups that may be acted on: every copy was compared with its own keeper at full resolution.

Groups are made, what is to be given up is looked at beside its keeper, and what turns out to differ is no member and
may become a keeper. So groups are made again until none has an unseen member. Copies were compared with the image that
looked like the one to keep; where another one takes its place, they are compared with that one as well.

Surprising: that is not enough. A small copy of one screenshot resembles another screenshot with one more digit as much
as its own original, where the digit is a few pixels high. The two large ones differ plainly, and in known places. So a
member of a keeper that has such rivals is held against all of them in these places, and is a copy of the nearest only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from indexer.store.protocol import Record

from ..geometry import square
from .closely import CloseLook, Closer, Contest
from .groups import DETAIL, Pair, Star, stars, zoom_of
from .keeper import Folders, why_before
from .local import Place
from .options import DuplicateOptions
from .raw_pairs import PAIR
from .schedule import Transform

MOST_RIVALS = 8  # of a keeper, that a member is held against
AS_MUCH = "it shows as much, and more copies match it"
Rival = tuple[int, tuple[Place, ...]]  # a row, and where it differs from the keeper: in the keeper, in the rival


class Confirm(Protocol):
    """Compares the pixels of further pairs, and gives those that are copies."""

    def copies_along(self, ways: Sequence[tuple[int, int, Transform]]) -> list[Pair]:
        """Of the pairs (row, row, transform)."""

    def further_copies(self, pairs: Sequence[Pair], order: Sequence[int]) -> list[Pair]:
        """Of those that chains of pairs lead to and nobody compared; rows in `order`, those to keep first."""


class Settling:
    """The groups of one search, and what full resolution said of their pairs.

    records  of all rows, those to keep first
    path_of  a file of a row
    confirm  compares further pairs
    report   begins to say how many of a number of comparisons are done
    """

    def __init__(
        self,
        records: dict[int, Record],
        options: DuplicateOptions,
        folders: Folders,
        path_of: Callable[[int], str],
        confirm: Confirm,
        report: Callable[[str, int], Callable[[int], None]],
        workers: int | None,
    ) -> None:
        self.sizes = {row: (record.metadata.width, record.metadata.height) for row, record in records.items()}
        self._records = records
        self._options = options
        self._folders = folders
        self._rank = {row: folders.rank_of(record) for row, record in records.items()}
        self._path_of = path_of
        self._confirm = confirm
        self._report = report
        self._close_look = CloseLook(path_of, self.sizes, workers)
        self._closer: dict[tuple[int, int], Closer] = {}  # by rows, the lower one first
        self._judged: set[tuple[int, int, int]] = set()  # keeper, member and rival that were held against each other
        self._lost: dict[tuple[int, int], int] = {}  # the first rival that is nearer, by rows of keeper and member
        self._pairs: list[Pair] = []

    def settled(self, pairs: Sequence[Pair]) -> list[Star]:
        """Groups whose members may be given up for their keepers, as far as pixels tell."""
        self._pairs = list(pairs)
        while True:
            found = self._stars()
            if unseen := list(self._unseen(found)):
                self._look_at(unseen)
            elif contested := list(self._contested(found)):
                self._judge(contested)
            elif further := self._confirm.further_copies(self._copies(), self._order()):
                self._pairs += further
            else:
                return found

    def closer_of(self, pair: Pair) -> Closer | None:
        """What full resolution says of two images, where it was asked."""
        return self._closer.get(_ends(pair))

    def why_kept(self, star: Star) -> str:
        """What makes the keeper the one to keep, each reason once; empty where it has no members."""
        return "; ".join(dict.fromkeys(self._why_before(pair) for pair in star.members if pair.level == "near"))

    def _why_before(self, pair: Pair) -> str:
        keeper, member = self._records[pair.first], self._records[pair.second]
        words = why_before(self._options.keep, self._folders, keeper, member)
        closer = self.closer_of(pair)
        if self._rank[pair.first] == self._rank[pair.second] and closer and closer.lesser == pair.second:
            return closer.better if self._by_content else words
        return words or AS_MUCH

    @property
    def _by_content(self) -> bool:
        return self._options.keep == "resolution"

    def _stars(self) -> list[Star]:
        told = [self._told(pair) for pair in self._pairs]
        return stars(
            told, self._order(), self.sizes, by_detail=self._by_content, lesser=self._better(), rank=self._rank
        )

    def _copies(self) -> list[Pair]:
        """What was confirmed in pixels; those that differ with the reason."""
        return [self._told(pair) for pair in self._pairs if pair.is_copy]

    def _told(self, pair: Pair) -> Pair:
        return replace(pair, stays=reason) if (reason := self._why_apart(pair)) else pair

    def _order(self) -> list[int]:
        """All rows, those to keep first, by their records and then by what full resolution said."""
        return better_first(list(self._records), self._better())

    def _better(self) -> dict[int, list[int]]:
        """By row those that are kept before it for what they really hold."""
        better: dict[int, list[int]] = {}
        for closer in self._closer.values() if self._by_content else ():
            other = closer.second if closer.lesser == closer.first else closer.first
            if closer.lesser is not None and not closer.reason and self._rank[other] == self._rank[closer.lesser]:
                better.setdefault(closer.lesser, []).append(other)
        return better

    def _why_apart(self, pair: Pair) -> str:
        """Why neither of two images is given up for the other one; empty where one may be."""
        if self._records[pair.first].metadata.raw != self._records[pair.second].metadata.raw:
            return PAIR
        closer = self.closer_of(pair)
        if closer is None:
            return ""
        rival = self._lost.get(_ends(pair))
        if rival is not None:
            return f"it may be a copy of {self._path_of(rival)}, which differs from the keeper"
        return closer.reason or self._better_elsewhere(pair, closer)

    def _better_elsewhere(self, pair: Pair, closer: Closer) -> str:
        """Why an image stays although its folder comes after the other one's: it holds more."""
        if self._rank[pair.first] == self._rank[pair.second]:
            return ""
        pair = pair if self._rank[pair.first] < self._rank[pair.second] else pair.turned()
        if closer.lesser == pair.first:
            return f"its folder comes after the keeper's, but {closer.better}"
        if closer.lesser != pair.second and zoom_of(pair, self.sizes) > 1 / DETAIL:
            return "its folder comes after the keeper's, but it shows more detail"
        return ""

    def _unseen(self, found: Sequence[Star]) -> Iterator[Pair]:
        """Members that were not yet looked at beside their keeper. One that took another's place is held against that
        one first: it may well have been made from it, and what was looked at beside it would be looked at again.
        """
        for star in found:
            unseen = [pair for pair in star.members if pair.is_copy and self.closer_of(pair) is None]
            yield from [pair for pair in unseen if pair.second == star.instead_of] or unseen

    def _look_at(self, unseen: Sequence[Pair]) -> None:
        report = self._report("looking closely", len(unseen))
        for done, closer in enumerate(self._close_look.compare(unseen), start=1):
            self._closer[closer.first, closer.second] = closer
            report(done)

    def _contested(self, found: Sequence[Star]) -> Iterator[tuple[Pair, list[Rival]]]:
        """Members that were not yet held against images that differ from their keeper."""
        rivals: dict[int, list[Rival]] = {}
        for (first, second), closer in self._closer.items():
            if closer.places and not closer.why:
                turned = tuple(Place(place.in_second, place.in_first) for place in closer.places)
                rivals.setdefault(first, []).append((second, closer.places))
                rivals.setdefault(second, []).append((first, turned))
        for star in found:
            for pair in star.members:
                if not pair.is_copy:
                    continue  # another photo of the motif
                unjudged = [
                    (rival, places)
                    for rival, places in rivals.get(star.keeper, [])[:MOST_RIVALS]
                    if rival != pair.second and (star.keeper, pair.second, rival) not in self._judged
                ]
                if unjudged:
                    yield pair, unjudged

    def _judge(self, contested: Sequence[tuple[Pair, list[Rival]]]) -> None:
        by_ends = self._pairs_with_rivals(contested)
        contests = []
        for pair, rivals in contested:
            beside = [(by_ends.get(_sorted(rival, pair.second)), rival, places) for rival, places in rivals]
            held = tuple(
                (known if known.first == rival else known.turned(), places)
                for known, rival, places in beside
                if known is not None and known.transform is not None
            )
            contests.append(Contest(pair, held))
            self._judged |= {(pair.first, pair.second, rival) for rival, _ in rivals}
        report = self._report("telling rivals apart", len(contests))
        told = zip(contests, self._close_look.rival_of(contests), strict=True)
        for done, (contest, lost_to) in enumerate(told, start=1):
            if lost_to is not None:  # what is no copy of a rival is nearer to its keeper
                self._lost.setdefault(_ends(contest.pair), lost_to)
            report(done)

    def _pairs_with_rivals(self, contested: Sequence[tuple[Pair, list[Rival]]]) -> dict[tuple[int, int], Pair]:
        """The copies by their rows, with those members and rivals that only their keeper leads to."""
        by_ends = {_ends(pair): pair for pair in self._pairs if pair.level == "near"}
        chained = {}
        for pair, rivals in contested:
            for rival, _ in rivals:
                ends = _sorted(rival, pair.second)
                to_rival = by_ends.get(_sorted(pair.first, rival))
                if ends not in by_ends and to_rival is not None and to_rival.transform is not None:
                    back = to_rival if to_rival.first == rival else to_rival.turned()
                    assert back.transform is not None and pair.transform is not None
                    chained[ends] = (rival, pair.second, (square(pair.transform) @ square(back.transform))[:2])
        for found in self._confirm.copies_along(list(chained.values())):
            by_ends[_ends(found)] = found
            self._pairs.append(found)
        return by_ends


def better_first(order: Sequence[int], better: Mapping[int, Sequence[int]]) -> list[int]:
    """The same rows, each right behind those that are better than it; otherwise in the same order."""
    place = {row: n for n, row in enumerate(order)}
    done: dict[int, None] = {}
    waiting = [(row, False) for row in reversed(order)]
    entered: set[int] = set()
    while waiting:
        row, ready = waiting.pop()
        if ready:
            done.setdefault(row)
        elif row not in entered:  # in a circle the first one comes first
            entered.add(row)
            waiting.append((row, True))
            before = sorted(better.get(row, ()), key=place.__getitem__, reverse=True)
            waiting += [(one, False) for one in before]
    return list(done)


def _ends(pair: Pair) -> tuple[int, int]:
    return _sorted(pair.first, pair.second)


def _sorted(one: int, other: int) -> tuple[int, int]:
    return (min(one, other), max(one, other))
