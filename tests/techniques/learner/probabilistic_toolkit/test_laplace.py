"""Laplace approximations where their answers are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from closed_posterior import NOISE, PRECISION, regression
from probatum.numerics.posterior.stacked import Stacked
from probatum.techniques.learner.probabilistic_toolkit.laplace import (
    Laplace,
    fit_prior_precision,
    gauss_newton,
    jacobians,
    last_layer_gauss_newton,
    probit_probabilities,
)

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weights: Tensor, x: Tensor) -> Tensor:
    return (x @ weights)[:, None]


def test_laplace_is_exact_for_a_linear_model() -> None:
    x, _, mean, covariance = regression()
    found = Laplace(mean, gauss_newton(linear, mean, x, NOISE), PRECISION)
    torch.testing.assert_close(found.covariance(), covariance)
    draws = found.draw(40000, generator(2))
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.05, atol=2e-4)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0.02, atol=2e-3)
    new = torch.randn(6, 3, generator=generator(3), dtype=torch.float64)
    variance = found.linearised_variance(jacobians(linear, mean, new))
    torch.testing.assert_close(variance[:, 0, 0], torch.einsum("nd,de,ne->n", new, covariance, new))


def test_evidence_of_a_linear_model_differs_as_the_exact_one() -> None:
    x, y, _, _ = regression()
    curvature = gauss_newton(linear, torch.zeros(3, dtype=torch.float64), x, NOISE)

    def of(precision: float) -> Laplace:
        mode = torch.linalg.solve(curvature + precision * torch.eye(3, dtype=torch.float64), x.T @ y / NOISE**2)
        likelihood = -0.5 * float(((y - x @ mode) / NOISE).square().sum())
        return Laplace(mode, curvature, precision, likelihood)

    def exact(precision: float) -> float:
        covariance = x @ x.T / precision + NOISE**2 * torch.eye(len(y), dtype=torch.float64)
        return float(torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))

    assert of(3.0).log_evidence() - of(0.2).log_evidence() == pytest.approx(exact(3.0) - exact(0.2), abs=1e-8)
    best = fit_prior_precision(of).prior_precision
    assert exact(best) >= max(exact(best * 1.8), exact(best / 1.8))


def test_gauss_newton_is_the_hessian_of_softmax_regression() -> None:
    x, y = torch.randn(20, 4, generator=generator(), dtype=torch.float64), torch.arange(20) % 3
    layer = nn.Linear(4, 3).double()
    stacked = Stacked(layer)
    weights = stacked.gather([layer])[0][0]

    def outputs(w: Tensor, rows: Tensor) -> Tensor:
        return stacked(w[None], rows)[0]

    def loss(w: Tensor) -> Tensor:
        return nn.functional.cross_entropy(rows_of(w), y, reduction="sum")

    def rows_of(w: Tensor) -> Tensor:
        return x @ w[:12].reshape(3, 4).T + w[12:]

    hessian = torch.autograd.functional.hessian(loss, weights)
    full = gauss_newton(rows_first(rows_of, x), weights, x)
    torch.testing.assert_close(full, hessian)
    torch.testing.assert_close(gauss_newton(rows_first(rows_of, x), weights, x, diagonal=True), hessian.diagonal())
    torch.testing.assert_close(last_layer_gauss_newton(x, layer(x), rows=7), hessian)
    torch.testing.assert_close(outputs(weights, x), rows_of(weights))


def rows_first(function: object, x: Tensor) -> object:
    """The same linear map as a function of weights and rows."""
    return lambda w, rows: rows @ w[:12].reshape(3, 4).T + w[12:]


def test_diagonal_laplace() -> None:
    found = Laplace(torch.zeros(2), torch.tensor([3.0, 8.0]), 1.0)
    assert found.covariance().tolist() == pytest.approx([0.25, 1 / 9])
    assert found.draw(20000, generator()).var(0).tolist() == pytest.approx([0.25, 1 / 9], rel=0.05)
    assert found.log_evidence() != found.log_evidence()  # without a likelihood there is none
    jacobian = torch.ones(1, 1, 2)
    assert found.linearised_variance(jacobian).item() == pytest.approx(0.25 + 1 / 9)
    with pytest.raises(ValueError, match="prior_precision is 0"):
        Laplace(torch.zeros(2), torch.ones(2), 0.0)


def test_probit_is_near_the_mean_softmax() -> None:
    mean, variance = torch.tensor([[1.5, 0.0]]), torch.tensor([[2.0, 2.0]])
    draws = (mean + variance.sqrt() * torch.randn(200000, 2, generator=generator())).softmax(1).mean(0)
    off = float((probit_probabilities(mean, variance) - draws).abs().max())
    assert off < 0.5 * float((mean.softmax(1) - draws).abs().max())  # one variance a logit: an approximation


def test_curvatures_and_draws_carry_no_graph_and_are_as_cold_as_told() -> None:
    x, _, mean, covariance = regression()
    leaf = mean.clone().requires_grad_(True)
    assert not gauss_newton(linear, leaf, x, NOISE).requires_grad
    found = Laplace(mean, gauss_newton(linear, mean, x, NOISE), PRECISION)
    noise = torch.randn(5, 3, generator=generator(2), dtype=torch.float64)
    draws = found.draw(5, generator(2), temperature=0.25)
    torch.testing.assert_close(draws, mean + 0.5 * (found.spread(noise) - mean))
    root = (found.spread(torch.eye(3, dtype=torch.float64)) - mean).T
    torch.testing.assert_close(root @ root.T, covariance)


def test_probit_of_one_logit_by_hand() -> None:
    found = probit_probabilities(torch.tensor([[1.5, -0.5]]), torch.tensor([[2.0, 0.3]]))
    scaled = torch.tensor([[1.5 / (1 + 0.7853982) ** 0.5, -0.5 / (1 + 0.1178097) ** 0.5]])
    torch.testing.assert_close(found, scaled.softmax(dim=1))
