"""An index -> its duplicates: candidates, patches, pixels, groups, in this order."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from indexer.errors import SeenitError
from indexer.index.index import WAIT_S, Index
from indexer.index.keys import Roots
from indexer.printable import pasted
from indexer.store.protocol import Filter, Listed, Record, Store, StoredFile

from .candidates import (
    DuplicateCandidates,
    Vectors,
    are_among,
    near_pairs,
    read_vectors,
    with_pairs,
    without_pairs,
)
from .closely import in_pixels
from .confirm import (
    LEAST_COSINE,
    LOOK_ALIKE,
    PART_ALIKE,
    PixelPairs,
    compare_patches,
    compare_pixels,
    copies_among,
    evidence_of,
    scenes_among,
    spoken_for,
)
from .groups import SAME_IMAGE, Pair, describe_change
from .keeper import Folders, files_in_order, keeping_order, why_file_before, why_never
from .options import DuplicateOptions
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
    whole_on_whole,
)
from .raw_pairs import PAIR, beside_raw, shots
from .schedule import Transform, settled, untried_pairs, with_keepers
from .settle import Settling
from .thumbnails import Thumbnails

RECORDS_AT_ONCE = 2000
PATTERNS_AT_ONCE = 1024
DEFAULT = DuplicateOptions()
OTHER_PHOTO = "it is another photo of the motif"
IN_REFERENCE = "it lies in a reference folder"


def find_duplicates(
    index: str | Path,
    options: DuplicateOptions = DEFAULT,
    *,
    workers: int | None = None,
    wait_s: float = WAIT_S,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Duplicates:
    """Group the images of an index that are copies of each other. Nothing is changed.

    options   what to look for, and what to keep
    workers   decoding processes; default: as many as cores
    progress  gets what is being done, how much of it is done, and how much there is
    Raises SeenitError where there is no index, another version made it, or a folder of the options is not in it.
    """
    started = time.monotonic()
    with Index.open(index, wait_s=wait_s) as opened, opened.store.snapshot():
        folders = Folders(
            *(tuple(_keys_of(opened, folder) for folder in named) for named in (options.prefer, options.reference))
        )
        search = _Search(opened.store, opened.roots, options, folders, workers, progress)
        groups = search.exact() if options.level == "exact" else search.near()
        return Duplicates(
            index=opened.location,
            options=options,
            groups=tuple(sorted(groups, key=lambda group: -sum(file.size for file in group.spare))),
            images=opened.count,
            seconds=time.monotonic() - started,
            notes=tuple(search.notes),
        )


def _keys_of(index: Index, folder: str | Path) -> tuple[str, ...]:
    """Keys of a folder with images; a mistyped reference folder would protect nothing."""
    keys = tuple(index.folder_keys(folder))
    if not index.store.count(Filter(under=keys)):
        raise SeenitError(f"no images below {folder} in the index at {index.location}; name a folder that was indexed")
    return keys


class _Search:
    """What the steps of one run share."""

    def __init__(
        self,
        store: Store,
        roots: Roots,
        options: DuplicateOptions,
        folders: Folders,
        workers: int | None,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.notes: list[str] = []
        self.store = store
        self._roots = roots
        self._options = options
        self._folders = folders
        self.workers = workers
        self._progress = progress

    def exact(self) -> list[Group]:
        """Only what has the same bytes; neither vectors nor files are read."""
        several = self._with_several_files()
        records = self._records(several)
        return [group for record in records.values() if (group := self._group(record, ())).members]

    def near(self) -> list[Group]:
        """Everything up to copies, or up to scenes."""
        vectors = read_vectors(self.store)
        if vectors.unusual:
            count = len(vectors.unusual)
            self.notes.append(f"left out {count} with damaged vectors; to make them anew: seenit index in a new place")
        listed = list(self.store.list_files())
        patterns = self._read_patterns(vectors.ids, listed)
        found, within = self._candidates(vectors, patterns, listed)
        names = beside_raw(listed)
        rows = np.union1d(found.first, found.second).tolist()
        row_of = {id: row for row, id in enumerate(vectors.ids)}
        wanted = {vectors.ids[row] for row in rows} | {id for pair in names for id in pair if id in row_of}
        wanted |= {one.id for one in listed if len(one.files) > 1}
        by_id = self._records(wanted)
        records = {row_of.get(id, -1 - n): record for n, (id, record) in enumerate(by_id.items())}
        before = keeping_order(self._options.keep, self._folders)
        records = dict(sorted(records.items(), key=lambda item: before(item[1])))  # those to keep first
        references = {row for row, record in records.items() if self._is_reference(record)}
        proof = _Proof(self, found, within, patterns, vectors.ids, records, references)
        pairs = proof.confirmed(scenes=self._options.level == "scene")
        known = {frozenset((pair.first, pair.second)) for pair in pairs}
        for raw, other in shots(names, by_id):
            if raw in row_of and other in row_of and frozenset((row_of[raw], row_of[other])) not in known:
                pairs.append(Pair(row_of[raw], row_of[other], "near", 0.0, None, (1.0, 1.0), PAIR))

        settling = Settling(
            records,
            self._options,
            self._folders,
            lambda row: self.path_of(records[row]),
            proof,
            self.reporter,
            self.workers,
        )
        groups = []
        grouped: set[int] = set()
        for star in settling.settled(pairs):
            grouped |= {star.keeper, *(pair.second for pair in star.members)}
            members = [self._member(pair, records, settling) for pair in (*star.members, *star.related)]
            groups.append(self._group(records[star.keeper], members, settling.why_kept(star)))
        exact = [
            self._group(record, ()) for row, record in records.items() if row not in grouped and len(record.files) > 1
        ]
        return groups + [group for group in exact if group.members]

    def _candidates(
        self, vectors: Vectors, patterns: Patterns, listed: Sequence[Listed]
    ) -> tuple[DuplicateCandidates, DuplicateCandidates]:
        """All pairs that are worth a look, and those of them of which one may be a part of the other.

        Two images of reference folders are no pair.
        """
        total = len(vectors.ids)
        found = near_pairs(
            vectors.rows, LEAST_COSINE, self._options.neighbours, report=self.reporter("neighbours", total)
        )
        turned = alike_in_any_position(patterns.whole, LOOK_ALIKE, self.reporter("turned and mirrored", total))
        within = alike_in_part(patterns, PART_ALIKE, self.reporter("collages", total))
        for more in (turned, within):
            found = with_pairs(found, more, vectors.rows)
        references = {one.id for one in listed if self._is_reference(one)}
        return without_pairs(found, np.array([id in references for id in vectors.ids], bool)), within

    def _is_reference(self, record: Record | Listed) -> bool:
        return any(self._folders.is_reference(file.key) for file in record.files)

    def path_of(self, record: Record) -> str:
        return self._roots.path(self._first_there(record.files).key)

    def _read_patterns(self, ids: Sequence[str], listed: Sequence[Listed]) -> Patterns:
        """What every image looks like, by row."""
        thumbnails = Thumbnails(len(ids), 2 * PATTERN_SIDE, self.workers)
        row_of = {id: row for row, id in enumerate(ids)}
        by_row = {row_of[one.id]: one for one in listed if one.id in row_of and one.files}
        self.read(thumbnails, by_row, "looking")
        if thumbnails.missing:
            gone = ", ".join(sorted(set(thumbnails.missing.values())))
            self.notes.append(
                f"left out {len(thumbnails.missing)} that could not be looked at ({gone}); to bring the index in line:"
                f" seenit index --index {pasted(self.store.location)}"
            )
        found = empty_patterns(len(ids))
        there = [row for row in by_row if thumbnails.has(row)]
        for start in range(0, len(there), PATTERNS_AT_ONCE):
            rows = there[start : start + PATTERNS_AT_ONCE]
            images = thumbnails.of(rows)
            found.whole[rows], found.parts[rows] = patterns_of(images), patterns_of_parts(images)
        return found

    def read(self, thumbnails: Thumbnails, records: Mapping[int, Record | Listed], what: str) -> None:
        wanted = [
            (row, self._roots.path(self._first_there(record.files).key), record.id) for row, record in records.items()
        ]
        report = self.reporter(what, len(wanted))
        for done in thumbnails.read(wanted):
            report(done)

    def reporter(self, what: str, total: int) -> Callable[[int], None]:
        """Says at once that something begins, and then how much of it is done."""
        self._progress(what, 0, total)
        return lambda done: self._progress(what, done, total)

    def _first_there(self, files: Sequence[StoredFile]) -> StoredFile:
        """A file that can be read, where a record has several."""
        if len(files) > 1:
            return next((file for file in files if Path(self._roots.path(file.key)).is_file()), files[0])
        return files[0]

    def _with_several_files(self) -> list[str]:
        return [listed.id for listed in self.store.list_files() if len(listed.files) > 1]

    def _records(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records with these ids that have files, without vectors."""
        wanted = list(ids)
        pages = (wanted[start : start + RECORDS_AT_ONCE] for start in range(0, len(wanted), RECORDS_AT_ONCE))
        return {record.id: record for page in pages for record in self.store.retrieve(page) if record.files}

    def _member(self, pair: Pair, records: dict[int, Record], settling: Settling) -> GroupMember:
        keeper, record, closer = records[pair.first], records[pair.second], settling.closer_of(pair)
        sizes = settling.sizes
        reason = closer.stays(pair.second, *sizes[pair.first]) if closer else ""
        places = closer.places if closer else ()
        how = describe_change(pair, sizes) if pair.stays != PAIR else "raw and image of one shot"
        apart = OTHER_PHOTO if pair.level == "scene" else ""
        apart = IN_REFERENCE if self._is_reference(record) else apart
        return GroupMember(
            record=record,
            files=tuple(self._files(record)),
            level=pair.level,
            similarity=pair.similarity,
            how=how.replace(SAME_IMAGE, "nearly the same image" if reason else SAME_IMAGE),
            stays=reason or pair.stays or apart or why_never(record.metadata, keeper.metadata),
            differs_at=tuple(
                Difference(
                    in_pixels(one.in_first if pair.first < pair.second else one.in_second, *sizes[pair.first]),
                    in_pixels(one.in_second if pair.first < pair.second else one.in_first, *sizes[pair.second]),
                )
                for one in places
            ),
            transform=pair.transform,
        )

    def _group(self, keeper: Record, members: Iterable[GroupMember], why: str = "") -> Group:
        kept, *same = _one_name_each(self._files(keeper))
        same = [file for file in same if not self._folders.is_reference(file.key)]
        exact = [GroupMember(keeper, tuple(same), "exact", 1.0, "the same bytes")] if same else []
        if same:
            first = why_file_before(
                self._options.keep,
                self._folders,
                *(StoredFile(one.key, one.size, one.mtime_ns) for one in (kept, same[0])),
            )
            why = "; ".join(part for part in (why, f"of the files with its bytes it {first}") if part)
        return Group(keeper, kept, (*exact, *members), why)

    def _files(self, record: Record) -> list[File]:
        return [
            File(file.key, self._roots.path(file.key), file.size, file.mtime_ns, record.id)
            for file in files_in_order(record, self._options.keep, self._folders)
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


class _Proof:
    """Candidates, compared by patches and then by pixels, with what further comparisons need."""

    def __init__(
        self,
        search: _Search,
        found: DuplicateCandidates,
        within: DuplicateCandidates,
        patterns: Patterns,
        ids: Sequence[str],
        records: dict[int, Record],
        references: set[int],
    ) -> None:
        """
        found    what is worth a look at the patches
        within   those of them of which one may be a part of the other
        records  of the candidates, by row, those to keep first
        references  rows of reference folders, of which no two are compared
        """
        self._references = references
        self._search = search
        self._found = found
        self._order = list(records)
        self._moves = compare_patches(search.store, ids, found, search.reporter("patches", len(found.first)))
        self._patterns = patterns
        alike, position = likeness(patterns.whole, found.first, found.second)
        spoken = spoken_for(found, self._moves) | are_among(found, within)
        look = spoken | (alike >= LOOK_ALIKE)
        first, second = found.first[look], found.second[look]
        in_part, turned = whole_in_part(patterns, first, second), whole_on_whole(position[look])
        self._pairs = PixelPairs(
            first,
            second,
            np.concatenate([self._moves.transform[look], in_part[:, None], turned[:, None]], 1),
            evidence_of(found.cosine[look], self._moves.surplus[look]),
            ~spoken[look],
        )
        rows = np.union1d(first, second)
        self._tried: set[tuple[int, int]] = set()  # pairs of rows that were compared, the lower one first
        self._thumbnails = Thumbnails(len(rows), workers=search.workers)
        search.read(self._thumbnails, {row: records[row] for row in rows.tolist()}, "reading")

    def confirmed(self, scenes: bool) -> list[Pair]:
        """The candidates that are copies, the copies that those lead to, and with `scenes` the others whose patches
        agree."""
        early = with_keepers(self._pairs.first, self._pairs.second, self._order)
        copies = self._copies(self._pairs.some(early))
        late = self._pairs.some(~early)
        copies += self._copies(late.some(~settled(late.first, late.second, copies, self._tried)))
        copies += self.further_copies(copies, self._order)
        known = {(min(pair.first, pair.second), max(pair.first, pair.second)) for pair in copies}
        others = [pair for pair in scenes_among(self._found, self._moves) if (pair.first, pair.second) not in known]
        return copies + (others if scenes else [])

    def further_copies(self, pairs: Sequence[Pair], order: Sequence[int]) -> list[Pair]:
        """Copies that chains of others lead to, in an order of keeping; see `untried_pairs`."""
        return self.copies_along(list(untried_pairs(pairs, order, self._tried)))

    def copies_along(self, ways: Sequence[tuple[int, int, Transform]]) -> list[Pair]:
        """Further pairs of rows that are copies; each with the transform that others lead to."""
        ways = [way for way in ways if not self._references.issuperset(way[:2])]
        if not ways:
            return []
        first, second = np.array([way[:2] for way in ways]).T
        turned = whole_on_whole(likeness(self._patterns.whole, first, second)[1])
        hypotheses = np.stack([np.stack([way for *_, way in ways]), turned], 1).astype(np.float32)  # (P, 2, 2, 3)
        certain, in_place = np.ones(len(ways), np.float32), np.zeros(len(ways), bool)
        return self._copies(PixelPairs(first, second, hypotheses, certain, in_place))

    def _copies(self, pairs: PixelPairs) -> list[Pair]:
        ends = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
        self._tried |= {(min(pair), max(pair)) for pair in ends}
        has = self._thumbnails.has
        pairs = pairs.some(np.array([has(one) and has(other) for one, other in ends], bool))
        fits = compare_pixels(self._thumbnails, pairs, self._search.reporter("pixels", len(pairs.first)))
        return copies_among(pairs.first, pairs.second, fits)
