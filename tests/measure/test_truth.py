"""Measures that need the truth, against hand-made tables and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from probatum.measure.truth import distances_to, measures_of, truth_measures, worst_group, worst_group_rows
from probatum.spec import Part, Truth

pytestmark = pytest.mark.fast


def part(y: list[int]) -> Part:
    labels = torch.tensor(y)
    return Part(torch.arange(len(y)).float()[:, None], labels, torch.arange(len(y)))


def test_worst_group_leaves_tiny_groups_out() -> None:
    right = torch.tensor([1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0]).bool()
    groups = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    worst, rows = worst_group(right, groups)
    assert worst == pytest.approx(3 / 5)
    assert [row["rows"] for row in rows] == [5, 5, 1]
    assert worst_group(right[-1:], groups[-1:])[0] == 0.0


def test_distances_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(50, 4, generator=generator).softmax(dim=1) for _ in range(2))
    found = {name: float(values.mean()) for name, values in distances_to(p, q).items()}
    expected = functional.kl_div(p.double().log(), q.double(), reduction="batchmean")
    assert found["probability-kl"] == pytest.approx(float(expected), rel=1e-6)
    assert found["probability-mse"] == pytest.approx(float(((p - q) ** 2).sum(1).mean()), rel=1e-5)
    votes = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert distances_to(votes, votes)["probability-kl"].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_every_measure_that_the_truth_allows_and_no_other() -> None:
    train, test = part([0, 1, 1, 0]), part([0, 1, 0, 1])
    shifted, outside = part([1, 1]), part([0, 0, 0])
    truth = Truth(
        "w",
        clean_train=torch.tensor([0, 0, 0, 0]),
        groups=torch.tensor([0, 0, 0, 0]),
        shifted=shifted,
        shifted_groups=torch.tensor([1, 1]),
        outside=outside,
        probabilities=torch.full((4, 2), 0.5),
    )

    def predict(rows: Part) -> torch.Tensor:
        """Class 1 for odd positions; sure of test rows, unsure of those from outside."""
        sure = 0.6 if rows is outside else 0.9
        odd = rows.x[:, 0] % 2 == 1
        return torch.where(odd[:, None], torch.tensor([1 - sure, sure]), torch.tensor([sure, 1 - sure]))

    found, details, rows = truth_measures(predict, predict(test), test, train, truth, "classes")
    assert set(found) == set(measures_of(truth, "classes"))
    assert found["shifted-accuracy"] == 0.5
    assert found["worst-group-accuracy"] == 0.5
    assert (found["ood-auroc"], found["ood-fpr95"]) == (1.0, 0.0)
    assert found["memorised"] == 0.5  # of the wrong labels of rows 1 and 2 the model gives back that of row 1
    assert found["probability-mse"] == pytest.approx(2 * 0.4**2)
    assert details["training rows corrected"] == 0.5
    assert set(rows) == {"worst-group-accuracy", "shifted-accuracy", "probability-mse", "probability-kl"}
    assert rows["shifted-accuracy"].tolist() == pytest.approx([0.0, 1.0, math.nan, math.nan], nan_ok=True)
    assert measures_of(None, "classes") == ()
    assert measures_of(Truth("w", clean_train=truth.clean_train), "classes") == ("memorised",)


def test_reals_have_the_error_on_shifted_rows() -> None:
    y = torch.tensor([[0.0], [2.0]])
    rows = Part(torch.zeros(2, 1), y, torch.arange(2))
    found, _, rows = truth_measures(
        lambda p: torch.ones_like(p.y), torch.ones(2, 1), rows, rows, Truth("w", shifted=rows), "reals"
    )
    assert found == {"shifted-rmse": 1.0}
    assert rows["shifted-rmse"].tolist() == [1.0, 1.0]


def test_shifted_rows_that_are_no_test_rows_have_no_values() -> None:
    test, other = part([0, 1, 0, 1]), Part(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([3, 7]))
    groups = {"groups": torch.zeros(4, dtype=torch.int64), "shifted_groups": torch.zeros(2, dtype=torch.int64)}

    def predict(rows: Part) -> torch.Tensor:
        return torch.tensor([[0.9, 0.1]]).repeat(len(rows), 1)

    found, _, rows = truth_measures(predict, predict(test), test, test, Truth("w", shifted=other, **groups), "classes")
    assert set(found) == {"worst-group-accuracy", "shifted-accuracy"}
    assert rows == {}
    reals, _, rows = truth_measures(
        lambda p: torch.ones(len(p), 1),
        torch.ones(4, 1),
        test,
        test,
        Truth("w", shifted=replace(other, y=torch.zeros(2, 1))),
        "reals",
    )
    assert (set(reals), rows) == ({"shifted-rmse"}, {})


def test_values_of_the_worst_group_are_derivatives() -> None:
    """Answers of test rows and of the same rows turned round; a row counts in the worst group once, twice or not at all."""
    rng = np.random.default_rng(0)
    right, groups = torch.from_numpy(rng.random(40) < 0.6), torch.from_numpy(rng.integers(3, size=40))
    places = np.append(np.arange(24), rng.permutation(24)[:16])
    theta, known = worst_group(right, groups)
    worst = min((g for g in known if g["rows"] >= 5), key=lambda g: g["accuracy"])["group"]
    mine = (groups == int(worst)).numpy()

    def accuracy(weight: np.ndarray) -> float:
        return float(np.average(right.numpy()[mine], weights=weight[places][mine]))

    ones = np.ones(24)
    slope = [(accuracy(ones + 1e-5 * e) - accuracy(ones - 1e-5 * e)) / 2e-5 for e in np.eye(24)]
    values = worst_group_rows(right, groups, places, 24)
    assert values.mean() == pytest.approx(theta, abs=1e-12)
    np.testing.assert_allclose(values - theta, 24 * np.array(slope), atol=1e-7)


def test_predictions_that_are_not_finite_are_told() -> None:
    rows = part([0, 1])
    nan = torch.full((2, 2), float("nan"))
    truth = Truth("w", shifted=rows)
    with pytest.raises(ValueError, match="shifted rows are not finite"):
        truth_measures(lambda p: nan, torch.eye(2), rows, rows, truth, "classes")
