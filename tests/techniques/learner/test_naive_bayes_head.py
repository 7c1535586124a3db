"""Naive Bayes head: sklearn's shared-covariance rule, streaming, the linear form, logistic regression, misuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.spec import Budget, Optimisation
from probatum.techniques.learner import naive_bayes_head as nb
from probatum.techniques.learner.naive_bayes_head import (
    FLOOR,
    Moments,
    error_bound,
    fit,
    from_moments,
    learning_curve,
    logistic,
    naive_bayes,
)

pytestmark = pytest.mark.fast


def rows(n: int = 90, d: int = 4, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=own)
    scales = torch.rand(d, generator=own, dtype=torch.float64) + 0.5
    return torch.randn(n, d, generator=own, dtype=torch.float64) * scales + y[:, None] * 0.7, y


def test_equals_discriminant_analysis_with_a_diagonal_shared_covariance() -> None:
    x, y = rows()
    rule = naive_bayes(x, y, 3)
    a, t = x.numpy(), y.numpy()
    means = np.stack([a[t == c].mean(axis=0) for c in range(3)])
    prior = np.bincount(t) / len(t)
    pooled = sum(prior[c] * a[t == c].var(axis=0) for c in range(3)) + FLOOR
    expected = np.stack([np.log(prior[c]) + norm.logpdf(a, means[c], np.sqrt(pooled)).sum(axis=1) for c in range(3)], 1)
    assert np.allclose(rule.log_density(x).numpy(), expected, atol=1e-9)
    gap = rule.logits(x) - rule.log_density(x)
    assert torch.allclose(gap, gap[:, :1].expand_as(gap), atol=1e-9)  # the linear form differs by a constant a row


def test_merged_moments_are_those_of_all_rows() -> None:
    x, y = rows(200)
    whole = Moments.of(x + 1000.0, y, 3)
    merged = Moments.of(x[:1] + 1000.0, y[:1], 3)
    for part, labels in zip(x[1:].split(37), y[1:].split(37), strict=True):
        merged = merged.merge(Moments.of(part + 1000.0, labels, 3))
    for one, other in zip(vars(whole).values(), vars(merged).values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)
    assert torch.allclose(from_moments(whole).weight, from_moments(merged).weight, rtol=1e-7)


@pytest.mark.parametrize("level", [3.0, 100.0, 2023.0, 1e4, 1.7e9])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_features_far_from_zero_do_not_cancel(level: float, spread: float) -> None:
    x, y = rows()
    noise = torch.randn(90, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    one = torch.full((90, 1), level, dtype=torch.float64)
    dead, near = torch.cat([x, one + spread * noise], dim=1), torch.cat([x, spread * noise], dim=1)
    found = naive_bayes(dead, y, 3)
    expected = naive_bayes(near, y, 3).log_density(near).softmax(dim=1)
    torch.testing.assert_close(found.logits(dead).softmax(dim=1), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.logits(dead + 0.0).softmax(1), found.log_density(dead).softmax(1), atol=1e-6, rtol=0
    )
    moved = naive_bayes(x + level, y, 3)
    torch.testing.assert_close(
        moved.logits(x + level).softmax(1), naive_bayes(x, y, 3).logits(x).softmax(1), atol=1e-6, rtol=0
    )


def test_labels_that_are_none() -> None:
    x, y = rows()
    for wrong in (-100, -1, 3):
        with pytest.raises(ValueError, match=f"label {wrong}"):
            naive_bayes(x, torch.where(torch.arange(90) == 4, wrong, y), 3)
    assert torch.equal(naive_bayes(x, y[:, None], 3).weight, naive_bayes(x, y, 3).weight)


def test_classes_without_rows_are_named_or_get_nothing() -> None:
    x, y = rows()
    with pytest.raises(ValueError, match="classes without rows: 3, 4"):
        naive_bayes(x, y, 5)
    p = naive_bayes(x, y, 5, allow_missing=True).logits(x).softmax(dim=1)
    assert p[:, 3:].abs().max() == 0
    assert torch.allclose(p.sum(dim=1), torch.ones(90, dtype=torch.float64))


def test_logistic_is_sklearns() -> None:
    x, y = rows()
    mine = logistic(x, y, 3, (0.01,))
    z = ((x - x.mean(dim=0)) / x.std(dim=0, correction=0)).numpy()
    theirs = LogisticRegression(C=1 / (0.01 * len(y)), tol=1e-10, max_iter=2000).fit(z, y.numpy())
    assert np.allclose(mine.logits(x).softmax(dim=1).numpy(), theirs.predict_proba(z), atol=1e-4)


def test_curve_finds_where_the_lead_changes() -> None:
    own = torch.Generator().manual_seed(0)
    centre = 0.4 * torch.randn(2, 30, generator=own)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, (n,), generator=own)
        x = centre[y] + torch.randn(n, 30, generator=own)
        x[:, 1:15] = x[:, :1] + 0.3 * x[:, 1:15]  # features that repeat each other: naive Bayes counts them all
        return x, y

    (x, y), test = draw(3000), draw(3000)
    found = learning_curve(x, y, test, 2, (20, 3000), torch.Generator().manual_seed(1), (1e-3,))
    assert found.logistic[1] < found.naive_bayes[1]
    assert found.logistic[1] < found.logistic[0]
    assert (found.crossing is not None) == (found.naive_bayes[0] <= found.logistic[0])
    with pytest.raises(ValueError, match="growing numbers from 2 to 3000"):
        learning_curve(x, y, test, 2, (50, 20), torch.Generator())


class Wrong:
    """A rule that errs on the first rows, a given share of them."""

    def __init__(self, share: float) -> None:
        self.share = share

    def logits(self, features: Tensor) -> Tensor:
        miss = torch.arange(len(features)) < round(self.share * len(features))
        return F.one_hot(miss.long(), 2).double()  # class 1 where it errs


def test_crossing_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = {10: 0.2, 30: 0.2, 70: 0.3}, {10: 0.4, 30: 0.3, 70: 0.1}
    monkeypatch.setattr(nb, "naive_bayes", lambda x, y, c, allow_missing: Wrong(ours[len(x)]))
    monkeypatch.setattr(nb, "logistic", lambda x, y, c, p: Wrong(theirs[len(x)]))
    x, y, test = torch.zeros(80, 2), torch.zeros(80).long(), (torch.zeros(100, 2), torch.zeros(100).long())
    found = learning_curve(x, y, test, 2, (10, 30, 70), torch.Generator())
    assert found.naive_bayes == pytest.approx((0.2, 0.2, 0.3))
    assert found.logistic == pytest.approx((0.4, 0.3, 0.1))
    assert found.crossing == pytest.approx(30 + 40 * 0.1 / 0.3)  # the gap goes from -0.1 to 0.2
    assert learning_curve(x, y, test, 2, (10, 30), torch.Generator()).crossing is None


def test_folds_part_every_class_and_errors_are_their_mean() -> None:
    y = torch.tensor([0] * 7 + [1] * 5)
    x = torch.arange(12.0)[:, None]
    seen = []

    def fits(features: Tensor, labels: Tensor) -> list[Wrong]:
        seen.append((features.squeeze(1).tolist(), labels.tolist()))
        return [Wrong(0.0), Wrong(1.0)]

    errors = nb._cross_errors(x, y, 3, fits)
    left = [sorted(set(range(12)) - {int(v) for v in rows}) for rows, _ in seen]
    assert left == [[0, 3, 6, 7, 10], [1, 4, 8, 11], [2, 5, 9]]
    assert all(labels == y[[int(v) for v in rows]].tolist() for rows, labels in seen)
    # a rule that says 0 errs on the rows of class 1: 2 of 5, 2 of 4, 1 of 3
    assert errors.tolist() == pytest.approx([(2 / 5 + 2 / 4 + 1 / 3) / 3, (3 / 5 + 2 / 4 + 2 / 3) / 3])


def test_the_penalty_is_the_one_that_errs_least() -> None:
    own = torch.Generator().manual_seed(1)
    y = torch.arange(60) % 2
    x = torch.cat([y[:, None] + 0.9 * torch.randn(60, 1, generator=own), torch.randn(60, 30, generator=own)], dim=1)
    errors = nb._cross_errors(x, y, 3, lambda a, b: [logistic(a, b, 2, (penalty,)) for penalty in (1e-6, 1e-2, 1.0)])
    assert errors.tolist() == pytest.approx([24 / 60, 22 / 60, 25 / 60])
    expected = logistic(x, y, 2, (1e-2,)).weight
    torch.testing.assert_close(logistic(x, y, 2, (1e-6, 1e-2, 1.0)).weight, expected, atol=1e-4, rtol=1e-4)


def test_the_head_that_errs_less_is_taken_and_its_scores_are_cooled() -> None:
    data = toy("image", "classes")
    args = (data, Budget(1, 16, 4), torch.Generator(), lambda: nn.Linear(2, 3), Optimisation())
    found = {head: fit(*args, source="raw", head=head) for head in ("naive-bayes", "logistic", "auto")}
    x, y = data.train.x.flatten(1), data.train.y
    errors = nb._cross_errors(
        x, y, 3, lambda a, b: (naive_bayes(a, b, 3, allow_missing=True), logistic(a, b, 3, (1e-3,)))
    )
    assert found["auto"].head == ("naive-bayes", "logistic")[int(errors.argmin())]
    for head, own in found.items():
        assert isinstance(own.rule, nb.NaiveBayes) == (own.head == "naive-bayes")
        assert own.report() == {"naive-bayes": float(own.head == "naive-bayes"), "temperature": own.temperature}
        scores = own.rule.logits(data.test.x.flatten(1))
        torch.testing.assert_close(own.predict(data.test), (scores / own.temperature).softmax(dim=1).float())
        assert own.temperature != 1.0, head
    assert nb._temperature(torch.tensor([[0.0, float("-inf")]]), torch.tensor([1])) == 1.0
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0], [2.0, 0.0]])
    missing = torch.cat([logits, torch.full((4, 1), float("-inf"))], dim=1)
    seen, y = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1, 2])
    assert 0.5 < nb._temperature(logits[seen], y[seen]) < 5
    assert nb._temperature(missing, y) == pytest.approx(nb._temperature(logits[seen], y[seen]), rel=1e-3)


def test_bound_inverts_its_function() -> None:
    for t in (0.1, 0.5, 0.9):
        psi = ((1 + t) * math.log(1 + t) + (1 - t) * math.log(1 - t)) / 2
        assert error_bound(psi) == pytest.approx(t)
        assert error_bound(psi) <= math.sqrt(2 * psi)
    assert error_bound(0.0) == 0.0
    assert error_bound(5.0) == 1.0
    with pytest.raises(ValueError, match="below the best"):
        error_bound(-0.1)


@pytest.mark.parametrize("head", ["naive-bayes", "logistic", "auto"])
def test_on_the_bench(head: str) -> None:
    data = toy("image", "classes")

    def factory() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))

    found = fit(data, Budget(60, 16, 4), torch.Generator().manual_seed(0), factory, Optimisation(lr=1e-2), head=head)
    p = found.predict(data.test)
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-5)
    assert float((p.argmax(dim=1) == data.test.y).float().mean()) > 0.9
    assert found.passes == 60 * 16
    given = fit(
        data, Budget(60, 16, 4), torch.Generator(), factory, Optimisation(), pretrained=True, head="naive-bayes"
    )
    assert given.passes == 0.0  # a pretrained network is taken as it comes
    raw = fit(data, Budget(1, 16, 4), torch.Generator(), factory, Optimisation(), source="raw", head="naive-bayes")
    assert float((raw.predict(data.test).argmax(dim=1) == data.test.y).float().mean()) > 0.9


def test_misuse() -> None:
    x, y = rows()
    x[7, 1] = float("nan")
    with pytest.raises(ValueError, match="1 rows have features that are not finite, first row 7"):
        naive_bayes(x, y, 3)
    x[7, 1] = 0.0
    with pytest.raises(ValueError, match=r"1 class\(es\) have rows"):
        naive_bayes(x, y * 0, 3)
    data = toy("text", "classes")
    with pytest.raises(ValueError, match="token ids are no features"):
        fit(data, Budget(1, 8, 8), torch.Generator(), lambda: nn.Linear(2, 3), Optimisation(), source="raw")
    with pytest.raises(ValueError, match="no pretrained network was given"):
        fit(data, Budget(1, 8, 8), torch.Generator(), lambda: nn.Linear(2, 3), Optimisation(), source="pretrained")
    with pytest.raises(ValueError, match="head is 'svm'"):
        fit(data, Budget(1, 8, 8), torch.Generator(), lambda: nn.Linear(2, 3), Optimisation(), head="svm")


def test_folds_that_leave_one_class_are_left_out() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(40, dtype=torch.int64)
    y[0] = 1  # in the first fold, without which there is nothing to choose between
    errors = nb._cross_errors(x, y, 3, lambda a, b: [naive_bayes(a, b, 2, allow_missing=True)])
    assert bool(errors.isfinite().all())
    seen: list[int] = []

    def fits(a: Tensor, b: Tensor) -> list[nb.NaiveBayes]:
        seen.append(len(b.unique()))
        return [naive_bayes(a, b, 2, allow_missing=True)]

    nb._cross_errors(x, y, 3, fits)
    assert seen == [2, 2]


def test_a_curve_may_begin_with_one_class() -> None:
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(40, dtype=torch.int64)
    y[::8] = 1
    test = x[:10], torch.tensor([0, 1, 0, 0, 0, 1, 0, 0, 1, 0])
    y[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:2]] = 0
    curve = learning_curve(x, y, test, 2, [2, 40], torch.Generator().manual_seed(0))
    assert (curve.naive_bayes[0], curve.logistic[0]) == pytest.approx((0.3, 0.3))
