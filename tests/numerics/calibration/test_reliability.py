"""Calibration errors in bins and in running sums, by hand and by loops."""

from __future__ import annotations

import numpy as np
import pytest

from probatum.numerics.calibration.reliability import (
    debiased_square,
    equal_mass,
    equal_width,
    ks_error,
    largest_gap,
    mean_gap,
    plain_square,
)

pytestmark = pytest.mark.fast

SURE = np.array([0.0, 0.2, 0.25, 0.5, 0.6, 0.9, 1.0])
RIGHT = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])


def test_bins_of_one_width_are_closed_above() -> None:
    bins = equal_width(SURE, RIGHT, 4)
    assert bins.low.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert bins.high.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert bins.rows.tolist() == [3, 1, 1, 2]
    np.testing.assert_allclose(bins.confidence, [0.15, 0.5, 0.6, 0.95])
    np.testing.assert_allclose(bins.accuracy, [1 / 3, 1.0, 0.0, 1.0])
    assert equal_width(SURE[3:4], RIGHT[3:4], 4).low.tolist() == [0.25]  # empty ones are left out
    assert equal_width(SURE, RIGHT, 1).rows.tolist() == [7]
    with pytest.raises(ValueError, match="bins is 0"):
        equal_width(SURE, RIGHT, 0)


def test_bins_of_one_mass_hold_together_what_is_equal() -> None:
    bins = equal_mass(np.array([0.1, 0.2, 0.2, 0.2, 0.3, 0.4]), np.zeros(6), 3)
    assert bins.high.tolist() == [0.2, 1.0]
    assert bins.rows.tolist() == [4, 2]
    even = equal_mass(np.arange(1, 9) / 10, np.zeros(8), 4)
    assert even.rows.tolist() == [2, 2, 2, 2]
    order = np.random.default_rng(0).permutation(7)
    for a, b in zip(equal_mass(SURE, RIGHT, 3), equal_mass(SURE[order], RIGHT[order], 3), strict=True):
        np.testing.assert_allclose(a, b)
    with pytest.raises(ValueError, match="bins is -1"):
        equal_mass(SURE, RIGHT, -1)


def test_gaps_by_hand() -> None:
    bins = equal_width(SURE, RIGHT, 4)
    gaps = np.array([1 / 3 - 0.15, 0.5, 0.6, 0.05])
    assert mean_gap(bins) == pytest.approx(float((np.array([3, 1, 1, 2]) * gaps).sum() / 7))
    assert largest_gap(bins) == pytest.approx(0.6)
    assert plain_square(bins) == pytest.approx(float((np.array([3, 1, 1, 2]) * gaps**2).sum() / 7))
    # bins of one row have no variance: three rows with accuracy 1/3, two with accuracy 1
    expected = (3 * ((1 / 3 - 0.15) ** 2 - (1 / 3) * (2 / 3) / 2) + 2 * 0.05**2) / 5
    assert debiased_square(bins) == pytest.approx(expected)
    assert debiased_square(equal_width(SURE[:1], RIGHT[:1], 4)) == 0.0


def test_debiased_square_of_honest_confidences_is_zero_on_average() -> None:
    own = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        sure = np.repeat([0.2, 0.7], 5)
        found.append(debiased_square(equal_width(sure, (own.random(10) < sure).astype(float), 2)))
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5
    assert min(found) < 0


def test_running_sums_take_equal_confidences_at_once() -> None:
    assert ks_error(SURE, RIGHT) == pytest.approx(_by_loop(SURE, RIGHT))
    tied = np.array([0.5, 0.5, 0.5, 0.5])
    assert ks_error(tied, np.array([1.0, 1.0, 0.0, 0.0])) == 0.0
    assert ks_error(np.array([0.9, 0.1]), np.array([0.0, 1.0])) == pytest.approx(0.45)
    assert ks_error(np.array([0.4]), np.array([1.0])) == pytest.approx(0.6)


def _by_loop(sure: np.ndarray, right: np.ndarray) -> float:
    return max(abs(float((sure - right)[sure <= limit].sum())) for limit in sure) / len(sure)
