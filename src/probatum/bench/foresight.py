"""What more seeds would bring: the chance that an undecided arm is decided at some later number of them.

Given the differences so far, what later trials bring is drawn from the predictive law under the usual noninformative prior
on mean and spread. What trials share (rows that are tested again) is common to the old and the new, so that it moves the
mean no further, but it stays in the width however many seeds there are.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from probatum.bench.race import futures

CAP = 200
"""Seeds beyond which nobody is told a number."""
GROWTH = 1.12
"""Numbers of seeds that are looked at grow by this factor."""
CHANCE = 0.8
"""Chance at which a number of seeds is named."""
HOPELESS = 0.02
"""Chance with endless seeds below which it is said that more cannot decide."""


@dataclass(frozen=True)
class Outlook:
    """What is known of an arm, and how it will be judged.

    Attributes:
        mean: of the differences so far.
        sd: spread of one trial's difference, without what trials share; at least 0.
        seeds: trials so far.
        shared: variance of the mean that no further trial removes.
        margin: region of practical equivalence.
        level: confidence of the interval that shows a difference.
        inner: that of the interval that shows that there is none.
        multiplicity: factor by which p is adjusted for other tests.
        quantile: (seeds, level) -> the quantile that multiplies the standard error.
    """

    mean: float
    sd: float
    seeds: int
    shared: float
    margin: float
    level: float
    inner: float
    multiplicity: float
    quantile: Callable[[int, float], float]

    def decided(self, seeds: int, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """Whether these means and spreads at so many seeds decide; adjusted p-values by the interval of that level."""
        error = np.sqrt(self.shared + sd**2 / seeds)
        same = np.abs(mean) + self.quantile(seeds, self.inner) * error < self.margin
        strict = 1 - (1 - self.level) / self.multiplicity
        differs = (np.abs(mean) > self.quantile(seeds, strict) * error) & (np.abs(mean) >= self.margin)
        return same | differs

    def chance(self, later: int) -> float:
        """The chance to be decided at this number of seeds, beyond those so far."""
        shift, spread = futures((self.seeds, later), 0)
        return float(self.decided(later, self.mean + self.sd * shift[:, 1], self.sd * spread[:, 1]).mean())


def later_seeds(seeds: int, fewest: int, cap: int = CAP) -> tuple[int, ...]:
    """Numbers of seeds to look at beyond those so far, at least `fewest`, growing to `cap`."""
    found, n = [], max(seeds + 1, fewest)
    while n < cap:
        found.append(n)
        n = max(n + 1, math.floor(n * GROWTH))
    return (*found, cap) if cap > seeds else tuple(found)


def seeds_to_decide(outlook: Outlook, fewest: int, cap: int = CAP) -> int | None:
    """The fewest seeds at which it is decided with a chance of 80 %; None where those up to `cap` are not enough."""
    later = later_seeds(outlook.seeds, fewest, cap)
    if not later or outlook.chance(later[-1]) < CHANCE:
        return None
    return later[bisect_left(later, True, key=lambda seeds: outlook.chance(seeds) >= CHANCE)]


def decidable(outlook: Outlook) -> bool:
    """Whether endless seeds could decide."""
    return outlook.chance(100 * CAP) > HOPELESS
