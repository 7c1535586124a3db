"""Bars with half-normal tails: mass, moments, quantiles, gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from probatum.techniques.learner.pfn.bar_distribution import BarDistribution, borders_of

pytestmark = pytest.mark.fast


def bars() -> tuple[BarDistribution, torch.Tensor]:
    found = BarDistribution(torch.tensor([-2.0, -1.0, -0.5, 0.3, 1.0, 2.5]))
    return found, torch.tensor([0.3, -0.4, 1.0, 0.2, -0.1], dtype=torch.float64)


def density(y: float) -> float:
    found, logits = bars()
    return float(found.log_density(logits, torch.tensor(y, dtype=torch.float64)).exp())


def test_density_integrates_to_one_tails_included() -> None:
    pieces = [-30.0, -1.0, -0.5, 0.3, 1.0, 40.0]
    total = sum(quad(density, a, b, limit=200)[0] for a, b in itertools.pairwise(pieces))
    assert total == pytest.approx(1.0, abs=1e-4)


def test_half_of_a_tails_mass_lies_within_its_bar() -> None:
    _, logits = bars()
    share = float(logits.softmax(dim=0)[0])
    assert quad(density, -2.0, -1.0)[0] == pytest.approx(share / 2, rel=1e-6)
    assert quad(density, -40.0, -2.0, limit=200)[0] == pytest.approx(share / 2, rel=1e-4)


def test_mean_and_quantiles_are_those_of_the_density() -> None:
    found, logits = bars()
    pieces = [-30.0, -1.0, -0.5, 0.3, 1.0, 40.0]
    mean = sum(quad(lambda y: y * density(y), a, b, limit=200)[0] for a, b in itertools.pairwise(pieces))
    assert float(found.mean(logits)) == pytest.approx(mean, abs=1e-4)
    for level in (0.02, 0.3, 0.5, 0.77, 0.99):
        q = float(found.quantile(logits, level))
        cuts = [p for p in pieces if p < q] + [q]
        below = sum(quad(density, a, b, limit=200)[0] for a, b in itertools.pairwise(cuts))
        assert below == pytest.approx(level, abs=1e-3)


def test_expected_improvement_of_a_normal() -> None:
    borders = torch.from_numpy(norm.ppf(np.linspace(0.0005, 0.9995, 200)))
    found = BarDistribution(borders)
    mass = torch.from_numpy(np.diff(np.concatenate([[0.0], norm.cdf(borders[1:-1]), [1.0]])))
    z = 0.4
    expected = norm.pdf(z) - z * (1 - norm.cdf(z))
    assert float(found.expected_improvement(mass.log(), z)) == pytest.approx(expected, rel=0.03)


def test_borders_hold_equal_shares_and_part_equal_numbers() -> None:
    sample = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    borders = borders_of(sample, 20)
    counts = torch.histogram(sample, borders.float()).hist
    assert float((counts - 500).abs().max()) <= 2
    assert torch.equal(borders, sample.double().sort().values[np.linspace(0, len(sample) - 1, 21).round()])
    coarse = borders_of(torch.tensor([0.0] * 50 + [1.0] * 50), 5)
    assert bool((coarse.diff() > 0).all())


def test_gradients_reach_the_logits() -> None:
    found, logits = bars()
    y = torch.tensor([-5.0, -0.7, 0.0, 2.0, 9.0], dtype=torch.float64)
    many = logits.expand(5, 5).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: found.log_density(z, y), (many,))


def test_misuse() -> None:
    with pytest.raises(ValueError, match="each above the one before"):
        BarDistribution(torch.tensor([0.0, 1.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="bars is 2"):
        borders_of(torch.randn(50), 2)
    found, logits = bars()
    with pytest.raises(ValueError, match="level is 1"):
        found.quantile(logits, 1.0)
    assert math.isfinite(density(1e6) + 1)
