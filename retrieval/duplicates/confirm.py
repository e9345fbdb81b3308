"""From candidates to confirmed pairs: patches first, and pixels for those that may be copies.

Each stage is dearer than the one before and sees fewer pairs. The cosine is there already; patches cost half a
millisecond a pair; pixels cost some tens of them, and a decoding for each image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from indexer.store.protocol import Store

from ..rerank.rerank import map_threads
from .candidates import DuplicateCandidates
from .groups import Pair
from .patches import moves_between
from .proof import COARSE, LEAST_COARSE, Fits, best_start, fit_affine, hopeful
from .thumbnails import Thumbnails

# P pairs

FIRSTS_AT_ONCE = 256  # images whose neighbours' patches are in memory
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
class PatchMoves:
    """What the patches say of each candidate.

    surplus    (P,)           consistency beyond chance, see Comparison
    transform  (P, 2, 2, 3)   from the first to the second: found plain, found mirrored
    """

    surplus: np.ndarray
    transform: np.ndarray


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
    firsts, starts = np.unique(found.first, return_index=True)
    ends = np.append(starts[1:], count)
    for block in range(0, len(firsts), FIRSTS_AT_ONCE):
        within = slice(block, block + FIRSTS_AT_ONCE)
        low, high = starts[within][0], ends[within][-1]
        rows = np.union1d(firsts[within], found.second[low:high]).tolist()
        patches = store.patches([ids[row] for row in rows])
        beside = [
            [n for n in range(start, end) if ids[first] in patches and ids[found.second[n]] in patches]
            for first, start, end in zip(firsts[within].tolist(), starts[within], ends[within], strict=True)
        ]
        beside = [at for at in beside if at]
        packed = [[patches[ids[found.second[n]]] for n in at] for at in beside]
        of_firsts = [patches[ids[found.first[at[0]]]] for at in beside]
        for at, moves in zip(beside, map_threads(moves_between, of_firsts, packed), strict=True):
            surplus[at], transform[at] = moves.surplus.numpy(), moves.transform.numpy()
        report(int(high))
    return PatchMoves(surplus, transform)


def compare_pixels(
    thumbnails: Thumbnails,
    first: np.ndarray,
    second: np.ndarray,
    hypotheses: np.ndarray,
    evidence: np.ndarray,
    report: Callable[[int], None] = lambda done: None,
) -> PixelFits:
    """Lay images on each other and correlate them.

    first, second  (P,)          rows that have thumbnails
    hypotheses     (P, H, 2, 3)  how the second may lie on the first; whole on whole, turned and mirrored, is tried too
    evidence       (P,)          what is known of each pair beforehand, see `evidence_of`
    """
    count = len(first)
    fits = PixelFits(*(np.zeros((count, *shape), np.float32) for shape in ((2, 3), (), (), (2,))))
    fits.correlation[:], fits.drift[:] = -1, np.inf

    def fitted(start: int, end: int) -> tuple[np.ndarray, Fits]:
        """Of those of the pairs that are worth it: their places, and how they fit."""
        rows = [of_pairs[start:end].tolist() for of_pairs in (first, second)]
        one, other = map(thumbnails.squares, rows)
        small = torch.stack([thumbnails.are_small(some) for some in rows]).any(0)
        at = torch.arange(end - start)
        begin, score = best_start(one(at, COARSE), other(at, COARSE), torch.from_numpy(hypotheses[start:end]))
        known = torch.from_numpy(evidence[start:end])
        at = at[hopeful(score, known, LEAST_COARSE)]
        found = fit_affine(
            lambda some, side: one(at[some], side),
            lambda some, side: other(at[some], side),
            begin[at],
            known[at],
            small[at],
        )
        return start + at.numpy(), found

    starts = list(range(0, count, PAIRS_AT_ONCE))
    for at in range(0, len(starts), threads := torch.get_num_threads()):
        some = starts[at : at + threads]
        ends = [min(start + PAIRS_AT_ONCE, count) for start in some]
        for part, found in map_threads(fitted, some, ends):
            fits.transform[part], fits.correlation[part] = found.transform, found.correlation
            fits.drift[part], fits.overlap[part] = found.drift, found.overlap
        report(ends[-1])
    return fits


def worth_a_look(found: DuplicateCandidates, moves: PatchMoves, alike: np.ndarray) -> np.ndarray:
    """Which pairs may be copies; `alike` (P,) is the likeness of their patterns.  (P,) bool"""
    return (moves.surplus >= LOOK_SURPLUS) | (found.cosine >= LOOK_COSINE) | (alike >= LOOK_ALIKE)


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
