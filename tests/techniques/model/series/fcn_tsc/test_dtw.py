"""Dynamic time warping against every alignment there is."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from probatum.techniques.model.series.fcn_tsc.dtw import dtw

pytestmark = pytest.mark.fast


def brute_force(a: np.ndarray, b: np.ndarray) -> float:
    """Least cost over all alignments of (channels, S) and (channels, T), by recursion."""

    @cache
    def least(i: int, j: int) -> float:
        cost = float(((a[:, i] - b[:, j]) ** 2).sum())
        if i == j == 0:
            return cost
        steps = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        return cost + min(least(p, q) for p, q in steps if p >= 0 and q >= 0)

    return least(a.shape[1] - 1, b.shape[1] - 1) ** 0.5


@pytest.mark.parametrize("channels", [1, 2])
def test_equals_the_least_over_all_alignments(channels: int) -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(3, channels, 7)), random.normal(size=(4, channels, 5))
    expected = [[brute_force(a, b) for b in second] for a in first]
    np.testing.assert_allclose(dtw(first, second), expected, rtol=1e-12)


def test_a_shifted_bump_is_near() -> None:
    a, b = np.zeros((1, 1, 12)), np.zeros((1, 1, 12))
    a[0, 0, 3:5], b[0, 0, 6:8] = 1.0, 1.0
    assert dtw(a, b)[0, 0] == 0.0
    assert dtw(a, b, window=0)[0, 0] == pytest.approx(2.0)  # no warping: Euclid


def test_shapes_and_windows() -> None:
    with pytest.raises(ValueError, match="shapes"):
        dtw(np.zeros((2, 5)), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="window is 1"):
        dtw(np.zeros((1, 1, 5)), np.zeros((1, 1, 9)), window=1)
