"""An index -> its duplicates: candidates, patches, pixels, groups, in this order."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from indexer.errors import SeenitError
from indexer.index.index import WAIT_S, Index
from indexer.index.keys import Roots
from indexer.store.protocol import Listed, Record, Store, StoredFile

from .candidates import NEIGHBOURS, DuplicateCandidates, are_among, near_pairs, read_vectors, with_pairs
from .closely import Closer, in_pixels, look_closely
from .confirm import (
    LEAST_COSINE,
    LOOK_ALIKE,
    PART_ALIKE,
    compare_patches,
    compare_pixels,
    copies_among,
    scenes_among,
    worth_a_look,
)
from .groups import LEVELS, SAME_IMAGE, Level, Pair, Star, in_words, stars
from .keeper import KEEPS, Keep, files_in_order, keeping_order, why_never
from .outcome import Difference, Duplicates, File, Group, GroupMember
from .patterns import SIDE as PATTERN_SIDE
from .patterns import (
    Patterns,
    alike_in_any_position,
    alike_in_part,
    empty_patterns,
    likeness,
    patterns_of,
    patterns_of_parts,
    whole_in_part,
)
from .schedule import settled, untried_pairs, with_keepers
from .thumbnails import Thumbnails

RECORDS_AT_ONCE = 2000
PATTERNS_AT_ONCE = 1024


def find_duplicates(
    index: str | Path,
    level: Level = "near",
    keep: Keep = "resolution",
    *,
    workers: int | None = None,
    neighbours: int = NEIGHBOURS,
    wait_s: float = WAIT_S,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Duplicates:
    """Group the images of an index that are copies of each other. Nothing is changed.

    level       exact: the same bytes; near: and copies of the same photograph; scene: and other photographs of the
                same motif
    keep        what decides on the image to keep, see `keeper.keeping_order`
    workers     decoding processes; default: as many as cores
    neighbours  images that each one is compared with at least
    progress    gets what is being done, how much of it is done, and how much there is
    Raises SeenitError where there is no index, or another version made it.
    """
    if level not in LEVELS or keep not in KEEPS:
        raise SeenitError(f"unknown level {level!r} or order {keep!r}; take {', '.join(LEVELS)}; {', '.join(KEEPS)}")
    started = time.monotonic()
    with Index.open(index, wait_s=wait_s) as opened, opened.store.snapshot():
        search = _Search(opened.store, opened.roots, keep, workers, progress)
        groups = search.exact() if level == "exact" else search.near(neighbours, scenes=level == "scene")
        return Duplicates(
            index=opened.location,
            level=level,
            keep=keep,
            groups=tuple(sorted(groups, key=lambda group: -sum(file.size for file in group.spare))),
            images=opened.count,
            seconds=time.monotonic() - started,
            notes=tuple(search.notes),
        )


class _Search:
    """What the steps of one run share."""

    def __init__(
        self,
        store: Store,
        roots: Roots,
        keep: Keep,
        workers: int | None,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.notes: list[str] = []
        self._store = store
        self._roots = roots
        self._keep = keep
        self._workers = workers
        self._progress = progress
        self._closer: dict[tuple[int, int], Closer] = {}  # by rows, the lower one first

    def exact(self) -> list[Group]:
        """Only what has the same bytes; neither vectors nor files are read."""
        several = self._with_several_files()
        records = self._records(several)
        return [group for record in records.values() if (group := self._group(record, ())).members]

    def near(self, neighbours: int, scenes: bool) -> list[Group]:
        """Everything up to copies, or up to scenes."""
        vectors = read_vectors(self._store)
        if vectors.unusual:
            count = len(vectors.unusual)
            self.notes.append(f"left out {count} with damaged vectors; to make them anew: seenit index in a new place")
        total = len(vectors.ids)
        found = near_pairs(vectors.rows, LEAST_COSINE, neighbours, report=self._reporter("neighbours", total))
        patterns = self._read_patterns(vectors.ids)
        turned = alike_in_any_position(patterns.whole, LOOK_ALIKE, self._reporter("turned and mirrored", total))
        within = alike_in_part(patterns, PART_ALIKE, self._reporter("collages", total))
        for more in (turned, within):
            found = with_pairs(found, more, vectors.rows)
        several = set(self._with_several_files())
        rows = np.union1d(found.first, found.second).tolist()
        row_of = {vectors.ids[row]: row for row in rows}
        records = {
            row_of.get(id, -1 - n): record for n, (id, record) in enumerate(self._records({*row_of, *several}).items())
        }
        before = keeping_order(self._keep)
        records = dict(sorted(records.items(), key=lambda item: before(item[1])))  # those to keep first
        pairs = self._confirmed(found, within, patterns, vectors.ids, records, scenes)

        sizes = {row: (record.metadata.width, record.metadata.height) for row, record in records.items()}
        groups = []
        grouped: set[int] = set()
        for star in self._stars(pairs, records, sizes):
            grouped |= {star.keeper, *(pair.second for pair in star.members)}
            groups.append(self._group(records[star.keeper], self._members(star, records, sizes)))
        exact = [
            self._group(record, ()) for row, record in records.items() if row not in grouped and len(record.files) > 1
        ]
        return groups + [group for group in exact if group.members]

    def _stars(self, pairs: list[Pair], records: dict[int, Record], sizes: dict[int, tuple[int, int]]) -> list[Star]:
        """Groups in which every copy that is to be given up was compared with its keeper at full resolution.

        What turns out to differ is no member; it may become a keeper, so groups are made until none has an unseen one.
        """
        while True:
            told = [replace(pair, stays=closer.reason) if (closer := self._closer_of(pair)) else pair for pair in pairs]
            by_content = self._keep == "resolution"
            lesser = {one.lesser for one in self._closer.values() if not one.reason} if by_content else set()
            order = sorted(records, key=lambda row: row in lesser)
            found = stars(told, order, sizes, by_detail=by_content, lesser=lesser)
            unseen = [
                pair
                for star in found
                for pair in star.members
                if pair.level == "near" and self._closer_of(pair) is None
            ]
            if not unseen:
                return found
            report = self._reporter("looking closely", len(unseen))
            seen = look_closely(unseen, lambda row: self._path_of(records[row]), self._workers)
            for done, closer in enumerate(seen, start=1):
                self._closer[closer.first, closer.second] = closer
                report(done)

    def _closer_of(self, pair: Pair) -> Closer | None:
        return self._closer.get((min(pair.first, pair.second), max(pair.first, pair.second)))

    def _path_of(self, record: Record) -> str:
        return self._roots.path(self._first_there(record.files).key)

    def _confirmed(
        self,
        found: DuplicateCandidates,
        within: DuplicateCandidates,
        patterns: Patterns,
        ids: Sequence[str],
        records: dict[int, Record],
        scenes: bool,
    ) -> list[Pair]:
        """The candidates that are copies, the copies that those lead to, and with `scenes` the others whose patches
        agree.

        records  of the candidates, by row, those to keep first
        """
        moves = compare_patches(self._store, ids, found, self._reporter("patches", len(found.first)))
        look = worth_a_look(found, moves, likeness(patterns.whole, found.first, found.second))
        look |= are_among(found, within)
        first, second = found.first[look], found.second[look]
        in_part = whole_in_part(patterns, first, second)
        hypotheses = np.concatenate([moves.transform[look], in_part[:, None]], 1)  # (P, 3, 2, 3)
        order = list(records)
        thumbnails = Thumbnails(len(np.union1d(first, second)), workers=self._workers)
        self._read(thumbnails, {row: records[row] for row in np.union1d(first, second).tolist()}, "reading")
        early = with_keepers(first, second, order)
        copies = self._copies(thumbnails, first[early], second[early], hypotheses[early])
        tried = set(zip(first[early].tolist(), second[early].tolist(), strict=True))
        late = ~early & ~settled(first, second, copies, tried)
        copies += self._copies(thumbnails, first[late], second[late], hypotheses[late])
        tried |= set(zip(first[late].tolist(), second[late].tolist(), strict=True))
        more = list(untried_pairs(copies, order, tried))
        if more:
            ways = np.stack([way for *_, way in more]).astype(np.float32)[:, None]  # (P, 1, 2, 3)
            ends = np.array([(one, other) for one, other, _ in more])
            copies += self._copies(thumbnails, ends[:, 0], ends[:, 1], ways)
        known = {(min(pair.first, pair.second), max(pair.first, pair.second)) for pair in copies}
        others = [pair for pair in scenes_among(found, moves) if (pair.first, pair.second) not in known]
        return copies + (others if scenes else [])

    def _copies(
        self, thumbnails: Thumbnails, first: np.ndarray, second: np.ndarray, hypotheses: np.ndarray
    ) -> list[Pair]:
        there = np.array(
            [thumbnails.has(one) and thumbnails.has(other) for one, other in zip(first, second, strict=True)], bool
        )
        first, second, hypotheses = first[there], second[there], hypotheses[there]
        fits = compare_pixels(thumbnails, first, second, hypotheses, self._reporter("pixels", len(first)))
        return copies_among(first, second, fits)

    def _read_patterns(self, ids: Sequence[str]) -> Patterns:
        """What every image looks like, by row."""
        thumbnails = Thumbnails(len(ids), 2 * PATTERN_SIDE, self._workers)
        row_of = {id: row for row, id in enumerate(ids)}
        listed = {row_of[one.id]: one for one in self._store.list_files() if one.id in row_of and one.files}
        self._read(thumbnails, listed, "looking")
        if thumbnails.missing:
            gone = ", ".join(sorted(set(thumbnails.missing.values())))
            self.notes.append(
                f"left out {len(thumbnails.missing)} that could not be looked at ({gone}); to bring the index in line:"
                f" seenit index --index {self._store.location}"
            )
        found = empty_patterns(len(ids))
        there = [row for row in listed if thumbnails.has(row)]
        for start in range(0, len(there), PATTERNS_AT_ONCE):
            rows = there[start : start + PATTERNS_AT_ONCE]
            images = thumbnails.of(rows)
            found.whole[rows], found.parts[rows] = patterns_of(images), patterns_of_parts(images)
        return found

    def _read(self, thumbnails: Thumbnails, records: Mapping[int, Record | Listed], what: str) -> None:
        wanted = [
            (row, self._roots.path(self._first_there(record.files).key), record.id) for row, record in records.items()
        ]
        report = self._reporter(what, len(wanted))
        for done in thumbnails.read(wanted):
            report(done)

    def _reporter(self, what: str, total: int) -> Callable[[int], None]:
        """Says at once that something begins, and then how much of it is done."""
        self._progress(what, 0, total)
        return lambda done: self._progress(what, done, total)

    def _first_there(self, files: Sequence[StoredFile]) -> StoredFile:
        """A file that can be read, where a record has several."""
        if len(files) > 1:
            return next((file for file in files if Path(self._roots.path(file.key)).is_file()), files[0])
        return files[0]

    def _with_several_files(self) -> list[str]:
        return [listed.id for listed in self._store.list_files() if len(listed.files) > 1]

    def _records(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records with these ids that have files, without vectors."""
        wanted = list(ids)
        pages = (wanted[start : start + RECORDS_AT_ONCE] for start in range(0, len(wanted), RECORDS_AT_ONCE))
        return {record.id: record for page in pages for record in self._store.retrieve(page) if record.files}

    def _members(self, star: Star, records: dict[int, Record], sizes: dict[int, tuple[int, int]]) -> list[GroupMember]:
        return [self._member(pair, records, sizes) for pair in (*star.members, *star.related)]

    def _member(self, pair: Pair, records: dict[int, Record], sizes: dict[int, tuple[int, int]]) -> GroupMember:
        keeper, record, closer = records[pair.first], records[pair.second], self._closer_of(pair)
        reason = closer.stays(pair.second, *sizes[pair.first]) if closer else ""
        places = closer.places if closer else ()
        return GroupMember(
            record=record,
            files=tuple(self._files(record)),
            level=pair.level,
            similarity=pair.similarity,
            how=in_words(pair, sizes).replace(SAME_IMAGE, "nearly the same image" if reason else SAME_IMAGE),
            stays=reason or pair.stays or why_never(record.metadata, keeper.metadata),
            differs_at=tuple(
                Difference(
                    in_pixels(one.in_first if pair.first < pair.second else one.in_second, *sizes[pair.first]),
                    in_pixels(one.in_second if pair.first < pair.second else one.in_first, *sizes[pair.second]),
                )
                for one in places
            ),
        )

    def _group(self, keeper: Record, members: Iterable[GroupMember]) -> Group:
        kept, *same = _one_name_each(self._files(keeper))
        exact = [GroupMember(keeper, tuple(same), "exact", 1.0, "the same bytes")] if same else []
        return Group(keeper, kept, (*exact, *members))

    def _files(self, record: Record) -> list[File]:
        return [
            File(file.key, self._roots.path(file.key), file.size, file.mtime_ns, record.id)
            for file in files_in_order(record, self._keep)
        ]


def _one_name_each(files: list[File]) -> list[File]:
    """Without further names of one file: a hard link or a link is no copy, and frees nothing."""
    seen: set[tuple[int, int]] = set()
    found = []
    for file in files:
        try:
            status = os.stat(file.path)
        except OSError:
            found.append(file)  # it is said when it is to be moved
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            found.append(file)
    return found
