"""From candidates to confirmed pairs: patches first, and pixels for those that may be copies.

Each stage is dearer than the one before and sees fewer pairs. The cosine is there already; patches cost a
fifth of a millisecond a pair; pixels cost one, some tens for a copy, and a decoding for each image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from indexer.store.protocol import Store

from ..rerank.patches import batch_patches
from ..rerank.rerank import map_threads
from .candidates import DuplicateCandidates
from .groups import Pair
from .patches import PatchMoves, moves_between
from .proof import COARSE, LEAST_COARSE, Fits, best_start, fit_affine, hopeful
from .thumbnails import Thumbnails

# P pairs

PAIRS_READ_AT_ONCE = 4096  # whose patches' bytes are in memory
PATCHES_AT_ONCE = 128  # pairs whose patches are compared in one go
PAIRS_AT_ONCE = 256  # whose pixels are compared in one go

# Chosen on one half of the made copies, see tests/benchmarks/duplicates_quality.py
LEAST_COSINE = 0.15  # of two images' global vectors, for a look at their patches
LOOK_SURPLUS = 1.0  # of agreeing patches beyond chance, from which on pixels are compared,
LOOK_COSINE = 0.5  # or of the global vectors,
LOOK_ALIKE = 0.4  # or correlation of the patterns,
PART_ALIKE = 0.6  # or of a part of one with all of the other
# What cosine and surplus are worth beside the correlation of pixels that are not aligned yet, see proof.HOPEFUL. Chosen
# on the made copies; between .2 and .6 for each 1 of the cosine it turns away about as many others.
BY_COSINE, BY_SURPLUS, MOST_SURPLUS = 0.4, 0.02, 4.0
NEAR_CORRELATION = 0.5  # of the pixels' windows, for a copy,
DRIFT = 0.03  # and pixels that its blocks may drift,
DRIFT_BY_NOISE = 0.23  # more where what is no copy's fault (noise, blur) moves them, as the correlation tells,
MOST_DRIFT = 0.22  # at most
SCENE_SURPLUS = 6.0  # of agreeing patches beyond chance, for the same scene
SURPLUS_SCALE = 6.0  # surplus at which a scene's similarity has gone 63 % of its way from 0 to 1


@dataclass(frozen=True, eq=False)
class PixelPairs:
    """P pairs of images whose pixels are compared.

    first, second  (P,)          rows
    hypotheses     (P, H, 2, 3)  float32, how the second may lie on the first; the last one whole on whole
    evidence       (P,)          float32, what is known of each pair beforehand, see `evidence_of`
    in_place       (P,)          bool, whether the last hypothesis alone is to be tried, see `spoken_for`
    """

    first: np.ndarray
    second: np.ndarray
    hypotheses: np.ndarray
    evidence: np.ndarray
    in_place: np.ndarray

    def some(self, these: np.ndarray | slice) -> "PixelPairs":
        parts = (self.first, self.second, self.hypotheses, self.evidence, self.in_place)
        return PixelPairs(*(of_pairs[these] for of_pairs in parts))


@dataclass(frozen=True, eq=False)
class PixelFits:
    """What the pixels say of P pairs; see `proof.Fits`."""

    transform: np.ndarray  # (P, 2, 3)
    correlation: np.ndarray  # (P,)
    drift: np.ndarray  # (P,)
    overlap: np.ndarray  # (P, 2)


def compare_patches(
    store: Store, ids: Sequence[str], found: DuplicateCandidates, report: Callable[[int], None] = lambda done: None
) -> PatchMoves:
    """Hold the stored patches of every candidate pair against each other.

    ids     of the records, by row
    report  gets the number of pairs that are done, now and then
    A record without patches agrees with nothing.
    """
    count = len(found.first)
    surplus, transform = np.zeros(count, np.float32), np.zeros((count, 2, 2, 3), np.float32)
    for start in range(0, count, PAIRS_READ_AT_ONCE):
        read = slice(start, min(start + PAIRS_READ_AT_ONCE, count))
        rows = np.union1d(found.first[read], found.second[read]).tolist()
        stored = store.patches([ids[row] for row in rows])
        packed = {row: stored[ids[row]] for row in rows if ids[row] in stored}
        there = np.isin(found.first[read], list(packed)) & np.isin(found.second[read], list(packed))
        places = start + there.nonzero()[0]
        chunks = [places[at : at + PATCHES_AT_ONCE] for at in range(0, len(places), PATCHES_AT_ONCE)]
        ends = ([of_pairs[chunk] for chunk in chunks] for of_pairs in (found.first, found.second))
        for chunk, moves in zip(chunks, map_threads(partial(_moves_of_rows, packed), *ends), strict=True):
            surplus[chunk], transform[chunk] = moves.surplus, moves.transform
        report(read.stop)
    return PatchMoves(surplus, transform)


def _moves_of_rows(packed: Mapping[int, bytes], first: np.ndarray, second: np.ndarray) -> PatchMoves:
    rows, ends = np.unique([first, second], return_inverse=True)
    one, other = torch.from_numpy(ends.reshape(2, -1))
    return moves_between(batch_patches([packed[row] for row in rows.tolist()]), one, other)


def compare_pixels(
    thumbnails: Thumbnails, pairs: PixelPairs, report: Callable[[int], None] = lambda done: None
) -> PixelFits:
    """Lay images on each other and correlate them; `thumbnails` has every row of the pairs."""
    count = len(pairs.first)
    fits = PixelFits(*(np.zeros((count, *shape), np.float32) for shape in ((2, 3), (), (), (2,))))
    fits.correlation[:], fits.drift[:] = -1, np.inf

    def fitted(start: int, end: int) -> tuple[np.ndarray, Fits]:
        """Of those of the pairs that are worth it: their places, and how they fit."""
        some = pairs.some(slice(start, end))
        rows = some.first.tolist(), some.second.tolist()
        one, other = map(thumbnails.squares, rows)
        small = torch.stack([thumbnails.are_small(of_pairs) for of_pairs in rows]).any(0)
        ways, known, placed = map(torch.from_numpy, (some.hypotheses, some.evidence, some.in_place))
        begin, score = torch.empty(end - start, 2, 3), torch.empty(end - start)
        for these, tried in ((placed, ways[:, -1:]), (~placed, ways)):
            at = these.nonzero()[:, 0]
            begin[at], score[at] = best_start(one(at, COARSE), other(at, COARSE), tried[at])
        at = hopeful(score, known, LEAST_COARSE).nonzero()[:, 0]
        found = fit_affine(
            lambda of, side: one(at[of], side),
            lambda of, side: other(at[of], side),
            begin[at],
            known[at],
            small[at],
        )
        return start + at.numpy(), found

    starts = range(0, count, PAIRS_AT_ONCE)
    ends = [min(start + PAIRS_AT_ONCE, count) for start in starts]
    for end, (part, found) in zip(ends, map_threads(fitted, starts, ends), strict=True):
        fits.transform[part], fits.correlation[part] = found.transform, found.correlation
        fits.drift[part], fits.overlap[part] = found.drift, found.overlap
        report(end)
    return fits


def spoken_for(found: DuplicateCandidates, moves: PatchMoves) -> np.ndarray:
    """Which pairs vectors or patches speak for; others, which only look alike, can be no more than whole on whole.

    (P,) bool
    """
    return (moves.surplus >= LOOK_SURPLUS) | (found.cosine >= LOOK_COSINE)


def evidence_of(cosine: np.ndarray, surplus: np.ndarray) -> np.ndarray:
    """What vectors and patches say for candidates (P,), in terms of a correlation.  (P,) float32"""
    return np.asarray(BY_COSINE * cosine + BY_SURPLUS * surplus.clip(0, MOST_SURPLUS), np.float32)


def copies_among(first: np.ndarray, second: np.ndarray, fits: PixelFits) -> list[Pair]:
    """The pairs whose pixels prove that they are copies."""
    noise = np.sqrt(1 / fits.correlation.clip(0.1, 1) ** 2 - 1)  # deviation over the structure's, were it all noise
    proven = (fits.correlation >= NEAR_CORRELATION) & (
        fits.drift <= np.minimum(DRIFT + DRIFT_BY_NOISE * noise, MOST_DRIFT)
    )
    return [
        Pair(
            int(first[n]),
            int(second[n]),
            "near",
            round(float(fits.correlation[n].clip(0, 1)), 4),
            fits.transform[n].astype(float),
            (float(fits.overlap[n, 0]), float(fits.overlap[n, 1])),
        )
        for n in proven.nonzero()[0].tolist()
    ]


def scenes_among(found: DuplicateCandidates, moves: PatchMoves) -> list[Pair]:
    """The pairs whose patches agree, copies among them."""
    agreeing = (moves.surplus >= SCENE_SURPLUS).nonzero()[0].tolist()
    return [
        Pair(
            int(found.first[n]),
            int(found.second[n]),
            "scene",
            round(1 - float(np.exp(-moves.surplus[n] / SURPLUS_SCALE)), 4),
            None,
            (0.0, 0.0),
        )
        for n in agreeing
    ]
