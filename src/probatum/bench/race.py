"""Racing: look at the seeds in stages and stop the arms that are decided, without giving up the stated error rates.

Seeds are the only thing raced over; every trial has the full budget. The differences of an arm to the baseline are
modelled as Gaussian with the dependence of Nadeau & Bengio (2003) between re-drawn splits,

    difference_i = mu + sigma (sqrt(ratio) Z + e_i),    so that    var(mean of n) = sigma^2 (1/n + ratio),

Z shared and e_i independent standard normal. Under mu = 0 the joint law of the t statistics at the looks depends on the
looks and the ratio only. With weights w_j (sum 1) let M be the minimum over all looks of p_j / w_j, p_j the ordinary
two-sided p-value at look j. Then F_M(min over the looks so far) is a p-value at any stopping time, and intervals of
level 1 - w_j F_M^-1(alpha) cover mu at all looks at once with probability 1 - alpha (repeated confidence intervals,
Jennison & Turnbull, "Interim analyses: the repeated confidence interval approach", JRSS B 51, 1989).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from probatum.bench.statistics import FEWEST_SEEDS

GROWTH = 1.2
"""Seeds at a look are this many times those at the look before, rounded down, at least one more."""
DRAWS = 200_000
"""Simulated nulls behind F_M."""
CAUTION = 0.999
"""Level of the upper limit that stands for F_M, so that its simulation cannot make a p-value too small."""
FUTILE = 0.2
"""An arm is given up when its chance to be decided by the cap is below this."""
FUTURES = 1000
"""Simulated continuations behind that chance."""
_SEED = 20030531


@dataclass(frozen=True)
class Race:
    """The rule of a race.

    Attributes:
        looks: numbers of seeds at which the arms are judged, increasing; the last is the cap.
        ratio: n_test/n_train where every seed re-draws the split, else None.
        confidence: in (0, 1), of all looks together.

    Raises:
        ValueError: unless the looks are increasing whole numbers of at least 2, or if a number is out of range.
    """

    looks: tuple[int, ...]
    ratio: float | None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.looks or self.looks[0] < 2 or any(b <= a for a, b in zip(self.looks, self.looks[1:], strict=False)):
            raise ValueError(f"looks are {self.looks}; give increasing numbers of seeds, the first at least 2")
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio >= 0):
            raise ValueError(f"ratio of test to training rows is {self.ratio}; use a number of at least 0, or None")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; use a number between 0 and 1, such as 0.95")

    @property
    def cap(self) -> int:
        """Seeds at the last look."""
        return self.looks[-1]

    @property
    def weights(self) -> np.ndarray:
        """Shares of the error that the looks may spend, one each, summing to 1."""
        return weights(self.looks)

    def levels(self, *, complete: bool = True) -> np.ndarray:
        """Nominal confidence of the interval at each look; `complete`: no seed of the arm was lost.

        An arm with lost seeds has other numbers of pairs than the looks, so that only the union bound is sure to hold.
        """
        alpha = 1 - self.confidence
        boundary = _boundary(self.looks, self.ratio or 0.0, alpha) if complete else alpha
        return 1 - np.minimum(boundary * self.weights, 1.0)

    def p_values(self, nominal: np.ndarray) -> np.ndarray:
        """Return p-values that hold whenever one stops, (..., looks), from the nominal ones up to each look.

        They never rise from a look to the next. Nominal p-values of looks that have not taken place are left out: the
        last axis may be shorter than the looks.
        """
        nominal = np.asarray(nominal, dtype=np.float64)
        running = np.minimum.accumulate(nominal / self.weights[: nominal.shape[-1]], axis=-1)
        return law(self.looks, self.ratio or 0.0).p(running)

    def p_union(self, nominal: np.ndarray) -> np.ndarray:
        """The same by the union bound alone, for arms that lost seeds."""
        nominal = np.asarray(nominal, dtype=np.float64)
        return np.minimum(np.minimum.accumulate(nominal / self.weights[: nominal.shape[-1]], axis=-1), 1.0)

    def chance(
        self, look: int, mean: np.ndarray, sd: np.ndarray, margin: np.ndarray, shared: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Return the predictive probability that an arm is decided at this or a later look, given its numbers now.

        The prior of mean and spread is the usual noninformative one. Decided is taken in its weakest sense, as if no
        other arm were tried; so an arm that this calls hopeless is not decided by fewer others either. What the seeds
        share cancels from the future means, so that the ratio enters by the boundary alone.

        Args:
            look: index into `looks` of the look that was taken, not the last.
            mean: (arms,) means of the differences so far.
            sd: (arms,) their standard deviations, at least 0.
            margin: (arms,) regions of practical equivalence.
            shared: (arms,) variances of the mean that no further seed removes, where they are known; `sd` is then without.
        """
        shared = np.broadcast_to(np.asarray(shared, dtype=np.float64), np.shape(mean))
        shift, spread = futures(self.looks, look)
        looks, levels = np.asarray(self.looks), self.levels()
        half, single = (half_widths(looks, ratio, levels)[look:] for ratio in (self.ratio, None))
        fixed = single * np.sqrt(looks[look:])  # of what is shared, in its own standard deviations
        mean, sd, margin = (np.asarray(value, dtype=np.float64)[:, None] for value in (mean, sd, margin))
        decided = np.zeros((len(mean), shift.shape[0]), dtype=bool)
        for j in range(len(half)):
            centre = np.abs(mean + sd * shift[:, j])
            width = np.sqrt((half[j] * sd * spread[:, j]) ** 2 + fixed[j] ** 2 * shared[:, None])
            decided |= (centre + width < margin) | ((centre > width) & (centre >= margin))
        return decided.mean(axis=1)


def looks_to(cap: int, first: int = FEWEST_SEEDS) -> tuple[int, ...]:
    """Return numbers of seeds that grow by about a fifth from `first` to `cap`: 6, 7, 8, 9, 10, 12, 14, 16, 19, 22, 24."""
    looks, n = [], first
    while n < cap:
        looks.append(n)
        n = max(n + 1, int(n * GROWTH))
    return (*looks, cap)


def weights(looks: Sequence[int]) -> np.ndarray:
    """Return each look's share of the error: in proportion to its seeds, so that early stops need clear numbers."""
    return np.asarray(looks) / sum(looks)


def half_widths(n: np.ndarray, ratio: float | None, levels: np.ndarray) -> np.ndarray:
    """Return the half-widths of the intervals at `n` seeds in standard deviations of the differences."""
    from scipy import stats

    return stats.t.ppf((1 + np.asarray(levels)) / 2, n - 1) * np.sqrt(1 / n + (ratio or 0.0))


def nominal_p(mean: np.ndarray, sd: np.ndarray, n: np.ndarray, ratio: float | None) -> np.ndarray:
    """Return two-sided p-values of the corrected t test, 1 where mean and sd are both 0."""
    from scipy import special

    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) / (sd * np.sqrt(1 / n + (ratio or 0.0)))
    return np.where(np.isnan(t), 1.0, 2 * special.stdtr(n - 1, -t))


def moments(looks: Sequence[int], size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw mean and sum of squared deviations of the first n of independent standard normals, (size, looks) each."""
    means, squares = np.empty((size, len(looks))), np.empty((size, len(looks)))
    mean, square, n = np.zeros(size), np.zeros(size), 0
    for j, look in enumerate(looks):
        more = look - n
        step = generator.standard_normal(size) / math.sqrt(more)
        inside = generator.chisquare(more - 1, size) if more > 1 else 0.0
        square = square + inside + (n * more / look) * (step - mean) ** 2
        mean = mean + (step - mean) * more / look
        means[:, j], squares[:, j], n = mean, square, look
    return means, squares


@dataclass(frozen=True)
class Law:
    """The null law of M = min over the looks of p_j / w_j: sorted draws of it."""

    minima: np.ndarray

    def p(self, minimum: np.ndarray) -> np.ndarray:
        """Return an upper limit of P(M <= minimum): the smaller of the simulated one and the union bound."""
        from scipy import special

        minimum = np.asarray(minimum, dtype=np.float64)
        draws = len(self.minima)
        below = np.searchsorted(self.minima, minimum, side="right")
        upper = np.where(below < draws, special.betaincinv(below + 1, np.maximum(draws - below, 1), CAUTION), 1.0)
        return np.minimum(np.minimum(upper, minimum), 1.0)

    def boundary(self, alpha: float) -> float:
        """Return the largest value whose `p` is at most alpha."""
        low, high = alpha, 1 / alpha  # p(alpha) <= alpha by the union bound
        while high - low > 1e-9 * low:
            middle = (low + high) / 2
            low, high = (middle, high) if float(self.p(np.asarray(middle))) <= alpha else (low, middle)
        return low


@lru_cache(maxsize=32)
def law(looks: tuple[int, ...], ratio: float) -> Law:
    """The null law for these looks, simulated from a fixed seed."""
    generator = np.random.default_rng(_SEED)
    means, squares = moments(looks, DRAWS, generator)
    n = np.asarray(looks)
    shared = math.sqrt(ratio) * generator.standard_normal((DRAWS, 1))
    p = nominal_p(means + shared, np.sqrt(squares / (n - 1)), n, ratio)
    return Law(np.sort((p / weights(looks)).min(axis=1)))


@lru_cache(maxsize=64)
def _boundary(looks: tuple[int, ...], ratio: float, alpha: float) -> float:
    return law(looks, ratio).boundary(alpha)


@lru_cache(maxsize=64)
def futures(looks: tuple[int, ...], look: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw what this look (as it is) and later ones bring: (mean - mean now) / sd now, and sd / sd now.

    Both are (futures, looks from this one on).
    """
    generator = np.random.default_rng((_SEED, look))
    n, later = looks[look], np.asarray(looks[look + 1 :])
    sigma = np.sqrt((n - 1) / generator.chisquare(n - 1, (FUTURES, 1)))  # posterior of the true spread, in sd now
    centre = generator.standard_normal((FUTURES, 1)) / math.sqrt(n)
    means, squares = moments(tuple(later - n), FUTURES, generator)
    new = sigma * (means + centre)  # mean of the new differences less the mean of the old ones
    more = later - n
    shift = new * more / later
    total = (n - 1) + sigma**2 * squares + (n * more / later) * new**2
    spread = np.sqrt(total / (later - 1))
    return np.pad(shift, ((0, 0), (1, 0))), np.pad(spread, ((0, 0), (1, 0)), constant_values=1.0)
