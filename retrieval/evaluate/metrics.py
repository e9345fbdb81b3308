"""How good rankings are: recall at k, mean average precision, and whether matches can be told from what is none.

Pure functions. A ranking is a query's answers, best first, each image once; it may be cut off after some length, and
what was cut off counts as not found. Junk is taken out before ranks are counted, so that it moves nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.errors import SeenitError

from .ground_truth import JudgedQuery

RECALL_AT = (1, 10)
PRECISION_AT = (10, 100)


@dataclass(frozen=True)
class RankedAnswer:
    """One image of a ranking. `probability` that it is a match is None where nothing was calibrated."""

    path: Path
    score: float
    probability: float | None = None
    is_match: bool = False  # whether the probability is at or above the index's threshold for a match


Rankings = Mapping[Path, Sequence[RankedAnswer]]  # query's path -> its answers, best first


@dataclass(frozen=True)
class Quality:
    """Means over the queries that have a correct answer; NaN where there is none."""

    recall: dict[int, float]  # k -> share of queries with a correct answer among the first k, in [0, 1]
    mean_average_precision: float  # in [0, 1]
    mean_average_precision_at: dict[int, float]  # k -> [0, 1]
    num_queries: int
    num_unanswerable: int  # queries whose instance is not in the gallery, left out above


@dataclass(frozen=True)
class MatchQuality:
    """Whether what counts as a match is one; each in [0, 1], NaN where there is nothing to measure it on."""

    precision: float  # share of the matches that are right
    recall: float  # share of the answerable queries with a right answer that is a match
    false_alarms: float  # share of the queries with a match once the right answers are taken out
    no_match_auc: float  # see `no_match_auc`


def evaluate_ranking(
    rankings: Mapping[Path, Sequence[Path]],
    queries: Sequence[JudgedQuery],
    ks: Sequence[int] = RECALL_AT,
    precision_ks: Sequence[int] = PRECISION_AT,
) -> Quality:
    """The quality of one task's rankings, by the places of the answers alone.

    rankings      query's path -> gallery images, best first (ask for more than the largest k: junk is taken out)
    ks            for recall at k
    precision_ks  for mean average precision at k
    """
    asked = [query for query in queries if query.correct]
    _check_complete(rankings, asked)
    ranks = [(correct_ranks(rankings[query.path], query), len(query.correct)) for query in asked]
    return Quality(
        recall={k: _mean([recall_at(found, k) for found, _ in ranks]) for k in ks},
        mean_average_precision=_mean([average_precision(*pair) for pair in ranks]),
        mean_average_precision_at={k: _mean([average_precision_at(*pair, k) for pair in ranks]) for k in precision_ks},
        num_queries=len(asked),
        num_unanswerable=len(queries) - len(asked),
    )


def correct_ranks(ranking: Sequence[Path], query: JudgedQuery) -> list[int]:
    """The ranks, counted from 0 and without junk, at which the query's correct answers stand; ascending."""
    kept = [path for path in ranking if path not in query.junk]
    return [rank for rank, path in enumerate(kept) if path in query.correct]


def recall_at(ranks: Sequence[int], k: int) -> float:
    """1.0 where a correct answer stands among the first k, else 0.0."""
    return float(any(rank < k for rank in ranks))


def average_precision(ranks: Sequence[int], num_correct: int) -> float:
    """Area under the precision-recall curve by trapezoids, as the (revisited) Oxford and Paris benchmarks compute it.

    ranks        ranks of the correct answers that were found, from 0, ascending, without junk
    num_correct  how many there are; those not found count as never found
    """
    area = 0.0
    for found, rank in enumerate(ranks):
        before = found / rank if rank else 1.0  # precision just above this answer
        after = (found + 1) / (rank + 1)
        area += (before + after) / 2 / num_correct
    return area


def average_precision_at(ranks: Sequence[int], num_correct: int, k: int) -> float:
    """The precision at each correct answer among the first k, summed, over how many there could be.

    By rectangles and not by trapezoids, as Google Landmarks v2 (Weyand et al., CVPR 2020) and ILIAS define mAP@k.

    sum over n with ranks[n] < k of (n + 1) / (ranks[n] + 1), divided by min(k, num_correct)
    """
    return sum((n + 1) / (rank + 1) for n, rank in enumerate(ranks) if rank < k) / min(k, num_correct)


def match_quality(rankings: Rankings, queries: Sequence[JudgedQuery]) -> MatchQuality:
    """How far the word "match" can be trusted, over all answers that are not junk.

    Every query also counts as one whose thing is not in the gallery: with the right answers taken out of its ranking.
    (A search of the smaller gallery would rescore a few more candidates, further down.)
    """
    _check_complete(rankings, queries)
    matches = [
        [
            answer.path in query.correct
            for answer in rankings[query.path]
            if answer.is_match and answer.path not in query.junk
        ]
        for query in queries
    ]
    auc = no_match_auc(rankings, queries)
    if all(answer.probability is None for query in queries for answer in rankings[query.path]):
        return MatchQuality(math.nan, math.nan, math.nan, auc)
    return MatchQuality(
        precision=_mean([right for of_query in matches for right in of_query]),
        recall=_mean([any(of_query) for of_query, query in zip(matches, queries, strict=True) if query.correct]),
        false_alarms=_mean([not all(of_query) for of_query in matches]),
        no_match_auc=auc,
    )


def no_match_auc(rankings: Rankings, queries: Sequence[JudgedQuery]) -> float:
    """How well "it is here" is told from "it is not here": the area under that decision's ROC curve.

    present  each answerable query's trust in its top answer
    absent   every query's trust in its top answer once the right answers are taken out; so each answerable query is
             also asked of a gallery without its thing
    Trust is the probability of a match, or the score where nothing is calibrated. Junk is never a top answer.

    for p in present: for a in absent: auc += (p > a) + (p == a) / 2;  divided by len(present) * len(absent)
    """
    tops: dict[bool, list[RankedAnswer | None]] = {True: [], False: []}
    for query in queries:
        kept = [answer for answer in rankings[query.path] if answer.path not in query.junk]
        if query.correct:
            tops[True].append(next(iter(kept), None))
        tops[False].append(next((answer for answer in kept if answer.path not in query.correct), None))
    if not tops[True]:
        return math.nan
    calibrated = any(answer and answer.probability is not None for side in tops.values() for answer in side)
    present = np.array([_trust(answer, calibrated) for answer in tops[True]])
    absent = np.sort([_trust(answer, calibrated) for answer in tops[False]])
    below = np.searchsorted(absent, present, "left") + np.searchsorted(absent, present, "right")  # twice, for ties
    return float(below.mean() / 2 / len(absent))


def _trust(answer: RankedAnswer | None, calibrated: bool) -> float:
    if answer is None:
        return -math.inf
    return (answer.probability or 0.0) if calibrated else answer.score


def _check_complete(rankings: Mapping[Path, object], queries: Sequence[JudgedQuery]) -> None:
    missing = [query.path for query in queries if query.path not in rankings]
    if missing:
        raise SeenitError(f"no ranking for {missing[0]} and {len(missing) - 1} other queries; search with them all")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
