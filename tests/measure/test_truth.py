"""Measures that need the truth, against hand-made tables and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from probatum.measure.truth import distance_to, measures_of, truth_measures, worst_group
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
    found = distance_to(p, q)
    expected = functional.kl_div(p.double().log(), q.double(), reduction="batchmean")
    assert found["probability-kl"] == pytest.approx(float(expected), rel=1e-6)
    assert found["probability-mse"] == pytest.approx(float(((p - q) ** 2).sum(1).mean()), rel=1e-5)
    votes = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert distance_to(votes, votes)["probability-kl"] == pytest.approx(0.0, abs=1e-9)


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

    found, details = truth_measures(predict, predict(test), test, train, truth, "classes")
    assert set(found) == set(measures_of(truth, "classes"))
    assert found["shifted-accuracy"] == 0.5
    assert found["worst-group-accuracy"] == 0.5
    assert (found["ood-auroc"], found["ood-fpr95"]) == (1.0, 0.0)
    assert found["memorised"] == 0.5  # of the wrong labels of rows 1 and 2 the model gives back that of row 1
    assert found["probability-mse"] == pytest.approx(2 * 0.4**2)
    assert details["training rows corrected"] == 0.5
    assert measures_of(None, "classes") == ()
    assert measures_of(Truth("w", clean_train=truth.clean_train), "classes") == ("memorised",)


def test_reals_have_the_error_on_shifted_rows() -> None:
    y = torch.tensor([[0.0], [2.0]])
    rows = Part(torch.zeros(2, 1), y, torch.arange(2))
    found, _ = truth_measures(
        lambda p: torch.ones_like(p.y), torch.ones(2, 1), rows, rows, Truth("w", shifted=rows), "reals"
    )
    assert found == {"shifted-rmse": 1.0}


def test_predictions_that_are_not_finite_are_told() -> None:
    rows = part([0, 1])
    nan = torch.full((2, 2), float("nan"))
    truth = Truth("w", shifted=rows)
    with pytest.raises(ValueError, match="shifted rows are not finite"):
        truth_measures(lambda p: nan, torch.eye(2), rows, rows, truth, "classes")
