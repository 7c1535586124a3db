"""The two-way interval: against the formula written out row by row, and its error where the truth is known."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from probatum.bench.honesty import unequal_groups
from probatum.bench.statistics import over_rows, paired
from probatum.bench.two_way import Trial, _of_pairs, two_way

pytestmark = pytest.mark.fast


def trial(units: np.ndarray, x: np.ndarray, discordant: float = 0.0, *, sized: bool = False) -> Trial:
    names, where = np.unique(units, return_inverse=True)
    counts = np.bincount(where) if sized else None
    return Trial(float(x.mean()), names, np.bincount(where, x - x.mean()), len(x), discordant, counts)


def drawn(seed: int, trials: int = 7, binary: bool = False) -> list[tuple[list[int], list[float]]]:
    """Units and differences of trials of unequal size; units have one to three rows and an effect of their own."""
    rng = np.random.default_rng(seed)
    found = []
    own = rng.normal(size=90)
    for _ in range(trials):
        chosen = rng.permutation(90)[: rng.integers(20, 50)]
        rows = np.repeat(chosen, 1 + chosen % 3)
        x = rng.choice([-1.0, 0.0, 1.0], len(rows)) if binary else rng.normal(size=len(rows)) + own[rows]
        found.append((rows.tolist(), x.tolist()))
    return found


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("kappa", [0.0, 1.5])
@pytest.mark.parametrize("sized", [False, True])
def test_components_row_by_row(binary: bool, kappa: float, sized: bool) -> None:
    data = drawn(3, binary=binary)
    count = len(data)
    means = [sum(x) / len(x) for _, x in data]
    total: dict[int, float] = defaultdict(float)
    weight: dict[int, float] = defaultdict(float)
    within = 0.0
    for (units, x), mean in zip(data, means, strict=True):
        sums: dict[int, float] = defaultdict(float)
        for unit, value in zip(units, x, strict=True):
            sums[unit] += (value - mean) / len(x)
        for unit, value in sums.items():
            share = units.count(unit) / len(units) if sized else 1 / len(sums)
            factor = math.sqrt(1 / (1 - share))
            weight[unit] += share
            total[unit] += factor * value
            within += (factor * value) ** 2
        within += binary / (count * len(x) ** 2)
    rows, within = sum(v * v for v in total.values()) / count**2, within / count**2
    shared = max(rows - within, 0)
    spread = np.var(means, ddof=1) / count + shared / (count - 1)
    variance = shared + max(within, spread) + kappa * count * max(spread - within, 0)
    fourth = sum(v**4 for v in total.values()) / count**4
    freedom = 2 * rows**2 / (fourth - rows**2 / len(total))
    as_equal = sum(v**1.5 for v in weight.values()) ** 2 / sum(v**3 for v in weight.values())
    if as_equal < len(total) / 2:
        freedom = min(freedom, as_equal - 1)
    noise = (within + shared) ** 2 / freedom + max(spread**2 - within**2, 0) / (count - 1)
    degrees = (shared + max(within, spread)) ** 2 / noise
    degrees = min(degrees, count - 1) if kappa else degrees
    found = over_rows([trial(np.array(u), np.array(x), float(binary), sized=sized) for u, x in data], kappa=kappa)
    half = stats.t.ppf(1 - 0.05 * (1 - 1.5 / count) / 2, degrees) * math.sqrt(variance)
    inner = stats.t.ppf(1 - 0.10 * (1 - 1.5 / count) / 2, degrees) * math.sqrt(variance)
    p = 2 * stats.t.sf(abs(np.mean(means)) / math.sqrt(variance), degrees) / (1 - 1.5 / count)
    assert found.mean == pytest.approx(np.mean(means))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert found.inner == pytest.approx((found.mean - inner, found.mean + inner))
    assert found.p == pytest.approx(min(p, 1))
    assert found.sd == pytest.approx(np.std(means, ddof=1))
    assert found.components is not None
    lasting = shared + kappa * count * max(spread - within, 0)
    assert found.components.common == pytest.approx(lasting / variance)
    assert found.components.lead == pytest.approx(
        max(v * v for v in total.values()) / sum(v * v for v in total.values())
    )


def test_the_same_rows_in_every_trial_count_once() -> None:
    """Deterministic arms on given test rows: the interval is that of one paired test over the rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.1, 1.0, size=400)
    once = stats.ttest_1samp(x, 0.0)
    found = over_rows([trial(np.arange(400), x) for _ in range(24)])
    assert found.components is not None
    assert math.sqrt(found.components.variance) == pytest.approx(
        once.confidence_interval().high / stats.t.ppf(0.975, 399) - x.mean() / stats.t.ppf(0.975, 399), rel=1e-2
    )
    assert found.components.common > 0.95
    assert found.high - found.low == pytest.approx(np.subtract(*once.confidence_interval()[::-1]), rel=0.05)


def test_independent_rows_make_it_the_t_interval_without_correction() -> None:
    rng = np.random.default_rng(1)
    levels = rng.normal(0.0, 1.0, size=12)  # trials differ by far more than their rows do
    found = over_rows(
        [trial(100 * k + np.arange(100), level + 0.01 * rng.normal(size=100)) for k, level in enumerate(levels)]
    )
    plain = paired([float(level) for level in levels], test_fraction_ratio=None, confidence=1 - 0.05 * (1 - 1.5 / 12))
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.01)


def test_no_interval_of_0_1_losses_has_width_nought() -> None:
    x = np.zeros(150)
    x[0] = 1.0  # one row more is right, in every trial the same
    found = over_rows([trial(np.arange(150), x, 1.0) for _ in range(6)])
    assert found.low < 0 < found.high
    nothing = over_rows([trial(np.arange(150), np.zeros(150), 1.0) for _ in range(6)])
    assert nothing.low < 0 < nothing.high
    assert nothing.p == 1


def test_one_trial_alone_and_mistakes() -> None:
    alone = over_rows([trial(np.arange(5), np.arange(5.0))])
    assert (alone.low, alone.high, alone.p, alone.n) == (-math.inf, math.inf, 1.0, 1)
    with pytest.raises(ValueError, match="no trials"):
        two_way([])
    with pytest.raises(ValueError, match="nan"):
        two_way([trial(np.arange(5), np.full(5, math.nan))])
    with pytest.raises(ValueError, match="rows' differences are not all finite"):
        two_way([replace(trial(np.arange(5), np.arange(5.0)), deviations=np.array([0.0, 1.0, math.nan, 0.0, 0.0]))])
    with pytest.raises(ValueError, match="kappa is -1"):
        two_way([trial(np.arange(5), np.arange(5.0))], kappa=-1)


def test_a_row_that_carries_everything_is_told() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 0.01, size=100)
    x[3] = 50.0
    told = two_way([trial(np.arange(100), x + 0.01 * rng.normal(size=100)) for _ in range(8)]).remark()
    assert "one row or group carries 100%" in told or "one row or group carries 99%" in told
    assert two_way([trial(np.arange(100), rng.normal(size=100)) for _ in range(8)]).remark() == ""


def test_later_trials_leave_what_is_shared() -> None:
    components = two_way([trial(np.array(u), np.array(x)) for u, x in drawn(5)])
    much = components.at(7000)
    assert much.shared == components.shared
    assert much.variance == pytest.approx(components.shared, rel=0.01)
    assert components.at(7).variance == pytest.approx(components.variance)


@pytest.mark.parametrize("discordant", [0.03, 0.08])
@pytest.mark.parametrize("trials", [6, 24])
def test_given_test_rows_and_equal_risks(discordant: float, trials: int) -> None:
    """300 test rows that never change and two learners of equal risk on rows like these: t over seeds errs in 49 to 86 %."""
    rng, wrong, plain, studies = np.random.default_rng(4), 0, 0, 400
    for _ in range(studies):
        own = rng.choice([-1.0, 0, 1], 300, p=[discordant / 2, 1 - discordant, discordant / 2])
        x = own + rng.choice([-1.0, 0, 1], (trials, 300), p=[0.01, 0.98, 0.01])
        wrong += over_rows([trial(np.arange(300), row, 1.0) for row in x]).p <= 0.05
        plain += paired(x.mean(axis=1).tolist(), test_fraction_ratio=None).p <= 0.05
    assert wrong <= stats.binom.ppf(0.999, studies, 0.05)
    assert plain > 0.4 * studies


def folds_of(generator: np.random.Generator, groups: int, trials: int, per: int) -> list[np.ndarray]:
    """Groups that each trial tests: repeated folds of `per` groups."""
    found: list[np.ndarray] = []
    while len(found) < trials:
        order = generator.permutation(groups)
        found += [np.sort(order[k : k + per]) for k in range(0, groups - per + 1, per)]
    return found[:trials]


@pytest.mark.parametrize(("groups", "per", "most"), [(6, 2, 0.13), (8, 2, 0.09), (12, 3, 0.08), (60, 12, 0.07)])
def test_few_groups_with_effects_of_their_own(groups: int, per: int, most: float) -> None:
    """The truth is the mean over groups like these: units' own means would hide a third of all intervals' errors."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        own = rng.normal(size=groups)
        tried = []
        for units in folds_of(rng, groups, 24, per):
            x = own[units] + 0.3 * rng.normal() + 0.5 * rng.normal(size=per)
            tried.append(trial(units, x))
        missed += abs(over_rows(tried).mean) > over_rows(tried).high - over_rows(tried).mean
    assert missed / 300 <= most


def test_unequal_groups_with_effects_of_their_own() -> None:
    """Taken for groups of equal size they missed in 7.5 % of 400 where 5 % is stated (`make honesty`'s own check)."""
    rate = unequal_groups(np.random.default_rng(11), 200, 20)
    assert rate.holds
    assert rate.hits <= stats.binom.ppf(0.999, 200, 0.05)


def test_what_unequal_groups_have_in_common_is_estimated_without_bias() -> None:
    """Of groups that differ by effects of variance 1 two trials share sum h h' of it, whatever the sizes; 4,000 draws."""
    rng = np.random.default_rng(2)
    sizes = np.array([2, 3, 5, 9, 14, 30])
    parts = [np.array([0, 1, 2, 5]), np.array([0, 1, 2, 3, 4]), np.array([1, 3, 4, 5])]
    shares = np.zeros((3, 6))
    for s, part in enumerate(parts):
        shares[s, part] = sizes[part] / sizes[part].sum()
    expected = ((shares @ shares.T).sum() - (shares**2).sum()) / 9
    raw, found = [], []
    for _ in range(4000):
        own = rng.normal(size=6)
        trials = [trial(np.repeat(part, sizes[part]), np.repeat(own[part], sizes[part]), sized=True) for part in parts]
        found.append(_of_pairs(trials, 6) / 9)
        moved = [np.bincount(one.units, one.deviations / one.rows, 6) for one in trials]
        raw.append(sum(moved[s] @ moved[t] for s in range(3) for t in range(3) if s != t) / 9)
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 4 * error
    assert np.mean(raw) < expected - 8 * error


def test_trials_of_a_single_group_tell_no_interval() -> None:
    rng = np.random.default_rng(0)
    alone = [Trial(float(rng.normal()), np.array([k % 5]), np.zeros(1), 40) for k in range(10)]
    found = over_rows(alone)
    assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1.0)
    assert found.components is not None
    assert found.components.common == 0
    assert "a single group" in found.components.remark()
    x = rng.normal(size=4)
    mixed = over_rows([*alone, *(trial(np.arange(4), x + 0.1 * rng.normal(size=4)) for _ in range(4))])
    assert math.isfinite(mixed.high)
    assert mixed.components is not None
    assert "only 5 rows or groups" in mixed.components.remark()


def test_equal_answers_carry_no_warning() -> None:
    found = over_rows([trial(np.arange(150), np.zeros(150), 1.0) for _ in range(6)])
    assert found.components is not None
    assert not found.components.remark()


def test_failures_counted_as_losses_have_no_rows() -> None:
    rng = np.random.default_rng(0)
    tried = [trial(np.arange(k % 5, 100, 5), rng.normal(size=20)) for k in range(10)]
    lost = Trial(-1.0, np.empty(0, dtype=np.int64), np.empty(0), 1)
    found = over_rows([*tried, lost])
    assert found.mean < over_rows(tried).mean
    assert math.isfinite(found.high)
    few = over_rows([*(trial(np.arange(6), rng.normal(size=6)) for _ in range(10)), lost])
    assert math.isfinite(few.high)


def test_with_other_data_sets_asked_of_no_number_of_trials_removes_what_training_sets_bring() -> None:
    rng = np.random.default_rng(0)
    tried = [trial(np.arange(100) + 100 * (k % 5), 0.2 * rng.normal(size=100) + 0.1 * rng.normal()) for k in range(24)]
    parts = two_way(tried, 1.5)
    assert parts.at(100_000).variance == pytest.approx(parts.lasting, rel=0.01)
    assert parts.common == pytest.approx(parts.lasting / parts.variance)
    assert parts.lasting > 0.5 * parts.variance
    plain = two_way(tried)
    assert plain.lasting == plain.shared
