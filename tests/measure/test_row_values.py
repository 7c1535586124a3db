"""Values of rows: their mean is the measure, their deviations are derivatives by a row's weight, their variance is the bootstrap's.

Witnesses: scikit-learn's weighted measures, weighted formulas in loops, the structural components of DeLong et al. over all pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from probatum.measure import row_values
from probatum.measure.calibration import calibration
from probatum.measure.language import language
from probatum.measure.outside import auroc
from probatum.measure.quality import checked, quality
from probatum.measure.selective import selection
from probatum.measure.uncertainty import class_uncertainty, real_uncertainty
from probatum.numerics.calibration.reliability import Bins, debiased_square, equal_mass, equal_width, mean_gap
from probatum.numerics.posterior.predictive import ClassPredictive, RealPredictive

pytestmark = pytest.mark.fast

Array = np.ndarray
STEP = 1e-6


def drawn(n: int, k: int, seed: int = 0, skill: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=generator)
    logits = 1.5 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return (logits + skill * torch.nn.functional.one_hot(y, k)).softmax(1), y


def measured(p: Tensor, y: Tensor) -> dict[str, float]:
    return quality(p, y, "classes", p.shape[1]) | calibration(p, y) | selection(p, y)


def slopes(measure: Callable[[Array], float], n: int) -> Array:
    """n times the derivative of a measure by the weight of each row, all weights 1."""
    ones = np.ones(n)
    found = [(measure(ones + STEP * e) - measure(ones - STEP * e)) / (2 * STEP) for e in np.eye(n)]
    return n * np.array(found)


TIED = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.3, 0.5, 0.2]], dtype=torch.float64)
CASES = {
    "many classes": drawn(200, 5),
    "two classes": drawn(150, 2),
    "float32": (drawn(150, 4)[0].float(), drawn(150, 4)[1]),
    "a class without rows": (drawn(90, 4)[0], drawn(90, 4)[1].clamp_max(2)),
    "one class in the test rows": (drawn(30, 3)[0], torch.full((30,), 2)),
    "ties": (TIED.repeat(20, 1), torch.arange(60) % 4 % 3),
    "two rows": (TIED[:2], torch.tensor([0, 1])),
    "two rows of one class, both wrong": (TIED[:2], torch.tensor([1, 1])),
    "one row": (TIED[:1], torch.tensor([0])),
    "sure, all right": (torch.eye(3).double().repeat(4, 1), torch.arange(12) % 3),
    "sure, some wrong": (torch.eye(3).double().repeat(4, 1), torch.arange(12) % 2),
    "class 1 of two alone": (drawn(20, 2)[0], torch.ones(20, dtype=torch.int64)),
    "one confidence": (torch.full((8, 2), 0.5).double(), torch.arange(8) % 2),
}


@pytest.mark.parametrize("case", CASES)
def test_their_mean_is_the_measure_of_classes(case: str) -> None:
    p, y = CASES[case]
    expected, found = measured(p, y), row_values.of_classes(p, y)
    assert set(found) == set(expected)
    for name, values in found.items():
        assert values.shape == (len(y),)
        assert values.dtype == np.float64
        assert values.mean() == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("k", [2, 4])
def test_deviations_are_derivatives_of_scikit_learns_weighted_measures(k: int) -> None:
    p, y = (value.numpy() for value in drawn(30, k))
    p[:, 0] = p[:, 0].round(1)  # ties between scores
    p /= p.sum(1, keepdims=True)
    guess, labels, one_hot = p.argmax(1), list(range(k)), np.eye(k)[y]
    scored = [1] if k == 2 else labels
    witnesses: dict[str, Callable[[Array], float]] = {
        "accuracy": lambda w: metrics.accuracy_score(y, guess, sample_weight=w),
        "balanced-accuracy": lambda w: metrics.balanced_accuracy_score(y, guess, sample_weight=w),
        "macro-f1": lambda w: metrics.f1_score(y, guess, average="macro", sample_weight=w),
        "log-loss": lambda w: metrics.log_loss(y, p, labels=labels, sample_weight=w),
        "brier": lambda w: float(np.average(((p - one_hot) ** 2).sum(1), weights=w)),
        "auroc": lambda w: float(np.mean([metrics.roc_auc_score(y == c, p[:, c], sample_weight=w) for c in scored])),
        "error-auroc": lambda w: metrics.roc_auc_score(guess == y, p.max(1), sample_weight=w),
    }
    found = row_values.of_classes(torch.from_numpy(p), torch.from_numpy(y))
    for name, witness in witnesses.items():
        theta = witness(np.ones(30))
        np.testing.assert_allclose(found[name] - theta, slopes(witness, 30), atol=1e-6, err_msg=name)


def test_augrc_against_all_pairs() -> None:
    p, y = drawn(40, 3)
    p = (8 * p).round() / 8 + 1e-9
    q, truth = checked(p / p.sum(1, keepdim=True), y, 3)
    sure, wrong = q.max(1), q.argmax(1) != truth
    assert len(np.unique(sure)) < 20  # ties

    def witness(w: Array) -> float:
        total = 0.0
        for i, j in itertools.product(range(40), repeat=2):
            if wrong[i]:
                total += w[i] * w[j] * (1.0 if sure[i] > sure[j] else 0.5 if sure[i] == sure[j] else 0.0)
        return total / w.sum() ** 2

    values = row_values.of_classes(p / p.sum(1, keepdim=True), y)["augrc"]
    assert values.mean() == pytest.approx(witness(np.ones(40)), abs=1e-12)
    np.testing.assert_allclose(values - values.mean(), slopes(witness, 40), atol=1e-6)


def test_auroc_against_delongs_components() -> None:
    """DeLong et al. 1988: the variance is that of the components of positives over their number, and of negatives."""
    rng = np.random.default_rng(0)
    score, positive = rng.integers(12, size=70) / 4, rng.random(70) < 0.3
    ones, zeros = score[positive], score[~positive]
    wins = np.array([[(a > b) + 0.5 * (a == b) for b in zeros] for a in ones])
    values = row_values.auroc(score, positive)
    assert values.mean() == pytest.approx(wins.mean(), abs=1e-12)
    np.testing.assert_allclose(values[positive], wins.mean() + (wins.mean(1) - wins.mean()) * 70 / len(ones))
    np.testing.assert_allclose(values[~positive], wins.mean() + (wins.mean(0) - wins.mean()) * 70 / len(zeros))
    delong = wins.mean(1).var() / len(ones) + wins.mean(0).var() / len(zeros)
    assert values.var() / 70 == pytest.approx(delong)


def in_bins(bins: Bins, sure: Array) -> list[Array]:
    """The rows of each bin (low, high], the first with its lower end."""
    return [
        np.array([i for i, c in enumerate(sure) if low < c <= high or (c == 0 and low == 0)])
        for low, high in zip(bins.low, bins.high, strict=True)
    ]


def weighted_gap(members: list[Array], sure: Array, hit: Array) -> Callable[[Array], float]:
    return lambda w: sum(abs((w[m] * (hit[m] - sure[m])).sum()) for m in members) / w.sum()


def test_gaps_of_bins_are_derivatives_while_edges_stay() -> None:
    p, y = drawn(80, 3, skill=0.2)
    q, truth = p.numpy(), y.numpy()
    top, right = q.max(1), (q.argmax(1) == truth).astype(float)
    found = row_values.of_classes(p, y)
    for name, bins in (("ece", equal_width(top, right, 15)), ("ece-equal-mass", equal_mass(top, right, 15))):
        witness = weighted_gap(in_bins(bins, top), top, right)
        np.testing.assert_allclose(found[name] - found[name].mean(), slopes(witness, 80), atol=1e-6, err_msg=name)
    each = [
        weighted_gap(in_bins(equal_width(q[:, k], 1.0 * (truth == k), 15), q[:, k]), q[:, k], 1.0 * (truth == k))
        for k in range(3)
    ]
    by_class = found["ece-classwise"]
    np.testing.assert_allclose(by_class - by_class.mean(), sum(slopes(one, 80) for one in each) / 3, atol=1e-6)


def test_the_debiased_root_moves_as_its_square_does() -> None:
    """The square's derivatives, times one slope for all rows: that of the root over one standard error each way."""
    rng = np.random.default_rng(0)
    sure = rng.random(150)
    hit = (rng.random(150) < sure**3).astype(float)
    bins = equal_width(sure, hit, 40)  # some bins hold one row
    assert (bins.rows == 1).any()
    members = [m for m in in_bins(bins, sure) if len(m) > 1]

    def square(w: Array) -> float:
        w, total, rows = w * 150 / w.sum(), 0.0, 0.0
        for m in members:
            count, a = w[m].sum(), np.average(hit[m], weights=w[m])
            total += count * ((np.average(sure[m], weights=w[m]) - a) ** 2 - a * (1 - a) / (count - 1))
            rows += count
        return total / rows

    theta, slope = square(np.ones(150)), slopes(square, 150)
    assert theta == pytest.approx(debiased_square(bins))
    error = slope.std() / math.sqrt(150)
    secant = (math.sqrt(theta + error) - math.sqrt(theta - error)) / (2 * error)
    assert secant == pytest.approx(0.5 / math.sqrt(theta), rel=0.05)
    values = row_values.debiased_root(bins, sure, hit)
    np.testing.assert_allclose(values, math.sqrt(theta) + secant * slope, atol=1e-6)


def test_a_root_of_nothing_keeps_a_spread() -> None:
    influence = np.array([-1.0, 1.0, -1.0, 1.0]) * 0.2  # a standard error of 0.1
    for square in (0.0, -0.05, -10.0):
        np.testing.assert_allclose(row_values.root_of_noisy(square, influence), math.sqrt(0.1) / 0.2 * influence)
    assert row_values.root_of_noisy(0.25, np.zeros(3)).tolist() == [0.5] * 3


@pytest.mark.parametrize("seed", range(3))
def test_values_of_reals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(40, 2)) + np.array([0.0, 3.0])
    guess, scale = y + rng.standard_t(4, size=(40, 2)), np.array([2.0, 0.5])
    given = [torch.from_numpy(value) for value in (guess, y)]
    measures = quality(*given, "reals", 2, scale=torch.from_numpy(scale))
    found = row_values.of_reals(*given, torch.from_numpy(scale))
    witnesses: dict[str, Callable[[Array], float]] = {
        "rmse": lambda w: float(
            np.mean(
                [
                    s * metrics.root_mean_squared_error(a, b, sample_weight=w)
                    for a, b, s in zip(y.T, guess.T, scale, strict=True)
                ]
            )
        ),
        "mae": lambda w: metrics.mean_absolute_error(y * scale, guess * scale, sample_weight=w),
        "r2": lambda w: metrics.r2_score(y, guess, sample_weight=w),
    }
    assert set(found) == set(measures) == set(witnesses)
    for name, witness in witnesses.items():
        assert found[name].mean() == pytest.approx(measures[name], abs=1e-9)
        np.testing.assert_allclose(found[name] - measures[name], slopes(witness, 40), atol=1e-5, err_msg=name)


def test_reals_at_the_edges() -> None:
    constant, exact = torch.ones(5, 1), torch.arange(5.0)[:, None]
    found = row_values.of_reals(torch.arange(5.0)[:, None], constant)
    assert set(found) == {"rmse", "mae"}
    assert found["rmse"].mean() == pytest.approx(quality(exact, constant, "reals", 1)["rmse"])
    assert {name: values.tolist() for name, values in row_values.of_reals(exact, exact).items()} == {
        "rmse": [0.0] * 5,
        "mae": [0.0] * 5,
        "r2": [1.0] * 5,
    }
    two = row_values.of_reals(torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [1.0]]))
    assert two["rmse"].tolist() == pytest.approx(
        [math.sqrt(2) - 2 / (2 * math.sqrt(2)), math.sqrt(2) + 2 / (2 * math.sqrt(2))]
    )
    assert two["r2"].mean() == pytest.approx(1 - 4 / 0.5)


def test_values_of_windows_of_tokens() -> None:
    rng = np.random.default_rng(0)
    log_p, sure, right = np.log(rng.random((12, 7))), rng.random((12, 7)), rng.random((12, 7)) < 0.5
    letters, size = rng.integers(5, 30, 12), rng.integers(30, 60, 12)
    measures = language(log_p, sure, right, int(letters.sum()), int(size.sum()))
    found = row_values.of_tokens(log_p, sure, right, letters, size)
    bins = in_bins(equal_width(sure.ravel(), 1.0 * right.ravel(), 15), sure.ravel())
    tokens = weighted_gap(bins, sure.ravel(), 1.0 * right.ravel())
    witnesses: dict[str, Callable[[Array], float]] = {
        "bits-per-character": lambda w: -(w @ log_p.sum(1)) / math.log(2) / (w @ letters),
        "bits-per-byte": lambda w: -(w @ log_p.sum(1)) / math.log(2) / (w @ size),
        "perplexity": lambda w: math.exp(-(w @ log_p.mean(1)) / w.sum()),
        "next-token-accuracy": lambda w: (w @ right.mean(1)) / w.sum(),
        "ece": lambda w: tokens(np.repeat(w, 7)),
    }
    assert set(found) == set(measures) == set(witnesses)
    for name, witness in witnesses.items():
        assert found[name].mean() == pytest.approx(measures[name], abs=1e-9)
        np.testing.assert_allclose(found[name] - measures[name], slopes(witness, 12), atol=1e-6, err_msg=name)


def test_perplexity_without_bound_has_no_values() -> None:
    found = row_values.of_tokens(np.full((2, 1), -1e6), np.ones((2, 1)), np.zeros((2, 1)), np.ones(2), np.ones(2))
    assert "perplexity" not in found
    assert found["next-token-accuracy"].tolist() == [0.0, 0.0]


def test_values_of_uncertainty() -> None:
    generator = torch.Generator().manual_seed(0)
    found = ClassPredictive((2 * torch.randn(6, 50, 3, generator=generator)).log_softmax(2))
    measures, _, rows = class_uncertainty(found, torch.randint(3, (50,), generator=generator))
    assert rows["error-auroc-entropy"].mean() == pytest.approx(measures["error-auroc-entropy"], abs=1e-9)
    for spread, inside in ((1.0, -1.0), (100.0, 1.0)):  # too few inside, all inside
        y = torch.randn(40, 2, generator=generator)
        reals = RealPredictive(torch.randn(3, 40, 2, generator=generator), torch.full((3, 40, 2), 0.2 * spread))
        measures, told, rows = real_uncertainty(reals, y)
        assert (told["coverage-95"] - 0.95) * inside > 0
        assert set(rows) == set(measures)
        for name, values in rows.items():
            assert values.mean() == pytest.approx(measures[name], abs=1e-9)
        low, high = reals.interval(0.95)
        share = ((low <= y) & (y <= high)).double().mean(1).numpy()
        np.testing.assert_allclose(rows["coverage-gap-95"], inside * (share - 0.95))
        density = -0.5 * ((y - reals.means) ** 2 / (0.2 * spread) + math.log(2 * math.pi * 0.2 * spread))
        np.testing.assert_allclose(rows["nll"], -density.double().exp().mean(0).log().mean(1).numpy(), atol=1e-5)


BINS = 4
"""Few, so that each has a gap beyond its noise: where gaps are noise, rows vary more than the measure does."""

WHOLE: dict[str, Callable[[Array, Array], float]] = {
    "macro-f1": lambda p, y: metrics.f1_score(y, p.argmax(1), average="macro"),
    "auroc": lambda p, y: float(np.mean([auroc(p[y == k, k], p[y != k, k]) for k in range(p.shape[1])])),
    "ece-equal-mass": lambda p, y: mean_gap(equal_mass(p.max(1), 1.0 * (p.argmax(1) == y), BINS)),
    "calibration-rms-debiased": lambda p, y: math.sqrt(
        max(debiased_square(equal_mass(p.max(1), 1.0 * (p.argmax(1) == y), BINS)), 0.0)
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_variance_of_a_difference_is_the_bootstraps(name: str) -> None:
    """Two predictors on the same rows, one too sure and one not sure enough; edges of bins are drawn anew in every resample."""
    n = 500
    first, y = (value.numpy() for value in drawn(n, 3, skill=1.5))
    other = np.sqrt(0.8 * first + 0.2 * drawn(n, 3, seed=5, skill=0.0)[0].numpy())
    other /= other.sum(1, keepdims=True)
    ours = [row_values.of_classes(torch.from_numpy(p), torch.from_numpy(y), BINS)[name] for p in (first, other)]
    rng, seen = np.random.default_rng(1), []
    for rows in rng.integers(n, size=(200, n)):
        seen.append(WHOLE[name](first[rows], y[rows]) - WHOLE[name](other[rows], y[rows]))
    assert (ours[0] - ours[1]).std() / math.sqrt(n) == pytest.approx(np.std(seen), rel=0.2)
