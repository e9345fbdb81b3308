"""What an index has learnt of its own scores: the probability that a result shows the same object.

The learning itself is `retrieval.calibrate`; this is the part that an opened index carries.
"""

import json
import math
from dataclasses import asdict, dataclass

CALIBRATION_BLOB = "calibration.json"
# Of a difference in colour, by which equal colours speak for a match at most: .3 of the log odds. With .5 a fifth of
# the absent paintings find a match; see `retrieval.calibrate`.
MOST_FOR = 0.2
FORMAT = 4  # 4: with colours


@dataclass(frozen=True)
class Calibration:
    """probability = 1 / (1 + exp(-(slope * x + offset))), the lower one of x = score and x = the patches' consistency.

    Platt scaling (Platt, 1999). Where the inliers' colours are known, the curve over the score moves by

        colour_slope * min(colour_even - difference, MOST_FOR)

    so that colours that differ speak against a match without limit, and equal ones a little for it.

    background  median score of pairs of the index's images that have nothing to do with each other
    """

    slope: float
    offset: float
    consistency_slope: float
    consistency_offset: float
    whitening_id: str  # of the descriptor, for whose scores it holds
    images: int  # in the index when it was made
    background: float
    colour_slope: float
    colour_even: float  # difference in colour that speaks neither for a match nor against it

    def probability(self, score: float, consistency: float, colour_difference: float | None = None) -> float:
        """That a result with this score and consistency shows the same object, in (0, 1).

        colour_difference  of the inliers, see `rerank.colour`; None where it is not known
        """
        of_consistency = _logistic(self.consistency_slope * consistency + self.consistency_offset)
        of_score = self.slope * score + self.offset
        if colour_difference is not None:
            of_score += self.colour_slope * min(self.colour_even - colour_difference, MOST_FOR)
        return min(_logistic(of_score), of_consistency)

    def most_probable(self, score: float, consistency: float) -> float:
        """`probability` with the colours that speak most for a match, so that no others can make it larger."""
        return self.probability(score, consistency, -math.inf)


def parse_calibration(data: bytes | None, whitening_id: str) -> Calibration | None:
    """From the index's blob; None where there is none for the vectors of this whitening, or none that can be read."""
    try:
        values = json.loads(data or b"{}")
        if values.pop("format", None) != FORMAT:
            return None
        calibration = Calibration(**values)
        curves = (calibration.slope, calibration.offset, calibration.consistency_slope, calibration.consistency_offset)
        colours = (calibration.colour_slope, calibration.colour_even)
        numbers = (*curves, *colours, calibration.background)
        if not all(math.isfinite(number) for number in numbers) or calibration.colour_slope < 0:
            return None
        return calibration if calibration.whitening_id == whitening_id else None  # rebuilt vectors have other scores
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def calibration_json(calibration: Calibration) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(calibration)}).encode()


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -30.0), 30.0)))
