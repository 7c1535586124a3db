"""Paired comparison: intervals, many tests at once, and how many seeds a question needs.

Splits that are re-drawn from the same rows overlap, so the differences between two arms are correlated over seeds and
the usual variance of their mean is too small. Nadeau & Bengio, "Inference for the generalization error", Machine
Learning 52 (2003), replace 1/n by 1/n + n_test/n_train. `ratio` below is that n_test/n_train; None where splits are not
re-drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from probatum.bench.two_way import Components, Trial, equal, two_way

FEWEST_SEEDS = 6
"""Paired seeds below which no verdict is given."""


class Interval(NamedTuple):
    """A mean and its t interval.

    Attributes:
        mean: of the differences.
        low: lower end.
        high: upper end.
        sd: sample standard deviation over seeds.
        n: number of differences.
        p: two-sided p-value for a mean of 0.
        inner: ends of the interval that shows equivalence, by two one-sided tests of the same error; None = low and high.
        components: of the variance, where it was estimated from the test rows (`probatum.bench.two_way`).
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int
    p: float
    inner: tuple[float, float] | None = None
    components: Components | None = None


def paired(differences: Sequence[float], *, test_fraction_ratio: float | None, confidence: float = 0.95) -> Interval:
    """Return the t interval on the mean of paired differences, Nadeau-Bengio corrected if a ratio is given.

    One difference alone has no spread: its interval is infinite and p is 1. Differences without spread have an interval
    of zero width, and p is 1 if they are all zero, else 0.

    Raises:
        ValueError: without differences, if one is not finite, or for a ratio or confidence out of range.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"differences have shape {values.shape}; give a list of at least one number")
    if not np.isfinite(values).all():
        raise ValueError(f"differences contain {values[~np.isfinite(values)][0]}; leave out pairs that are not finite")
    scale, alpha = float(_scale(len(values), test_fraction_ratio)), _alpha(confidence)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf, math.nan, 1, 1.0)
    if equal(values):
        value = float(values[0])
        return Interval(value, value, value, 0.0, n, 1.0 if value == 0 else 0.0)
    sd = float(values.std(ddof=1))
    error = sd * scale
    half = float(stats.t.ppf(1 - alpha / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, sd, n, float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def over_rows(trials: Sequence[Trial], *, confidence: float = 0.95, kappa: float = 0.0) -> Interval:
    """Return the two-way interval on the mean of paired differences of which the test rows are known.

    Args:
        trials: at least one.
        confidence: of the interval; that of `inner` is 1 - 2 (1 - confidence).
        kappa: see `probatum.bench.two_way.two_way`.

    Raises:
        ValueError: without trials, for one that is not finite, or for a confidence out of range.
    """
    alpha = _alpha(confidence)
    found = two_way(trials, kappa)
    mean, half, inner = found.mean, found.half(confidence), found.half(max(1 - 2 * alpha, 0.0))
    sd = found.sd if found.trials > 1 else math.nan
    ends = (mean - inner, mean + inner)
    return Interval(mean, mean - half, mean + half, sd, found.trials, found.p(), ends, found)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return Benjamini-Hochberg (1995) adjusted p-values, in the order given.

    Raises:
        ValueError: for a p-value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values are {p.tolist()}; each must lie in [0, 1]")
    order = np.argsort(-p, kind="stable")
    ranks = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(np.minimum(p[order] * len(p) / ranks, 1.0))
    return adjusted.tolist()


def power(effect: float, sd: float, n: int, ratio: float | None, confidence: float = 0.95) -> float:
    """Return the probability that the interval of `n` seeds excludes 0, by the noncentral t; 0 for a single seed.

    Args:
        effect: true mean difference.
        sd: standard deviation of the differences over seeds, greater than 0.
    """
    from scipy import special, stats

    if not (math.isfinite(sd) and sd > 0):
        raise ValueError(f"sd is {sd}; use a finite number greater than 0")
    if n < 2:
        return 0.0
    bound = float(stats.t.ppf(1 - _alpha(confidence) / 2, n - 1))
    shift = effect / (sd * float(_scale(n, ratio)))
    # given the estimated spread, as a multiple of the true one, the mean is normal: integrate over the spread.
    # Library routines for the noncentral t give nan far out in a tail, this does not.
    spread = stats.chi(n - 1, scale=1 / math.sqrt(n - 1))
    low, high = spread.ppf(1e-13), spread.isf(1e-13)
    nodes, weights = _quadrature()
    s = low + (high - low) * (nodes + 1) / 2
    density = weights * (high - low) / 2 * spread.pdf(s)
    missed = special.ndtr(bound * s - shift) - special.ndtr(-bound * s - shift)
    return float(np.clip(1 - density @ missed, 0.0, 1.0))


def seeds_for_power(
    effect: float,
    sd: float,
    ratio: float | None,
    wanted: float = 0.8,
    confidence: float = 0.95,
    cap: int = 200,
) -> int | None:
    """Return the fewest seeds (6 to `cap`) whose `power` reaches `wanted`, in (0, 1); None if no number does."""
    if not 0 < wanted < 1:
        raise ValueError(f"wanted power is {wanted}; use a number between 0 and 1, such as 0.8")
    return next((n for n in range(FEWEST_SEEDS, cap + 1) if power(effect, sd, n, ratio, confidence) >= wanted), None)


def binomial_upper(k: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided Clopper-Pearson (1934) upper limit of a rate of which `k` in `n` were seen.

    Raises:
        ValueError: unless 0 <= k <= n and n >= 1.
    """
    from scipy import stats

    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a count; give 0 <= k <= n and n >= 1")
    return 1.0 if k == n else float(stats.beta.ppf(1 - _alpha(confidence), k + 1, n - k))


def binomial_lower(k: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided Clopper-Pearson (1934) lower limit of a rate of which `k` in `n` were seen.

    Raises:
        ValueError: unless 0 <= k <= n and n >= 1.
    """
    return 1 - binomial_upper(n - k, n, confidence)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)


def _scale(n: int | np.ndarray, ratio: float | None) -> np.ndarray:
    return np.sqrt(1 / np.asarray(n) + _check_ratio(ratio))


def _check_ratio(ratio: float | None) -> float:
    if ratio is not None and not (math.isfinite(ratio) and ratio >= 0):
        raise ValueError(f"ratio of test to training rows is {ratio}; use a number of at least 0, or None")
    return ratio or 0.0


def _alpha(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; use a number between 0 and 1, such as 0.95")
    return 1 - confidence
