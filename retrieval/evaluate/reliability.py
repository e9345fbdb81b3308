"""Whether probabilities are honest: of all answers given at 70 %, are 70 % right?

Pure functions over the probabilities of answers and whether each was right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

NUM_BINS = 10
Bins = Literal["mass", "width"]


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers of about one probability.

    count        how many
    probability  their mean probability, in [0, 1]
    share        how many of them are right, in [0, 1]
    """

    count: int
    probability: float
    share: float


def reliability(
    probabilities: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: Bins = "width"
) -> list[ReliabilityBin]:
    """NUM_BINS bins in ascending order of probability, without the empty ones.

    bins  `width`: each a tenth of [0, 1]; `mass`: each a tenth of the answers (Nguyen and O'Connor, 2015)
    """
    given, hits = np.asarray(probabilities, float), np.asarray(right, float)
    assert given.shape == hits.shape and given.ndim == 1, "one verdict for each probability"
    order = np.argsort(given, kind="stable")
    if bins == "mass":
        parts = np.array_split(order, NUM_BINS)
    else:
        edges = np.searchsorted(given[order], np.arange(1, NUM_BINS) / NUM_BINS)
        parts = np.split(order, edges)
    return [
        ReliabilityBin(len(part), float(given[part].mean()), float(hits[part].mean())) for part in parts if len(part)
    ]


def calibration_error(
    probabilities: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: Bins = "mass"
) -> float:
    """The expected calibration error (Naeini et al., 2015), in [0, 1]; NaN without answers.

    sum over bins of count / all * |share - probability|
    """
    if not len(probabilities):
        return math.nan
    return sum(
        one.count / len(probabilities) * abs(one.share - one.probability)
        for one in reliability(probabilities, right, bins)
    )
