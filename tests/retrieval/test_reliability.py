"""Whether probabilities are honest."""

import math

import numpy as np
import pytest

from retrieval.evaluate.reliability import Bins, calibration_error, reliability


def test_bins_by_hand() -> None:
    probabilities = [0.05, 0.95, 0.15, 0.92, 0.1, 1.0]
    right = [False, True, True, False, False, True]
    low, second, last = reliability(probabilities, right)
    assert (low.count, low.probability, low.share) == (1, 0.05, 0.0)
    assert (second.count, second.share) == (2, 0.5) and second.probability == pytest.approx(0.125)
    assert last.count == 3 and last.share == pytest.approx(2 / 3)
    by_hand = 1 / 6 * 0.05 + 2 / 6 * 0.375 + 3 / 6 * abs(2 / 3 - (0.95 + 0.92 + 1.0) / 3)
    assert calibration_error(probabilities, right, "width") == pytest.approx(by_hand)


def test_bins_of_equal_mass_hold_as_many_answers_each() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0, 0.1, 200).tolist()
    assert [one.count for one in reliability(probabilities, [False] * 200, "mass")] == [20] * 10
    assert [one.count for one in reliability(probabilities, [False] * 200, "width")] == [200]


@pytest.mark.parametrize("bins", ["mass", "width"])
def test_honest_probabilities_have_next_to_no_error(bins: Bins) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0, 1, 20_000)
    right = rng.uniform(0, 1, 20_000) < probabilities
    assert calibration_error(probabilities, right, bins) < 0.02
    assert calibration_error(np.sqrt(probabilities), right, bins) > 0.1
    assert calibration_error([1.0, 1.0], [False, False], bins) == 1.0


def test_nothing_to_measure() -> None:
    assert math.isnan(calibration_error([], []))
