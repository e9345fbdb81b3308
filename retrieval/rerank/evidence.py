"""Why an image is a match or none: what the matcher finds, and what tables and pages tell.

All places are fractions of the upright image, x to the right and y down, so that they hold for any size of it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

MATCH_PROBABILITY = 0.5  # match probability from which on a result is a match
CONVINCING_SCORE = 0.45  # from which on it counts as one where nothing is calibrated, to decide on turned crops

Box = tuple[float, float, float, float]  # x, y, width, height as fractions of the image, in [0, 1]
Verdict = Literal["same", "perhaps", "no match"]

PERHAPS = 0.2  # from this probability on an image that is no match is still shown as a perhaps; not tuned


@dataclass(frozen=True, eq=False)
class Evidence:
    """Why an image is a match or none.

    probability  that it is the same thing, calibrated on the index's own images; None where there is no calibration
    is_match     probability at or above MATCH_PROBABILITY
    num_inliers  pairs of patches that are consistent with one affine transform
    pairs        (M, 5) float32: x, y in the query, x, y in the result (patch centres, fractions), cosine; the
                 M = num_inliers pairs, best first
    transform    (2, 3) float32, affine from fractions (x, y) of the query to those of the result; None where there are
                 too few inliers to tell
    box          of the thing in the result
    query_box    of the part of the query that was found
    turn         the nearest quarter turn in which the query was found: degrees clockwise, 0, 90, 180 or 270
    """

    probability: float | None
    is_match: bool
    num_inliers: int
    pairs: np.ndarray
    transform: np.ndarray | None = None
    box: Box | None = None
    query_box: Box | None = None
    turn: int = 0

    def __repr__(self) -> str:
        return f"Evidence({self.in_words!r})"

    @property
    def verdict(self) -> Verdict | None:
        """In a word; None where nothing is calibrated, so that there is no verdict."""
        if self.is_match:
            return "same"
        if self.probability is None:
            return None
        return "perhaps" if self.probability >= PERHAPS else "no match"

    @property
    def reason(self) -> str:
        """What the verdict rests on: `97 % probable, 34 inliers`, and perhaps `, turned by 90 degrees`."""
        patches = "1 inlier" if self.num_inliers == 1 else f"{self.num_inliers} inliers"
        if self.turn:
            patches += f", turned by {self.turn} degrees"
        return patches if self.probability is None else f"{percent(self.probability)} probable, {patches}"

    @property
    def in_words(self) -> str:
        """All of it: `same: 97 % probable, 34 inliers`."""
        return f"{self.verdict}: {self.reason}" if self.verdict else self.reason


def percent(probability: float) -> str:
    """Whole percents, and never certain: between `1 %` and `99 %`."""
    return f"{min(max(round(100 * probability), 1), 99)} %"
