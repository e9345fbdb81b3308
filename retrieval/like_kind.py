"""Others of a kind: candidates read from a store and put in the order of their likeness of kind.

Matches come first, as geometric verification has them. What is no match follows by `rerank.kind`, for of the patches of
such a candidate too few agree to say anything of it. By default that is done with the candidates at hand, and only
where one of them is a match: it shows that the index knows the thing, and it stands first whatever follows it. Asked
for others of the kind, more candidates are taken in, those nearest to the best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from indexer.descriptor.patch_codec import unpack_parts
from indexer.descriptor.whitening import Whitening, kind_vectors
from indexer.store.protocol import Filter, Hit, Store

from .query.query import EncodedQuery
from .rerank.kind import kind_scores, matches_first, of_both
from .rerank.ranking import Ranked

MOST = 600  # candidates of one query at once; time is quadratic in them; not tuned
SEEDS, NEAR_EACH = 10, 100  # best by kind whose nearest are taken in, and how many; chosen with `rerank.kind`
OWN_COSINE = 0.95  # from which a match is the query's own image, which says nothing of the others; not tuned

IsMatch = Callable[[float, float], bool]  # of a score and a consistency


@dataclass(frozen=True, eq=False)
class _Described:
    """Candidates whose vectors were read.

    hits     their numbers among the ranked hits
    stored   (B, G)  float32, L2-normalised
    parts    (B, L, D) float32, or None where the index has none
    """

    hits: list[int]
    stored: np.ndarray
    parts: np.ndarray | None


class KindOrder:
    """Puts candidates of one index in the order of their likeness of kind, within one state of its store."""

    def __init__(self, store: Store, whitening: Whitening, is_match: IsMatch) -> None:
        self._store = store
        self._whitening = whitening
        self._is_match = is_match

    def ordered(self, asked: EncodedQuery, ranked: Ranked, where: Filter, *, like_kind: bool) -> Ranked:
        """A query's candidates, matches first and the others by likeness of kind; scores stay what they were.

        like_kind  with further candidates that meet `where`, and also where nothing is a match
        """
        if not ranked.hits or not (like_kind or any(self._matches(ranked))):
            return ranked
        described = self._described(ranked)
        if not described.hits or not (like_kind or self._has_other_match(asked, ranked, described)):
            return ranked
        if like_kind:
            best = np.argsort(-self._scores(asked, ranked, described), kind="stable")[:SEEDS]
            ranked = self._grown(asked, ranked, described.stored[best], where)
            described = self._described(ranked)
        scores = np.full(len(ranked.hits), -np.inf)
        scores[described.hits] = self._scores(asked, ranked, described)
        return ranked.ordered(matches_first(self._matches(ranked), scores))

    def _matches(self, ranked: Ranked) -> list[bool]:
        return [self._is_match(hit.score, ranked.consistency(n)) for n, hit in enumerate(ranked.hits)]

    def _has_other_match(self, asked: EncodedQuery, ranked: Ranked, described: _Described) -> bool:
        """Whether a candidate is a match that is not the query's own image."""
        cosines, matches = _best_cosines(asked, described.stored), self._matches(ranked)
        return any(matches[n] and cosine < OWN_COSINE for n, cosine in zip(described.hits, cosines, strict=True))

    def _described(self, ranked: Ranked) -> _Described:
        ids = [hit.id for hit in ranked.hits[:MOST]]
        records = {record.id: record for record in self._store.retrieve(ids, vectors=True)}
        hits = [n for n, id in enumerate(ids) if id in records and records[id].global_vector is not None]
        of_hits = [records[ids[n]] for n in hits]
        stored = [record.global_vector for record in of_hits if record.global_vector is not None]
        parts = unpack_parts([record.patches or b"" for record in of_hits])
        return _Described(hits, np.stack(stored) if stored else np.empty((0, 0), np.float32), parts)

    def _scores(self, asked: EncodedQuery, ranked: Ranked, described: _Described) -> np.ndarray:
        """Likeness of kind of the described candidates.  (B,) float64"""
        cosines = _best_cosines(asked, described.stored)
        by_patches = np.array(
            [
                max(ranked.hits[n].score - cosine / 2, 0) if ranked.is_compared(n) else 0.0
                for n, cosine in zip(described.hits, cosines, strict=True)
            ]
        )
        crops = np.stack([view.vector for view in asked.views])
        of_crops = [view.kind_vector for view in asked.views if view.kind_vector is not None]
        parts = None if described.parts is None else torch.from_numpy(described.parts)
        of_candidates = None if parts is None else kind_vectors(parts, self._whitening)
        if of_candidates is None or len(of_crops) < len(asked.views):  # an older index, or a query that is a vector
            return kind_scores(crops, described.stored, by_patches)
        return kind_scores(of_both(crops, np.stack(of_crops)), of_both(described.stored, of_candidates), by_patches)

    def _grown(self, asked: EncodedQuery, ranked: Ranked, seeds: np.ndarray, where: Filter) -> Ranked:
        """With the nearest of the best candidates, vectors (S, G), which are not compared by their patches."""
        known = {hit.id for hit in ranked.hits}
        found = [hit for hits in self._store.search(seeds, NEAR_EACH, where) for hit in hits]
        new = list(dict.fromkeys(hit.id for hit in found if hit.id not in known))[: max(MOST - len(known), 0)]
        vectors = [
            (record.id, record.global_vector)
            for record in self._store.retrieve(new, vectors=True)
            if record.global_vector is not None
        ]
        if not vectors:
            return ranked
        cosines = _best_cosines(asked, np.stack([vector for _, vector in vectors]))
        hits = [Hit(id, float(cosine)) for (id, _), cosine in zip(vectors, cosines, strict=True)]
        if not ranked.compared:
            return Ranked([*ranked.hits, *hits])
        comparison, last = ranked.compared[0][0], ranked.hits[-1].score
        hits = [replace(hit, score=min(hit.score / 2, last)) for hit in hits]  # half of a score is the patches' part
        not_compared = [(comparison, len(comparison.inlier_weight))] * len(hits)
        return Ranked([*ranked.hits, *hits], [*ranked.compared, *not_compared])


def _best_cosines(asked: EncodedQuery, vectors: np.ndarray) -> np.ndarray:
    """Of each vector (B, G) the cosine of the crop that it is most like.  (B,)"""
    crops: Sequence[np.ndarray] = [view.vector for view in asked.views]
    best: np.ndarray = (np.stack(crops) @ vectors.T).max(0)
    return best
