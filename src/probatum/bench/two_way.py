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
what they claim too much with few trials, the nominal level 1 - alpha (1 - 1.5 / J) pays for. The deviation of a unit with
share h of a trial's rows is smaller from d_s, on which it weighs itself, than from the mean of all units: it counts
1 / sqrt(1 - h) times (CR2 of Bell & McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage
samples", Survey Methodology 28, 2002), products of trials alike where units are few. Differences of 0/1 losses get
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
FEW_UNITS = 20
"""Units of a trial below which what centring takes from products of trials is reckoned pair by pair."""
ROUNDING = 1e-9
"""Share of the largest difference below which differences differ by rounding alone."""
LEAST_LEFT = 0.05
"""Part of what trials have in common below which their products say nothing of it."""
FEWEST = 10
"""Units in all below which the error is larger than stated, and said to be."""


@dataclass(frozen=True)
class Trial:
    """The paired differences of one trial.

    Attributes:
        mean: d_s, positive = better.
        units: (g,) numbers from 0 of the units that were tested, all different.
        deviations: (g,) sum over the unit's rows of x_is - d_s.
        rows: n_s, test rows.
        discordant: size of one discordant row, 1 for differences of 0/1 losses and 0 for others.
        counts: (g,) rows of each unit; None = as many each.
    """

    mean: float
    units: np.ndarray
    deviations: np.ndarray
    rows: int
    discordant: float = 0.0
    counts: np.ndarray | None = None

    @property
    def shares(self) -> np.ndarray:
        """(g,) shares of the rows that the units have."""
        if self.counts is None:
            return np.full(len(self.units), 1 / max(len(self.units), 1))
        return np.asarray(self.counts / self.counts.sum())


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
        units: how many were tested.
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
    units: int = 0

    @property
    def variance(self) -> float:
        """V."""
        return self.shared + max(self.within, self.spread) + self._beyond

    @property
    def _beyond(self) -> float:
        """What training sets of other data add, however many trials there are."""
        return self.kappa * self.trials * max(self.spread - self.within, 0.0) if self.kappa else 0.0

    @property
    def lasting(self) -> float:
        """The part of V that no further trial removes."""
        return self.shared + self._beyond

    @property
    def common(self) -> float:
        """Share of V that no further trial removes; 0 where nothing varies."""
        return self.lasting / self.variance if 0 < self.variance < math.inf else 0.0

    def at(self, trials: int, sd: float | None = None) -> Components:
        """The same after so many trials: shared rows stay, the rest shrinks; `sd` replaces the spread over trials."""
        less = self.trials / trials
        own = max(self.spread - self.shared / (self.trials - 1), 0.0) if self.trials > 1 else 0.0  # S^2 / J
        scale = 1.0 if sd is None or self.sd == 0 else (sd / self.sd) ** 2
        spread = own * less * scale + self.shared / (trials - 1)
        return Components(
            self.mean, self.sd if sd is None else sd, trials, self.within * less, self.shared, spread, self.freedom,
            self.lead, self.kappa, self.units,
        )  # fmt: skip

    def degrees(self) -> float:
        """Satterthwaite's degrees of freedom of V, at least 1."""
        few = max(self.trials - 1, 1)
        if not math.isfinite(self.variance):
            return 1.0
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
        """A warning where rows are too few, or a few carry the answer, else ""."""
        if not math.isfinite(self.within):
            return (
                "each seed tests a single group, so that no interval can be told; bring more groups, or hold out more"
            )
        if self.within + self.shared == 0 or self.lead == 0:
            return ""
        if self.units < FEWEST:
            return f"only {self.units} rows or groups were tested: of so few, intervals miss about twice as often as stated"
        if self.lead > LEAD:
            return f"one row or group carries {self.lead:.0%} of what rows differ by; judge by a measure that it cannot rule"
        if self.freedom < FEW_FREEDOM:
            return "a few rows carry the answer; judge by a measure that they cannot rule"
        return ""


def equal(values: np.ndarray) -> bool:
    """Whether numbers are all the same but for rounding, which would make a spread of next to nothing of it."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max(initial=0.0))


def nominal(trials: int) -> float:
    """What Satterthwaite's degrees of freedom claim too much with few trials: alpha is multiplied by 1 - 1.5 / J."""
    return 1 - 1.5 / trials


def two_way(trials: Sequence[Trial], kappa: float = 0.0) -> Components:
    """The components of the variance of the mean over trials.

    Args:
        trials: at least one; those with a single unit say nothing of rows, and without others the interval is infinite.
        kappa: n_train / (n - n_train) if the question is about other data sets of this kind (each trial's training rows
            are a sample of its own there), else 0.

    Raises:
        ValueError: without trials, for a mean or a row's difference that is not finite, or for a negative kappa.
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
    total, weight, own = np.zeros(size), np.zeros(size), []
    for trial in trials:
        part = trial.deviations / trial.rows
        if len(part) > 1:
            shares = trial.shares
            part = part / np.sqrt(1 - shares)
            weight[trial.units] += shares
        else:
            weight[trial.units] += 1
        own.append(part)
        total[trial.units] += part
    if not np.isfinite(total).all():
        raise ValueError("rows' differences are not all finite; leave out trials of which a row's is not")
    units = int(np.count_nonzero(weight))
    squares = total**2
    discordant = sum(trial.discordant**2 / trial.rows**2 for trial in trials) / count**3
    told = [float(part @ part) for part in own if len(part) > 1]  # a single unit says nothing of how units differ
    tested = [trial for trial in trials if len(trial.units)]  # but for failures that are counted as losses
    within = math.fsum(told) * len(tested) / len(told) / count**2 + discordant if told else math.inf
    rows = float(squares.sum()) / count**2
    if min((len(trial.units) for trial in tested), default=0) < FEW_UNITS:
        shared = max(_of_pairs(tested, size) / count**2 - discordant, 0.0)
    else:
        shared = max(rows - within, 0.0)
    sd = 0.0 if equal(means) else float(means.std(ddof=1))
    spread = sd**2 / count + shared / (count - 1) if count > 1 else math.inf
    fourth = float((squares**2).sum()) / count**4
    freedom = 2 * rows**2 / max(fourth - rows**2 / max(units, 1), 1e-300)
    weights = (
        weight**1.5
    )  # a unit's variance, in rows: 1 where these differ, 2 where the units do; equal ones count in full
    as_equal = float(weights.sum() ** 2 / (weights**2).sum()) if units else 0.0
    if units < FEW_UNITS or as_equal < units / 2:  # a few squares do not tell their kurtosis
        freedom = min(freedom, as_equal - 1.0)
    if rows == 0 and within > 0:  # the one discordant row alone
        freedom = 2.0
    lead = float(squares.max() / squares.sum()) if rows > 0 else 0.0
    mean = float(means[0]) if sd == 0 else float(means.mean())
    return Components(mean, sd, count, within, shared, spread, max(freedom, 1.0), lead, kappa, units)


def _of_pairs(trials: Sequence[Trial], size: int) -> float:
    """What the units that trials s and t share make of cov(d_s, d_t), summed over all pairs; of trials of few units.

    With shares h_s and h_t of the rows, units that differ by effects of their own have sum h_s h_t of their variance in
    common, and their deviations from d_s and d_t the `left` part of that; of g_s and g_t equal units of which k are the same
    1 - 1 / g_s - 1 / g_t + k / (g_s g_t). Pairs that share no unit have none; pairs of which next to nothing is left (a
    single unit each) take the mean of the others.
    """
    count = len(trials)
    moved, share = np.zeros((count, size)), np.zeros((count, size))
    for s, trial in enumerate(trials):
        moved[s, trial.units] = trial.deviations / trial.rows
        share[s, trial.units] = trial.shares
    common, squared = share @ share.T, share**2 @ share.T
    pairs = (common > 0) & ~np.eye(count, dtype=bool)
    left = np.divide(common - squared - squared.T + common**2, common, out=np.zeros_like(common), where=pairs)
    told = pairs & (left > LEAST_LEFT)
    if not told.any():
        return 0.0
    products = (moved @ moved.T)[told] / left[told]
    return float(products.sum()) * float(pairs.sum() / told.sum())
