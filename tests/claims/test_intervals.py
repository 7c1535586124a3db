"""The interval on paired means that thresholds of claims are held against."""

from __future__ import annotations

import pytest
from scipy import stats

from probatum.claims.tools import interval

pytestmark = pytest.mark.fast


def test_it_is_scipys_paired_t_interval() -> None:
    ours, theirs = [0.91, 0.93, 0.90, 0.95], [0.90, 0.90, 0.91, 0.92]
    found = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.told("gain") == {
        "gain": found.mean,
        "gain_low": found.low,
        "gain_high": found.high,
        "gain_error": found.error,
    }


def test_one_difference_has_none() -> None:
    with pytest.raises(ValueError, match="two differences or more, got 1"):
        interval([0.1])
