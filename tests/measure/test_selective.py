"""Selective prediction and scores of rows from elsewhere against definitions, brute force and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics

from probatum.measure.outside import aupr, auroc, fpr_at
from probatum.measure.selective import (
    augrc,
    aurc,
    coverage_at,
    e_aurc,
    error_auroc,
    risk_coverage,
    selection,
)

pytestmark = pytest.mark.fast


def answers(n: int = 400, seed: int = 0, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1, n)
    if levels:
        confidence = np.round(confidence * levels) / levels
    return confidence, rng.random(n) > confidence


def test_curve_by_hand() -> None:
    curve = risk_coverage(np.array([0.9, 0.8, 0.8, 0.5]), np.array([False, True, False, True]))
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.risk.tolist() == [0.0, pytest.approx(1 / 3), 0.5]


def test_aurc_is_the_mean_over_orders_of_ties() -> None:
    confidence = np.array([0.9, 0.7, 0.7, 0.7, 0.2])
    wrong = np.array([0, 1, 0, 0, 1], dtype=bool)
    found = []
    for middle in itertools.permutations([1, 2, 3]):
        order = [0, *middle, 4]
        found.append(np.mean(np.cumsum(wrong[order]) / np.arange(1, 6)))
    assert aurc(confidence, wrong) == pytest.approx(np.mean(found))


@pytest.mark.parametrize("levels", [None, 7])
def test_augrc_equals_its_closed_form(levels: int | None) -> None:
    confidence, wrong = answers(levels=levels)
    accuracy = 1 - wrong.mean()
    area = metrics.roc_auc_score(~wrong, confidence)
    assert augrc(confidence, wrong) == pytest.approx((1 - area) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2)
    assert error_auroc(confidence, wrong) == pytest.approx(area)


def test_no_order_beats_the_oracle_and_chance_is_the_error_rate() -> None:
    confidence, wrong = answers()
    assert e_aurc(confidence, wrong) > 0
    assert e_aurc(-wrong.astype(float), wrong) == pytest.approx(0)
    assert aurc(np.zeros(len(wrong)), wrong) == pytest.approx(wrong.mean())
    assert augrc(np.zeros(len(wrong)), wrong) == pytest.approx(wrong.mean() / 2)


def test_coverage_at_a_risk_by_brute_force() -> None:
    confidence, wrong = answers(levels=9)
    for risk in (0.0, 0.1, 0.2, 0.5, 1.0):
        kept = [confidence >= t for t in np.unique(confidence)]
        best = max((k.mean() for k in kept if wrong[k].mean() <= risk), default=0.0)
        assert coverage_at(confidence, wrong, risk) == pytest.approx(best)


def test_selection_of_probabilities() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.45, 0.55]])
    assert selection(p, torch.tensor([0, 1, 1])) == {
        "augrc": pytest.approx(1 / 6),
        "error-auroc": pytest.approx(0.5),
    }
    assert selection(p, torch.tensor([0, 0, 1])) == {"augrc": 0.0}  # without errors there is nothing to find


@pytest.mark.parametrize("levels", [None, 5])
def test_outside_against_scikit_learn(levels: int | None) -> None:
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(1, 1, 300), rng.normal(0, 1, 200)
    if levels:
        inside, outside = np.round(inside * levels) / levels, np.round(outside * levels) / levels
    truth = np.r_[np.ones(300), np.zeros(200)]
    scores = np.r_[inside, outside]
    assert auroc(inside, outside) == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert aupr(torch.from_numpy(inside), outside) == pytest.approx(metrics.average_precision_score(truth, scores))
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert fpr_at(inside, outside, 0.95) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_separated_scores() -> None:
    assert auroc([2, 3], [0, 1]) == 1.0
    assert fpr_at([2, 3], [0, 1]) == 0.0
    assert aupr([2, 3], [0, 1]) == 1.0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="inside has 0 scores"):
        auroc([], [1.0])
    with pytest.raises(ValueError, match="1 not finite"):
        fpr_at([1.0, float("nan")], [1.0])
    with pytest.raises(ValueError, match="rate is 0"):
        fpr_at([1.0], [1.0], 0)
    with pytest.raises(ValueError, match="some right and some wrong"):
        error_auroc(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="risk is 2"):
        coverage_at(np.ones(3), np.zeros(3), 2)
    with pytest.raises(ValueError, match="give finite"):
        aurc(np.ones(3), np.zeros(2))
