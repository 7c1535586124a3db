"""Paired statistics against scipy, published examples, brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from probatum.bench.statistics import (
    adjust,
    binomial_upper,
    paired,
    power,
    seeds_for_power,
)

pytestmark = pytest.mark.fast

DIFFERENCES = [0.02, -0.01, 0.03, 0.015, 0.004, 0.011, 0.02]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_plain_interval_is_the_one_sample_t_test(confidence: float) -> None:
    ours = paired(DIFFERENCES, test_fraction_ratio=None, confidence=confidence)
    theirs = stats.ttest_1samp(DIFFERENCES, 0.0)
    limits = theirs.confidence_interval(confidence)
    assert (ours.low, ours.high) == pytest.approx((limits.low, limits.high))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.sd == pytest.approx(np.std(DIFFERENCES, ddof=1))
    assert ours.n == 7


def test_nadeau_bengio_widens_by_the_stated_factor() -> None:
    plain = paired(DIFFERENCES, test_fraction_ratio=None)
    corrected = paired(DIFFERENCES, test_fraction_ratio=0.25)
    factor = math.sqrt((1 / 7 + 0.25) / (1 / 7))
    assert corrected.mean == plain.mean
    assert corrected.high - corrected.mean == pytest.approx(factor * (plain.high - plain.mean))
    t = plain.mean / (plain.sd * math.sqrt(1 / 7 + 0.25))
    assert corrected.p == pytest.approx(2 * stats.t(6).sf(t))


def test_differences_without_spread_or_number() -> None:
    assert paired([0.0] * 6, test_fraction_ratio=0.2)[:6] == (0.0, 0.0, 0.0, 0.0, 6, 1.0)
    assert paired([0.1] * 7, test_fraction_ratio=0.2)[:6] == (0.1, 0.1, 0.1, 0.0, 7, 0.0)
    single = paired([0.3], test_fraction_ratio=None)
    assert (single.low, single.high, single.p) == (-math.inf, math.inf, 1.0)


@pytest.mark.parametrize(
    ("values", "ratio", "confidence", "message"),
    [
        ([], None, 0.95, "at least one"),
        ([0.1, math.nan], None, 0.95, "nan"),
        ([0.1, 0.2], -1.0, 0.95, "-1.0"),
        ([0.1, 0.2], None, 95, "95"),
    ],
)
def test_bad_input_is_named(values: list[float], ratio: float | None, confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired(values, test_fraction_ratio=ratio, confidence=confidence)


def test_adjust_is_benjamini_hochberg() -> None:
    generator = np.random.default_rng(0)
    for size in (1, 2, 15, 40):
        p = generator.uniform(size=size) ** 2
        p[size // 2] = p[0]  # a tie
        assert adjust(p.tolist()) == pytest.approx(stats.false_discovery_control(p).tolist())
    assert adjust([]) == []
    with pytest.raises(ValueError, match=r"1\.2"):
        adjust([0.1, 1.2])


def test_adjust_on_the_example_of_the_paper() -> None:
    # Benjamini & Hochberg 1995, section 3.2: 15 tests, at level 0.05 the four smallest are rejected
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    assert sum(value <= 0.05 for value in adjust(p)) == 4


@pytest.mark.parametrize("ratio", [None, 0.25])
def test_power_against_the_noncentral_t_of_scipy(ratio: float | None) -> None:
    for n in (2, 6, 20, 100):
        for effect in (0.0, 0.3, -0.8, 2.0):
            shift = effect / math.sqrt(1 / n + (ratio or 0))
            bound = stats.t.ppf(0.975, n - 1)
            expected = stats.nct.sf(bound, n - 1, shift) + stats.nct.cdf(-bound, n - 1, shift)
            if math.isfinite(expected):  # scipy gives nan far out in a tail
                assert power(effect, 1.0, n, ratio) == pytest.approx(expected, abs=1e-6)
    draws = np.random.default_rng(2).normal(2.0, 1.0, size=(40000, 2))  # where scipy has no answer: by simulation
    found = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05)
    assert power(2.0, 1.0, 2, None) == pytest.approx(found, abs=4 * math.sqrt(found * (1 - found) / 40000))
    assert power(0.0, 1.0, 9, ratio) == pytest.approx(0.05)
    assert power(1e9, 1.0, 6, ratio) == pytest.approx(1.0)
    assert power(1.0, 1.0, 1, ratio) == 0.0
    with pytest.raises(ValueError, match="sd"):
        power(1.0, 0.0, 6, ratio)


def test_seeds_for_power_against_a_textbook_value() -> None:
    # one-sample t test, two-sided 5 %, power 80 %, effect of half a standard deviation: 34 (Cohen 1988 and G*Power)
    assert seeds_for_power(0.5, 1.0, None) == 34
    assert seeds_for_power(0.01, 1.0, None) is None
    assert seeds_for_power(5.0, 1.0, None) == 6
    assert seeds_for_power(0.5, 1.0, 0.25) is None
    with pytest.raises(ValueError, match="wanted"):
        seeds_for_power(0.5, 1.0, None, 80)


def test_binomial_upper_is_clopper_pearson() -> None:
    for k, n in ((0, 20), (3, 50), (19, 20)):
        upper = stats.binomtest(k, n, alternative="less").proportion_ci(0.95, method="exact").high
        assert binomial_upper(k, n) == pytest.approx(upper)
        assert stats.binom.cdf(k, n, binomial_upper(k, n)) == pytest.approx(0.05)
    assert binomial_upper(5, 5) == 1.0
    with pytest.raises(ValueError, match="7 of 5"):
        binomial_upper(7, 5)


def test_correction_holds_the_error_rate_on_real_resplits_and_the_plain_interval_does_not() -> None:
    """Two learners of equal true error on one finite dataset that is split again for every seed."""
    generator = np.random.default_rng(1)
    worlds, rows, test_rows, seeds = 1500, 100, 20, 10
    x = generator.normal(size=(worlds, rows, 2))
    y = x.sum(-1) + generator.normal(size=(worlds, rows))
    deltas = np.empty((worlds, seeds))
    for seed in range(seeds):
        order = generator.permuted(np.tile(np.arange(rows), (worlds, 1)), axis=1)
        xs, ys = np.take_along_axis(x, order[..., None], 1), np.take_along_axis(y, order, 1)
        errors = []
        for feature in (0, 1):  # each learner regresses on one of two exchangeable features
            known, target = xs[:, test_rows:, feature], ys[:, test_rows:]
            slope = (known * target).sum(1) / (known**2).sum(1)
            errors.append(((ys[:, :test_rows] - slope[:, None] * xs[:, :test_rows, feature]) ** 2).mean(1))
        deltas[:, seed] = errors[1] - errors[0]
    ratio = test_rows / (rows - test_rows)
    corrected = sum(paired(row, test_fraction_ratio=ratio).p <= 0.05 for row in deltas)
    plain = sum(paired(row, test_fraction_ratio=None).p <= 0.05 for row in deltas)
    print(f"false differences in {worlds} studies: corrected {corrected / worlds:.3f}, plain {plain / worlds:.3f}")
    assert corrected <= stats.binom.ppf(0.999, worlds, 0.05)
    assert plain > 2 * 0.05 * worlds
