"""Candidates in their order: the cosine of the global vectors and what the patches have in common, fused.

It knows no index: whoever calls it has read the candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from indexer.store.protocol import Hit

from ..query.query import EncodedQuery
from .evidence import Evidence
from .fuse import INLIER_SCALE, fuse_scores, saturate
from .neighbours import best_cosine
from .rerank import NO_MATCH, Comparison, Match, glance, to_evidence

if TYPE_CHECKING:
    from indexer.descriptor.embedder import Indexed
    from indexer.descriptor.features import CropFeatures


@dataclass(frozen=True, eq=False)
class Ranked:
    """Candidates, best first; `compared` names for each the comparison and its place there, () without patches."""

    hits: list[Hit]
    compared: Sequence[tuple[Comparison, int]] = ()

    def is_compared(self, n: int) -> bool:
        """Whether hit number n was compared with all of the query's patches."""
        return bool(self.compared) and self.compared[n][1] < len(self.compared[n][0].inlier_weight)

    def ordered(self, order: Sequence[int]) -> "Ranked":
        """The hits with these numbers, in this order."""
        return Ranked([self.hits[n] for n in order], [self.compared[n] for n in order] if self.compared else ())

    def consistency(self, n: int) -> float:
        """By how much the inliers of hit number n stand out on average, see `Comparison`."""
        if not self.compared:
            return 0.0
        comparison, row = self.compared[n]
        return comparison.consistency(row)

    def colour_difference(self, n: int) -> float | None:
        """By how much the inliers of hit number n differ in colour, see `Comparison`; None where it is not known."""
        if not self.compared:
            return None
        comparison, row = self.compared[n]
        return comparison.colour_difference(row)

    def match(self, n: int) -> Match | None:
        """What hit number n has in common with the query; None where patches were not compared."""
        if not self.compared:
            return None
        comparison, row = self.compared[n]
        return comparison.match(row)


IsMatch = Callable[[Ranked, int], bool]  # whether the hit of this number is a match


@dataclass(frozen=True)
class Reranked:
    """One candidate after `rerank_candidates`.

    number    its place in the list of candidates that was given, from 0
    score     in [-1, 1], higher is more similar
    evidence  its inliers and boxes; its probability is None, since that takes an index's calibration
    """

    number: int
    score: float
    evidence: Evidence


def rerank_candidates(query: EncodedQuery, candidates: "Sequence[Indexed]") -> list[Reranked]:
    """Candidates of a query in their order, best first, by global vectors and geometric verification of patches.

    query       as `QueryEncoder.encode` returns it
    candidates  as `Embedder.indexed` returns them, with the same backbone and whitening
    """
    hits = [Hit(str(number), best_cosine(query, one.view.vector)) for number, one in enumerate(candidates)]
    ranked = rank_by_patches({str(number): one.packed for number, one in enumerate(candidates)}, query, hits)
    return [Reranked(int(hit.id), hit.score, _evidence(ranked, place)) for place, hit in enumerate(ranked.hits)]


def rank_by_patches(
    packed: Mapping[str, bytes], query: EncodedQuery, hits: Sequence[Hit], deep: int | None = None
) -> Ranked:
    """The hits by cosine and patches together; what one has in common with a disliked image does not count.

    packed  patches by id, of the hits that have any
    deep    hits that are compared with all of the query's patches, the best by a glance at all of them; the others
            follow, without evidence. None: all
    """
    views = [view for view in query.views if len(view.tokens)]
    if not views or not any(hit.id in packed for hit in hits):
        return Ranked(list(hits))
    hits, others = _at_a_glance(packed, views, hits, len(hits) if deep is None else deep)
    of_hits = [packed[hit.id] for hit in hits if hit.id in packed]
    comparison = Comparison(views, of_hits)
    by_patches = np.stack([comparison.inlier_weight, comparison.distinctiveness])  # (2, candidates)
    if unlike := [view for view in query.unlike if len(view.tokens)]:
        against = Comparison(unlike, of_hits)
        by_patches = np.maximum(by_patches - np.stack([against.inlier_weight, against.distinctiveness]), 0)
    by_patches = np.pad(by_patches, ((0, 0), (0, len(hits) - len(of_hits))))
    scores = fuse_scores(np.array([hit.score for hit in hits]), *by_patches)
    order = np.argsort(-scores, kind="stable").tolist()
    ranked = [Hit(hits[n].id, float(scores[n])) for n in order]
    # half of a score is the patches' part
    rest = np.minimum.accumulate([ranked[-1].score, *(hit.score / 2 for hit in others)])[1:]
    ranked += [Hit(hit.id, score) for hit, score in zip(others, rest.tolist(), strict=True)]
    return Ranked(ranked, [(comparison, n) for n in (*order, *range(len(order), len(ranked)))])


def _at_a_glance(
    packed: Mapping[str, bytes], views: "Sequence[CropFeatures]", hits: Sequence[Hit], count: int
) -> tuple[list[Hit], list[Hit]]:
    """The `count` most promising hits in their order, those without patches last; and the others, best first."""
    hits = sorted(hits, key=lambda hit: hit.id not in packed)
    if len(hits) <= count:
        return hits, []
    common = glance(views, [packed[hit.id] for hit in hits if hit.id in packed])
    common = np.pad(common, (0, len(hits) - len(common)))
    promise = np.array([hit.score for hit in hits]) + saturate(common, INLIER_SCALE)
    order = np.argsort(-promise, kind="stable").tolist()
    return [hits[n] for n in sorted(order[:count])], [hits[n] for n in order[count:]]


def _evidence(ranked: Ranked, place: int) -> Evidence:
    return to_evidence(ranked.match(place) or NO_MATCH, None)
