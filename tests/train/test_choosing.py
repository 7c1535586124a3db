"""The measure that decides chooses the weights: its error on validation rows, by value, in single trials, stacks and the tuner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from probatum.rooms.task import task

pytestmark = pytest.mark.fast


def drawn(classes: int, seed: int = 0, rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, of two classes with ties, and labels of unequal frequency, the last class absent of more than three."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.linspace(1, 0.1, classes)
    if classes > 3:
        share[-1] = 0
    y = torch.multinomial(share, rows, replacement=True, generator=generator)
    logits = torch.randn(rows, classes, generator=generator) + nn.functional.one_hot(y, classes)
    return (2 * logits).round() / 2 if classes == 2 else logits, y


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_errors_are_one_less_the_measures_of_scikit_learn(classes: int) -> None:
    output, y = drawn(classes)
    guess, p, seen = output.argmax(1), output.double().softmax(1).numpy(), np.unique(y)
    one_vs_rest = [metrics.roc_auc_score(y == k, p[:, k]) for k in ([1] if classes == 2 else seen)]
    wanted = {
        "balanced-accuracy": metrics.recall_score(y, guess, labels=seen, average="macro"),
        "macro-f1": metrics.f1_score(y, guess, average="macro", zero_division=0),
        "auroc": np.mean(one_vs_rest),
    }
    asked = task("classes")
    for measure, value in wanted.items():
        found = asked.further_errors(output, y, asked.selection(measure, "quality"))
        assert list(found.values()) == pytest.approx([1 - value], abs=1e-12), measure
        errors = {**asked.errors(output, y), **found}
        assert asked.score(errors, measure) == (*found.values(), errors["log_loss"])
        assert asked.tuned_by(errors, measure) == pytest.approx(1 - value + 1e-3 * errors["log_loss"])


def test_without_both_kinds_of_rows_no_area_is_better_than_another() -> None:
    output, _ = drawn(2)
    assert task("classes").further_errors(output, torch.zeros(200, dtype=torch.int64), "auroc") == {"auroc_error": 0.5}


def test_what_is_usual_is_asked_nothing_more() -> None:
    asked = task("classes")
    for measure, axis, select in (
        ("accuracy", "quality", "accuracy"), ("log-loss", "quality", "log-loss"), ("brier", "quality", "log-loss"),
        ("ece", "calibration", "log-loss"), ("macs", "cost", "accuracy"), ("set-size-90", "selection", "accuracy"),
    ):  # fmt: skip
        assert asked.selection(measure, axis) == select
        assert asked.further_errors(*drawn(3), select) == {}
