"""Measures of uncertainty against brute force and closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from probatum.measure.uncertainty import class_uncertainty, real_uncertainty
from probatum.numerics.posterior.predictive import ClassPredictive, RealPredictive

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_errors_are_found_by_mutual_information() -> None:
    log_p = (2 * torch.randn(6, 50, 3, generator=generator(), dtype=torch.float64)).log_softmax(2)
    found = ClassPredictive(log_p)
    y = torch.randint(3, (50,), generator=generator(1))
    measures, told, _ = class_uncertainty(found, y)
    wrong = found.probabilities.argmax(1) != y
    for name, score in (("error-auroc-entropy", found.total), ("error-auroc-epistemic", found.epistemic)):
        pairs = list(itertools.product(score[wrong].tolist(), score[~wrong].tolist()))
        expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
        assert (measures | told)[name] == pytest.approx(expected)
    assert told["total-entropy"] == pytest.approx(told["aleatoric-entropy"] + told["epistemic-entropy"])
    assert told["epistemic-share"] == pytest.approx(told["epistemic-entropy"] / told["total-entropy"])
    assert told["draws"] == 6


def test_a_single_network_tells_no_shares() -> None:
    log_p = torch.randn(1, 50, 3, generator=generator()).log_softmax(2)
    measures, told, _ = class_uncertainty(ClassPredictive(log_p), torch.randint(3, (50,), generator=generator(1)))
    assert set(measures) == {"error-auroc-entropy"}
    assert told == {}
    right = log_p[0].argmax(1)
    assert class_uncertainty(ClassPredictive(log_p), right) == ({}, {}, {})


def test_intervals_of_reals() -> None:
    n = 4000
    y = 2 * torch.randn(n, 1, generator=generator(), dtype=torch.float64)
    right = RealPredictive(torch.zeros(1, n, 1, dtype=torch.float64), torch.full((1, n, 1), 4.0, dtype=torch.float64))
    measures, told, _ = real_uncertainty(right, y)
    assert measures["interval-width-95"] == pytest.approx(2 * 1.959964 * 2, rel=1e-5)
    assert told["coverage-95"] == pytest.approx(0.95, abs=0.01)
    assert measures["coverage-gap-95"] == pytest.approx(abs(told["coverage-95"] - 0.95))
    assert measures["nll"] == pytest.approx(-stats.norm.logpdf(y.numpy(), 0, 2).mean())
    sure = RealPredictive(right.means, 0.01 * right.variances)
    assert real_uncertainty(sure, y)[0]["coverage-gap-95"] > 0.7
    assert real_uncertainty(sure, y)[0]["nll"] > measures["nll"]


def test_several_draws_of_reals_tell_shares() -> None:
    means = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 10, 1)
    _, told, _ = real_uncertainty(RealPredictive(means, torch.full((2, 10, 1), 3.0)), torch.zeros(10, 1))
    assert told["epistemic-variance"] == pytest.approx(1.0)
    assert told["epistemic-share"] == pytest.approx(0.25)
    assert math.isclose(told["draws"], 2)
