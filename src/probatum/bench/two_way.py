"""The two-way interval: the variance of a mean difference over trials and over the test rows that trials share.

Trials of a study test rows of one data set again and again, so that their differences are no independent draws. Row i of
trial s has the paired difference x_is = mean + a_i + b_s + c_is: the row's own, the trial's own, and the rest. How much of
the variance the rows bring is seen where a row (or a unit of rows that belong together: copies, a group) is tested in
several trials. With d_s the mean of trial s, J trials, and w_us the sum over rows of unit u of (x_is - d_s) / n_s,

    A = sum_s sum_u w_us^2 / J^2                      rows within trials
    C = max(0, sum_u (sum_s w_us)^2 / J^2 - A)        rows that trials share
    T = S^2 / J + C / (J - 1)                         what the spread S^2 of the d_s says, rows in common put back
    V = C + max(A, T)                                 variance of the mean of the d_s

answers for new rows like these and models trained on samples of these rows. Two-way clustering (Cameron, Gelbach & Miller,
"Robust inference with multiway clustering", JBES 29, 2011) is V without its max. Degrees of freedom are Satterthwaite's;
what they claim too much with few trials, the nominal level 1 - alpha (1 - 1.5 / J) pays for. Differences of 0/1 losses get
one more discordant row in all (Agresti & Min, "Simple improved confidence intervals for comparing matched proportions",
Statistics in Medicine 24, 2005), so that no interval has width 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAD = 0.2
"""Share of the rows' variance beyond which one unit is said to carry the answer."""
FEW_FREEDOM = 10
"""Degrees of freedom of the rows below which a few of them are said to carry it."""


@dataclass(frozen=True)
class Trial:
    """The paired differences of one trial.

    Attributes:
        mean: d_s, positive = better.
        units: (g,) numbers from 0 of the units that were tested, all different.
        deviations: (g,) sum over the unit's rows of x_is - d_s.
        rows: n_s, test rows.
        discordant: size of one discordant row, 1 for differences of 0/1 losses and 0 for others.
    """

    mean: float
    units: np.ndarray
    deviations: np.ndarray
    rows: int
    discordant: float = 0.0


@dataclass(frozen=True)
class Components:
    """What the variance of the mean of J trials is made of.

    Attributes:
        mean: of the trials' differences.
        sd: their standard deviation over trials.
        trials: J.
        within: A, rows within trials.
        shared: C, rows that trials share.
        spread: T, what the trials' spread says.
        freedom: degrees of freedom of the rows' part.
        lead: the largest unit's share of the rows' variance.
        kappa: training over remaining rows where the question is about other data sets, else 0.
    """

    mean: float
    sd: float
    trials: int
    within: float
    shared: float
    spread: float
    freedom: float
    lead: float
    kappa: float = 0.0

    @property
    def variance(self) -> float:
        """V."""
        beyond = self.kappa * self.trials * max(self.spread - self.within, 0.0)
        return self.shared + max(self.within, self.spread) + beyond

    @property
    def common(self) -> float:
        """C / V, the share of the variance that no further trial removes; 0 where nothing varies."""
        return self.shared / self.variance if self.variance > 0 else 0.0

    def at(self, trials: int, sd: float | None = None) -> Components:
        """The same after so many trials: shared rows stay, the rest shrinks; `sd` replaces the spread over trials."""
        less = self.trials / trials
        own = max(self.spread - self.shared / (self.trials - 1), 0.0) if self.trials > 1 else 0.0  # S^2 / J
        scale = 1.0 if sd is None or self.sd == 0 else (sd / self.sd) ** 2
        spread = own * less * scale + self.shared / (trials - 1)
        return Components(
            self.mean, self.sd if sd is None else sd, trials, self.within * less, self.shared, spread, self.freedom,
            self.lead, self.kappa,
        )  # fmt: skip

    def degrees(self) -> float:
        """Satterthwaite's degrees of freedom of V, at least 1."""
        few = max(self.trials - 1, 1)
        rows, total = self.within + self.shared, self.shared + max(self.within, self.spread)
        over = max(self.spread**2 - self.within**2, 0.0) if self.spread > self.within else 0.0
        noise = rows**2 / self.freedom + over / few
        found = max(total**2 / noise, 1.0) if noise > 0 else 1.0
        return min(found, few) if self.kappa else found  # with kappa, what trials alone tell carries most of it

    def half(self, level: float) -> float:
        """Half the width of the interval of this confidence."""
        return self.quantile(level) * math.sqrt(self.variance) if self.trials > 1 else math.inf

    def quantile(self, level: float) -> float:
        """How many standard errors the interval of this confidence reaches."""
        from scipy import special

        return -float(special.stdtrit(self.degrees(), (1 - level) * nominal(self.trials) / 2))

    def p(self) -> float:
        """Two-sided p-value of a mean of 0."""
        from scipy import special

        if self.trials < 2:
            return 1.0
        if self.variance == 0:
            return float(self.mean == 0)
        t = abs(self.mean) / math.sqrt(self.variance)
        return min(1.0, float(2 * special.stdtr(self.degrees(), -t)) / nominal(self.trials))

    def remark(self) -> str:
        """A warning where a few rows carry the answer, else ""."""
        if self.lead > LEAD:
            return f"one row or group carries {self.lead:.0%} of what rows differ by; judge by a measure that it cannot rule"
        if self.freedom < FEW_FREEDOM and self.within + self.shared > 0:
            return "a few rows carry the answer; judge by a measure that they cannot rule"
        return ""


def nominal(trials: int) -> float:
    """What Satterthwaite's degrees of freedom claim too much with few trials: alpha is multiplied by 1 - 1.5 / J."""
    return 1 - 1.5 / trials


def two_way(trials: Sequence[Trial], kappa: float = 0.0) -> Components:
    """The components of the variance of the mean over trials.

    Args:
        trials: at least one; those with a single unit say nothing of rows.
        kappa: n_train / (n - n_train) if the question is about other data sets of this kind (each trial's training rows
            are a sample of its own there), else 0.

    Raises:
        ValueError: without trials, for a mean that is not finite, or for a negative kappa.
    """
    if not trials:
        raise ValueError("there are no trials; give one or more")
    if not kappa >= 0:
        raise ValueError(f"kappa is {kappa}; it must be at least 0")
    means = np.array([trial.mean for trial in trials])
    if not np.isfinite(means).all():
        raise ValueError(f"differences contain {means[~np.isfinite(means)][0]}; leave out trials that are not finite")
    count = len(trials)
    size = 1 + max(int(trial.units.max(initial=0)) for trial in trials)
    total, seen, within = np.zeros(size), np.zeros(size, dtype=bool), 0.0
    for trial in trials:
        groups = len(trial.units)
        own = trial.deviations / trial.rows * math.sqrt(groups / (groups - 1) if groups > 1 else math.inf)
        total[trial.units] += own
        seen[trial.units] = True
        within += float(own @ own) + trial.discordant**2 / (count * trial.rows**2)
    squares = total**2
    within, rows = within / count**2, float(squares.sum()) / count**2
    shared = max(rows - within, 0.0)
    sd = 0.0 if (means == means[0]).all() else float(means.std(ddof=1))  # np.std of equal numbers need not be 0
    spread = sd**2 / count + shared / (count - 1) if count > 1 else math.inf
    fourth = float((squares**2).sum()) / count**4
    freedom = 2 * rows**2 / max(fourth - rows**2 / seen.sum(), 1e-300)
    if rows == 0 and within > 0:  # the one discordant row alone
        freedom = 2.0
    lead = float(squares.max() / squares.sum()) if rows > 0 else 0.0
    mean = float(means[0]) if sd == 0 else float(means.mean())
    return Components(mean, sd, count, within, shared, spread, max(freedom, 1.0), lead, kappa)
