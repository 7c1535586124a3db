"""How many labels are wrong, by a model in which classes overlap and some labels are another class's besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SHARES = np.linspace(0.0, 0.9, 91)
"""Shares of wrong labels that are tried, of those of labels drawn blindly: (K - 1) / K."""
COARSE, FINE = np.arange(-1.0, 3.6, 0.3), np.arange(-0.25, 0.3, 0.05)
"""Logarithms of the powers 1/T that are tried, and those about the best of them."""
WITHIN, BEYOND = 3.84, 7.88
"""Quantiles of chi-squared with one degree: 95 %; and for two kinds of noise together, one-sided, 99.5 %."""
MANY = 100
"""Classes beyond which noise is taken to spread evenly."""


class Altered(NamedTuple):
    """How many labels seem to be wrong.

    Attributes:
        share: the likeliest share of wrong labels.
        low, high: its interval by the profile likelihood at 95 % (see `altered`), rounded outwards to the shares that are tried.
        statistic: twice the gain in log-likelihood over no wrong labels.
    """

    share: float
    low: float
    high: float
    statistic: float

    @property
    def told(self) -> bool:
        """Whether overlap that fades away from the border does not explain it, beyond a chance of 0.5 %."""
        return self.statistic > BEYOND

    def matters(self, contradicted: float, limit: float) -> bool:
        """Whether wrong labels are a fault here: sure rows are contradicted, overlap explains it not, and the share is material.

        Args:
            contradicted: lower end of the interval of the contradicted share of the surest rows.
            limit: the share of all rows beyond which wrong labels are material.
        """
        return contradicted > limit and self.told and self.share > limit


def altered(each: np.ndarray, y: np.ndarray) -> Altered:
    """The share of wrong labels that makes these labels likeliest, whatever the classes' overlap.

    A row's true class is drawn from s = p^(1/T) / sum. With chance 1 - r the label is that class, else another one (Mnih and
    Hinton 2012, "Learning to label aerial images from noisy data"): any other, or one that rows of the same guess are often
    labelled with (Goldberger and Ben-Reuven 2017), as far as the other half of the rows tells. Models that learn from altered
    labels are the less sure; T, chosen beside r, makes up for it. Overlap then shows as doubt that fades away from the
    border, wrong labels as contradictions that do not. The model and the kind of noise count that make the labels likeliest.

    Labels are taken to be wrong as often everywhere; where they are so in some places only, the share comes out too high.
    Not told from overlap: labels that are wrong near a border alone, and often those that are mistaken for one certain other
    class (of three classes far apart and 30 % such labels, the share found is 0): models that learn from them answer 70 to 30,
    as where classes overlap. That no wrong labels are found does not mean that there are none. Taken for wrong labels: doubt that does not fade, as of
    outcomes that are uncertain everywhere, of heavy tails, and where the models fit badly (borders too fine for them, classes
    inside one another). The interval takes the table of usual mistakes as known: with many classes it is too narrow.

    Args:
        each: (models, n, K) probabilities out of fold; classes without rows are left out.
        y: (n,) labels.
    """
    present, codes = np.unique(y, return_inverse=True)
    if len(present) < 2:
        return Altered(0.0, 0.0, 0.0, 0.0)
    shares = SHARES * (len(present) - 1) / len(present)
    best, least = np.zeros(len(shares)), np.inf
    for p in each[:, :, present]:
        for profile in _profiles(np.log(np.clip(p, 1e-12, None)), codes, shares):
            if profile.min() < least:
                best, least = profile, float(profile.min())
    at, within = int(best.argmin()), np.flatnonzero(2 * (best - least) < WITHIN)
    low, high = shares[max(within[0] - 1, 0)], shares[min(within[-1] + 1, len(shares) - 1)]
    return Altered(float(shares[at]), float(low), float(high), float(2 * (best[0] - least)))


def _profiles(logs: np.ndarray, y: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """-log-likelihood at every share, least over T, for each kind of noise."""
    rows, k = np.arange(len(y)), logs.shape[1]
    logs = logs - logs.max(axis=1, keepdims=True)
    kinds: list[Callable[[np.ndarray], np.ndarray]] = [lambda s: (1 - s[rows, y]) / (k - 1)]
    if 2 < k <= MANY:
        kinds.append(_usual(logs.argmax(axis=1), y, k))
    found = []
    for other in kinds:
        known: dict[float, np.ndarray] = {}
        for power in COARSE:
            known[power] = _at(np.exp(power), logs, y, shares, other)
        tried = np.array(list(known))
        for start in {float(tried[_table(known)[:, r].argmin()]) for r in (0, int(_table(known).min(axis=0).argmin()))}:
            for power in start + FINE:
                known[power] = _at(np.exp(power), logs, y, shares, other)
        found.append(_table(known).min(axis=0))
    return found


def _table(known: dict[float, np.ndarray]) -> np.ndarray:
    """(powers, shares)."""
    return np.stack(list(known.values()))


def _usual(guess: np.ndarray, y: np.ndarray, k: int) -> Callable[[np.ndarray], np.ndarray]:
    """Chance of a row's label if it is another than its class, as rows of the other half with the same guess have it."""
    half, turned = np.arange(len(y)) % 2, []
    for own in (0, 1):
        counts = np.full((k, k), 1 / (k - 1))
        of = (half != own) & (guess != y)
        np.add.at(counts, (guess[of], y[of]), 1.0)
        np.fill_diagonal(counts, 0.0)
        turned.append(counts / counts.sum(axis=1, keepdims=True))

    def other(s: np.ndarray) -> np.ndarray:
        found = np.empty(len(y))
        for own in (0, 1):
            mine = half == own
            found[mine] = np.einsum("nc,cn->n", s[mine], turned[own][:, y[mine]])
        return found

    return other


def _at(
    power: float, logs: np.ndarray, y: np.ndarray, shares: np.ndarray, other: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    s = np.exp(power * logs)
    s /= s.sum(axis=1, keepdims=True)
    mixed = (1 - shares[:, None]) * s[np.arange(len(y)), y] + shares[:, None] * other(s)
    return -np.log(np.clip(mixed, 1e-12, None)).sum(axis=1)
