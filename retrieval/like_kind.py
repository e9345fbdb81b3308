"""Others of a kind: candidates read from a store and put in the order of their likeness of kind.

By default matches come first, as geometric verification has them. What is no match follows by `rerank.kind`, for of the
patches of such a candidate too few agree to say anything of it, and that only where the first candidate is a match: it
shows that the index knows the thing, and it stands first whatever follows it. Where one asks for others of the kind,
likeness and match probability order all of them together. More candidates are taken in, those nearest to the best by
kind, and most where one asks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from indexer.descriptor.patch_codec import unpack_colours, unpack_parts
from indexer.descriptor.whitening import kind_vectors
from indexer.index.index import Index
from indexer.store.protocol import Filter, Hit, StoredFeatures

from .query.query import EncodedQuery
from .rerank.colour_histograms import about_mean, colour_histograms, colours_of_crop
from .rerank.kind import COLOURS, KIND, MATCH_WEIGHT, STORED, joined, kind_and_match, kind_scores, matches_first
from .rerank.ranking import IsMatch, Ranked

MOST = 600  # candidates of one query at once; time is quadratic in them; not tuned
SEEDS, NEAR_EACH = 10, 100  # best by kind whose nearest are taken in, and how many; chosen with `rerank.kind`
# Likewise by default, behind a match. For time: mAP of paris with 0, 1, 2, 3, 10 .777 .798 .837 .856 .894
SEEDS_BY_DEFAULT = 3
READ_AT_ONCE = 12_800  # records, some 8 kB each, that are in memory for several queries: 32 by default; not tuned
OWN_COSINE = 0.95  # from which a match is the query's own image, which says nothing of the others; not tuned


@dataclass(frozen=True, eq=False)
class _Described:
    """Candidates whose vectors were read.

    hits     their numbers among the ranked hits
    stored   (B, G)  float32, L2-normalised
    parts    (B, 1, D) float32, the first of each, or None where the index has none
    colours  (B, H)  float32, see `colour_histograms`, or None where the index has none
    """

    hits: list[int]
    stored: np.ndarray
    parts: np.ndarray | None
    colours: np.ndarray | None


class KindOrder:
    """Puts candidates of one index in the order of their likeness of kind, within one state of its store."""

    def __init__(self, index: Index, is_match: IsMatch, probability: Callable[[Ranked, int], float]) -> None:
        """
        is_match     whether the hit of a number is a match, which is cheaper to tell than
        probability  that it is one, in [0, 1]
        """
        self._index = index  # whose statistics are read where there is use for them
        self._store = index.store
        self._is_match = is_match
        self._probability = probability

    def ordered(
        self, asked: Sequence[EncodedQuery], ranked: Sequence[Ranked], where: Filter, *, like_kind: bool
    ) -> list[Ranked]:
        """The candidates of each query, matches first and the others by likeness of kind; scores stay what they were.

        where      is met by further candidates
        like_kind  with more of them, also where nothing is a match, and by likeness and match probability together

        By default 32 queries ask the store as often as one does.
        """
        ordered = list(ranked)
        matches = [[] if like_kind else self._matches(one) for one in ranked]
        wanted = [n for n, one in enumerate(ranked) if one.hits and (like_kind or any(matches[n]))]
        further = NEAR_EACH * (SEEDS if like_kind else SEEDS_BY_DEFAULT)
        most = min(MOST, max([len(ranked[n].hits) for n in wanted], default=0) + further)
        at_once = READ_AT_ONCE // most
        for start in range(0, len(wanted), at_once):
            some = {n: ranked[n] for n in wanted[start : start + at_once]}
            for n, one in self._order(asked, some, matches, where, like_kind).items():
                ordered[n] = one
        return ordered

    def _order(
        self,
        asked: Sequence[EncodedQuery],
        ranked: Mapping[int, Ranked],
        matches: Sequence[list[bool]],
        where: Filter,
        like_kind: bool,
    ) -> dict[int, Ranked]:
        """The candidates of some queries, by the queries' numbers, as `ordered` puts them; without those left alone.

        matches  of all queries, which of their candidates are matches; not looked at with `like_kind`
        """
        records = self._store.features([hit.id for one in ranked.values() for hit in one.hits[:MOST]])
        described = {n: _described(one, records) for n, one in ranked.items()}
        described = {
            n: one
            for n, one in described.items()
            if one.hits and (like_kind or _begins_with_match(asked[n], matches[n], one))
        }
        colours = {n: self._query_colours(asked[n]) for n in described}
        if described:
            count = SEEDS if like_kind else SEEDS_BY_DEFAULT
            seeds = {}
            for n, one in described.items():
                likely = self._probabilities(ranked[n]) if like_kind else None
                best = np.argsort(-self._scores(asked[n], colours[n], ranked[n], one, likely), kind="stable")[:count]
                seeds[n] = one.stored[best]
            found = iter(self._store.search(np.concatenate(list(seeds.values())), NEAR_EACH, where))
            near = {n: [hit.id for _ in rows for hit in next(found)] for n, rows in seeds.items()}
            records |= self._store.features(list({id for ids in near.values() for id in ids} - records.keys()))
            grown = {n: _grown(asked[n], ranked[n], ids, records) for n, ids in near.items()}
            described = {
                n: _together(described[n], _described(one, records, len(ranked[n].hits))) for n, one in grown.items()
            }
            ranked = grown
        ordered = {}
        for n, one in described.items():
            scores = np.full(len(ranked[n].hits), -np.inf)
            likely = self._probabilities(ranked[n]) if like_kind else None
            scores[one.hits] = self._scores(asked[n], colours[n], ranked[n], one, likely)
            if likely is not None:
                order = kind_and_match(scores, likely)
            else:
                order = matches_first(matches[n] + self._matches(ranked[n], len(matches[n])), scores)
            ordered[n] = ranked[n].ordered(order)
        return ordered

    def _matches(self, ranked: Ranked, start: int = 0) -> list[bool]:
        """Which candidates are matches, from number `start` on."""
        return [self._is_match(ranked, n) for n in range(start, len(ranked.hits))]

    def _probabilities(self, ranked: Ranked) -> np.ndarray:
        """That each candidate is a match.  (B,) float64"""
        return np.array([self._probability(ranked, n) for n in range(len(ranked.hits))], np.float64)

    def _query_colours(self, asked: EncodedQuery) -> np.ndarray | None:
        """The colours of each crop, (V, H) float32, see `colour_histograms`; None where one of them has none."""
        count = self._index.whitening.config.num_tokens
        found = [colours_of_crop(view, count) for view in asked.views]
        known = [colours for colours in found if colours is not None]
        return colour_histograms(known) if len(known) == len(found) else None

    def _scores(
        self,
        asked: EncodedQuery,
        colours: np.ndarray | None,
        ranked: Ranked,
        described: _Described,
        likely: np.ndarray | None,
    ) -> np.ndarray:
        """Likeness of kind of the described candidates by all that both they and the query have.  (B,) float64

        colours  of the query's crops, as `_query_colours` returns them
        likely   probabilities of all that is ranked, where likely matches are to lead to what is like them
        """
        cosines = _best_cosines(asked, described.stored)
        by_patches = np.array(
            [
                max(ranked.hits[n].score - cosine / 2, 0) if ranked.is_compared(n) else 0.0
                for n, cosine in zip(described.hits, cosines, strict=True)
            ]
        )
        if likely is not None:
            by_patches += MATCH_WEIGHT * likely[described.hits]
        crops, candidates, weights = [np.stack([view.vector for view in asked.views])], [described.stored], [STORED]
        of_crops = [view.kind_vector for view in asked.views if view.kind_vector is not None]
        parts = None if described.parts is None else torch.from_numpy(described.parts)
        of_candidates = None if parts is None else kind_vectors(parts, self._index.whitening)
        if of_candidates is not None and len(of_crops) == len(asked.views):
            crops.append(np.stack(of_crops))
            candidates.append(of_candidates)
            weights.append(KIND)
        if colours is not None and described.colours is not None:
            mean = described.colours.mean(0)
            crops.append(about_mean(colours, mean))
            candidates.append(about_mean(described.colours, mean))
            weights.append(COLOURS)
        return kind_scores(joined(crops, weights), joined(candidates, weights), by_patches)


def _described(ranked: Ranked, records: Mapping[str, StoredFeatures], start: int = 0) -> _Described:
    """The first MOST candidates, from number `start` on."""
    ids = [hit.id for hit in ranked.hits[:MOST]]
    hits = [n for n in range(start, len(ids)) if ids[n] in records]
    of_hits = [records[ids[n]] for n in hits]
    stored = [record.vector for record in of_hits]
    packed = [record.patches or b"" for record in of_hits]
    colours = unpack_colours(packed)
    return _Described(
        hits,
        np.stack(stored) if stored else np.empty((0, 0), np.float32),
        unpack_parts(packed, most=1),
        None if colours is None else colour_histograms(colours),
    )


def _together(one: _Described, other: _Described) -> _Described:
    """Candidates of one query, described apart."""
    if not other.hits:
        return one
    return _Described(
        one.hits + other.hits,
        np.concatenate([one.stored, other.stored]),
        None if one.parts is None or other.parts is None else np.concatenate([one.parts, other.parts]),
        None if one.colours is None or other.colours is None else np.concatenate([one.colours, other.colours]),
    )


def _begins_with_match(asked: EncodedQuery, matches: Sequence[bool], described: _Described) -> bool:
    """Whether the first candidate is a match; the query's own image, where it comes first, is passed over."""
    cosines = _best_cosines(asked, described.stored)
    others = (n for n, cosine in zip(described.hits, cosines, strict=True) if cosine < OWN_COSINE)
    first = next(others, None)
    return first is not None and matches[first]


def _grown(asked: EncodedQuery, ranked: Ranked, ids: Sequence[str], records: Mapping[str, StoredFeatures]) -> Ranked:
    """With the images of these ids as further candidates, which are not compared by their patches."""
    known = {hit.id for hit in ranked.hits}
    new = list(dict.fromkeys(id for id in ids if id not in known))[: max(MOST - len(known), 0)]
    there = [id for id in new if id in records]
    if not there:
        return ranked
    cosines = _best_cosines(asked, np.stack([records[id].vector for id in there])).tolist()
    if not ranked.compared:
        return Ranked([*ranked.hits, *map(Hit, there, cosines)])
    comparison, last = ranked.compared[0][0], ranked.hits[-1].score
    # half of a score is the patches' part
    hits = [Hit(id, min(cosine / 2, last)) for id, cosine in zip(there, cosines, strict=True)]
    not_compared = [(comparison, len(comparison.inlier_weight))] * len(hits)
    return Ranked([*ranked.hits, *hits], [*ranked.compared, *not_compared])


def _best_cosines(asked: EncodedQuery, vectors: np.ndarray) -> np.ndarray:
    """Of each vector (B, G) the cosine of the crop that it is most like.  (B,)"""
    crops: Sequence[np.ndarray] = [view.vector for view in asked.views]
    best: np.ndarray = (np.stack(crops) @ vectors.T).max(0)
    return best
