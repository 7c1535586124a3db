"""Samplers on posteriors that are known: Gaussians, Bayesian linear regression, a banana by quadrature."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.posterior import sgmcmc
from probatum.numerics.posterior.sgmcmc import Chains, gradient_of, log_posterior, sample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Regression:
    """y = X w + noise with prior N(0, 1): closed posterior."""

    def __init__(self, rows: int = 60, noise: float = 0.5) -> None:
        draw = generator(5)
        self.noise = noise
        mix = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        self.x = torch.randn(rows, 3, generator=draw, dtype=torch.float64) @ mix
        truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        self.y = self.x @ truth + noise * torch.randn(rows, generator=draw, dtype=torch.float64)
        self.covariance = torch.linalg.inv(self.x.T @ self.x / noise**2 + torch.eye(3, dtype=torch.float64))
        self.mean = self.covariance @ self.x.T @ self.y / noise**2

    def losses(self, weights: Tensor, index: Tensor | None = None) -> Tensor:
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])
        return 0.5 * ((weights @ x.T - y) / self.noise).square()


@pytest.mark.parametrize("scale", [0.5, torch.tensor([0.5, 2.0, 3.0])])
def test_the_prior_is_a_gaussian_of_that_scale(scale: float | Tensor) -> None:
    weights = torch.randn(4, 3, generator=generator())
    law = torch.distributions.Normal(0.0, scale)
    expected = law.log_prob(weights) - law.log_prob(torch.zeros(4, 3))
    torch.testing.assert_close(sgmcmc.gaussian_log_prior(weights, scale), expected.sum(dim=1))


def density() -> tuple[Regression, Callable[..., Tensor]]:
    problem = Regression()
    return problem, log_posterior(problem.losses, sgmcmc.gaussian_log_prior)


def assert_close(found: Tensor, problem: Regression, mean: float = 0.05, covariance: float = 0.15) -> None:
    flat = found.flatten(0, 1)
    spread = problem.covariance.diagonal().sqrt()
    assert float(((flat.mean(0) - problem.mean) / spread).abs().max()) < max(mean, 0.12)
    assert float((flat.T.cov() - problem.covariance).norm() / problem.covariance.norm()) < covariance


def test_metropolis_corrected_chains_are_exact_at_large_steps() -> None:
    problem, value = density()
    scale = float(problem.covariance.diagonal().sqrt().min())
    start = problem.mean + 0.1 * torch.randn(16, 3, generator=generator(1), dtype=torch.float64)
    draw = generator(2)
    chains = Chains(start)
    assert_close(sample(lambda c: sgmcmc.hmc(c, value, 0.7 * scale, draw, leaps=8), chains, 500, burn=50), problem)
    assert 0.4 < chains.acceptance < 0.999
    chains = Chains(start)
    found = sample(lambda c: sgmcmc.mala(c, value, 1.2 * scale**2, draw), chains, 2500, burn=200)
    assert_close(found, problem)
    assert 0.3 < chains.acceptance < 0.98
    chains = Chains(start.repeat(20, 1))
    assert_close(sample(lambda c: sgmcmc.metropolis(c, value, 1.2 * scale, draw), chains, 1500, burn=300), problem)


@pytest.mark.parametrize("kind", ["sgld", "psgld", "sghmc"])
def test_stochastic_chains_with_small_steps(kind: str) -> None:
    problem, value = density()
    slope = gradient_of(value)
    scale = float(problem.covariance.diagonal().min())
    draw = generator(3)
    chains = Chains(problem.mean + torch.zeros(48, 3, dtype=torch.float64))
    updates: dict[str, Callable[[Chains], Chains]] = {
        "sgld": lambda c: sgmcmc.sgld(c, slope(c.weights), 0.15 * scale, draw),
        "psgld": lambda c: sgmcmc.psgld(
            c, slope(c.weights), 0.15 * scale, draw, n_data=len(problem.y), decay=0.9999, damping=1.0
        ),
        "sghmc": lambda c: sgmcmc.sghmc(c, slope(c.weights), 0.03 * scale, draw, friction=0.2),
    }
    assert_close(sample(updates[kind], chains, 1500, burn=300), problem)


def test_variance_is_linear_in_the_temperature() -> None:
    problem, value = density()
    slope, scale = gradient_of(value), float(problem.covariance.diagonal().min())
    spread = []
    for temperature in (1.0, 0.25):
        draw = generator(4)
        chains = Chains(problem.mean + torch.zeros(48, 3, dtype=torch.float64))
        found = sample(
            lambda c, t=temperature, d=draw: sgmcmc.sgld(c, slope(c.weights), 0.1 * scale, d, t), chains, 1200, burn=300
        )
        spread.append(float(found.flatten(0, 1).var(0).sum()))
    assert spread[1] / spread[0] == pytest.approx(0.25, rel=0.1)


def test_cold_metropolis_target() -> None:
    draw = generator(6)
    found = sample(
        lambda c: sgmcmc.hmc(c, sgmcmc.gaussian_log_prior, 0.4, draw, 0.25), Chains(torch.zeros(200, 2)), 150, burn=30
    )
    assert float(found.var()) == pytest.approx(0.25, rel=0.05)


def test_the_banana_against_quadrature() -> None:
    def value(w: Tensor) -> Tensor:
        return -0.5 * w[:, 0].square() - 2.0 * (w[:, 1] - w[:, 0].square()).square()

    grid = torch.linspace(-7, 40, 4701, dtype=torch.float64)
    a = torch.linspace(-6, 6, 601, dtype=torch.float64)
    p = torch.stack([value(torch.stack([torch.full_like(grid, v), grid], 1)) for v in a.tolist()]).exp()
    p /= p.sum()
    mean = (p.sum(0) * grid).sum()
    expected = torch.stack([(p.sum(1) * a.square()).sum(), mean, (p.sum(0) * (grid - mean).square()).sum()])
    draw = generator(7)
    chains = Chains(torch.randn(1000, 2, generator=draw, dtype=torch.float64))
    flat = sample(lambda c: sgmcmc.hmc(c, value, 0.08, draw, leaps=18), chains, 250, burn=50).flatten(0, 1)
    found = torch.stack([flat[:, 0].square().mean(), flat[:, 1].mean(), flat[:, 1].var()])
    torch.testing.assert_close(found, expected, rtol=0.08, atol=0.0)


def test_minibatch_gradients_are_unbiased_and_scaled() -> None:
    problem, value = density()
    weights = torch.randn(3, 3, generator=generator(), dtype=torch.float64)
    full = gradient_of(value)(weights)
    slope = gradient_of(log_posterior(problem.losses, sgmcmc.gaussian_log_prior, n_data=60))
    parts = torch.stack([slope(weights, index) for index in torch.arange(60).split(10)])
    torch.testing.assert_close(parts.mean(0), full)

    def mean_loss(w: Tensor) -> Tensor:
        return problem.losses(w).mean(dim=1)

    meaned = gradient_of(log_posterior(mean_loss, sgmcmc.gaussian_log_prior, n_data=60))(weights)
    torch.testing.assert_close(meaned, full)


def test_a_mean_loss_without_the_number_of_rows_is_refused() -> None:
    problem, _ = density()

    def mean_loss(w: Tensor) -> Tensor:
        return problem.losses(w).mean(dim=1)

    with pytest.raises(ValueError, match=r"mean_loss gives one number a chain.*give n_data"):
        log_posterior(mean_loss, sgmcmc.gaussian_log_prior)(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"CrossEntropyLoss gives one number.*n_data"):
        log_posterior(nn.CrossEntropyLoss(), sgmcmc.gaussian_log_prior)
    with pytest.raises(ValueError, match=re.escape("shape () for 2 chains")):
        log_posterior(lambda w: w.sum(), sgmcmc.gaussian_log_prior, n_data=5)(torch.zeros(2, 3))


def test_the_preconditioned_step_by_hand() -> None:
    w, slope = torch.tensor([[1.0, -2.0]]), torch.tensor([[6.0, -0.5]])
    chains, second, place = Chains(w.clone()), torch.ones(1, 2), w.clone()
    for step in range(2):
        sgmcmc.psgld(chains, slope, 0.3, generator(step), 0.5, n_data=4, decay=0.9, damping=0.2)
        second = 0.9 * second + 0.1 * (slope / 4) ** 2
        scale = 1 / (0.2 + second.sqrt())
        noise = torch.randn(1, 2, generator=generator(step))
        place = place + 0.15 * scale * slope + (0.3 * 0.5 * scale).sqrt() * noise
    torch.testing.assert_close(chains.weights, place)
    torch.testing.assert_close(chains.second, second)
    assert chains.step == 2


def test_the_steps_with_momentum_and_without_by_hand() -> None:
    w, slope = torch.tensor([[1.0, -2.0]]), torch.tensor([[6.0, -0.5]])
    noise = [torch.randn(1, 2, generator=generator(step)) for step in range(2)]
    chains = sgmcmc.sgld(Chains(w.clone()), slope, 0.3, generator(0), 0.5)
    torch.testing.assert_close(chains.weights, w + 0.15 * slope + 0.15**0.5 * noise[0])
    chains = Chains(w.clone())
    scale = torch.tensor([2.0, 0.5])
    momentum, place = torch.zeros(1, 2), w.clone()
    for step in range(2):
        sgmcmc.sghmc(chains, slope, 0.3, generator(step), 0.5, friction=0.2, scale=scale)
        momentum = 0.8 * momentum + 0.3 * scale * slope + (2 * 0.2 * 0.3 * 0.5 * scale).sqrt() * noise[step]
        place = place + momentum
    torch.testing.assert_close(chains.weights, place)
    state = Chains(w)
    torch.testing.assert_close(sgmcmc.precondition(state, slope, 4, 0.9, 0.2), 1 / (0.2 + (slope / 4).abs()))
    second = 0.9 * (slope / 4) ** 2 + 0.1 * (2 * slope / 4) ** 2
    torch.testing.assert_close(sgmcmc.precondition(state, 2 * slope, 4, 0.9, 0.2), 1 / (0.2 + second.sqrt()))


def test_chains_are_those_run_one_after_another() -> None:
    start = torch.randn(3, 4, generator=generator())

    def run(weights: Tensor, noise: list[Tensor]) -> Tensor:
        chains = Chains(weights)
        for one in noise:
            chains = sgmcmc.psgld(chains, -chains.weights, 0.1, generator(), 0.0, n_data=10)
            chains.weights = chains.weights + one
        return chains.weights

    noise = [torch.randn(3, 4, generator=generator(k)) for k in range(5)]
    together = run(start, noise)
    alone = torch.cat([run(start[k : k + 1], [one[k : k + 1] for one in noise]) for k in range(3)])
    torch.testing.assert_close(together, alone)


def test_bad_settings() -> None:
    chains, zero = Chains(torch.zeros(1, 2)), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="rate is -1"):
        sgmcmc.sgld(chains, zero, -1.0, generator())
    with pytest.raises(ValueError, match="temperature is -1"):
        sgmcmc.sghmc(chains, zero, 1.0, generator(), -1.0)
    with pytest.raises(ValueError, match="friction is 2"):
        sgmcmc.sghmc(chains, zero, 1.0, generator(), friction=2.0)
    with pytest.raises(ValueError, match="leaps is 0"):
        sgmcmc.hmc(chains, sgmcmc.gaussian_log_prior, 1.0, generator(), leaps=0)
    with pytest.raises(ValueError, match="steps is 5, burn 5"):
        sample(lambda c: c, chains, 5, burn=5)
    assert sgmcmc.decayed(10, 2.0, offset=10.0, power=0.5) == pytest.approx(2 / 2**0.5)
    with pytest.raises(ValueError, match="power is 2"):
        sgmcmc.decayed(1, 1.0, 1.0, 2.0)
