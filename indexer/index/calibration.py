"""What an index has learnt of its own scores: the probability that a result shows the same object.

The learning itself is `retrieval.calibrate`; this is the part that an opened index carries.
"""

import json
import math
from dataclasses import asdict, dataclass

CALIBRATION_BLOB = "calibration.json"
FORMAT = 3  # 3: the curves are shipped, and moved by `background`


@dataclass(frozen=True)
class Calibration:
    """probability = 1 / (1 + exp(-(slope * x + offset))), the lower one of x = score and x = the patches' consistency.

    Platt scaling (Platt, 1999).

    background  median score of pairs of the index's images that have nothing to do with each other
    """

    slope: float
    offset: float
    consistency_slope: float
    consistency_offset: float
    whitening_id: str  # of the descriptor, for whose scores it holds
    images: int  # in the index when it was made
    background: float

    def probability(self, score: float, consistency: float) -> float:
        """That a result with this score and consistency shows the same object, in (0, 1)."""
        of_consistency = _logistic(self.consistency_slope * consistency + self.consistency_offset)
        return min(_logistic(self.slope * score + self.offset), of_consistency)


def parse_calibration(data: bytes | None, whitening_id: str) -> Calibration | None:
    """From the index's blob; None where there is none for the vectors of this whitening, or none that can be read."""
    try:
        values = json.loads(data or b"{}")
        if values.pop("format", None) != FORMAT:
            return None
        calibration = Calibration(**values)
        curves = (calibration.slope, calibration.offset, calibration.consistency_slope, calibration.consistency_offset)
        if not all(math.isfinite(number) for number in (*curves, calibration.background)):
            return None
        return calibration if calibration.whitening_id == whitening_id else None  # rebuilt vectors have other scores
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def calibration_json(calibration: Calibration) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(calibration)}).encode()


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -30.0), 30.0)))
