"""Mean-field and SWAG where their answers are known in closed form; losses and gradients of batches network by network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from closed_posterior import NOISE, PRECISION, regression
from probatum.numerics.posterior.approximations import batch_losses, plain_gradient
from probatum.numerics.posterior.ensembles import Members, class_losses
from probatum.numerics.posterior.stacked import Stacked
from probatum.numerics.posterior.swag import Swag
from probatum.numerics.posterior.variational import MeanField, gaussian_kl, negative_elbo
from probatum.spec import Part

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mean_field_finds_the_best_independent_gaussian() -> None:
    x, y, mean, covariance = regression()
    q = MeanField(torch.zeros(3, dtype=torch.float64), 0.1, PRECISION**-0.5)
    optimizer = torch.optim.Adam(q.parameters(), lr=0.02)
    draw = generator(4)

    def losses(w: Tensor) -> Tensor:
        return 0.5 * ((w @ x.T - y) / NOISE).square().mean(dim=1)

    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        optimizer.zero_grad()
        negative_elbo(q, losses, 40, draw, draws=16).backward()
        optimizer.step()
    expected = torch.linalg.inv(covariance).diagonal().rsqrt()  # of a Gaussian: the precisions' diagonal
    torch.testing.assert_close(q.scale.detach(), expected, rtol=0.05, atol=0.0)
    torch.testing.assert_close(q.mean.detach(), mean, rtol=0.03, atol=0.01)


def test_kl_against_torch() -> None:
    mean, scale = torch.randn(7, generator=generator()), torch.rand(7, generator=generator(1)) + 0.1
    p, prior = (
        torch.distributions.Normal(mean, scale),
        torch.distributions.Normal(torch.zeros(7), torch.full((7,), 1.5)),
    )
    expected = torch.distributions.kl_divergence(p, prior).sum()
    torch.testing.assert_close(gaussian_kl(mean, scale, 1.5), expected)
    assert MeanField(torch.zeros(2), 0.3).scale.tolist() == pytest.approx([0.3, 0.3])
    with pytest.raises(ValueError, match="scale is 0"):
        MeanField(torch.zeros(2), 0.0)


def test_swag_moments_and_draws() -> None:
    states = torch.randn(30, 2, 6, generator=generator(), dtype=torch.float64)
    swag = Swag(rank=30)
    for one in states:
        swag.collect(one.clone().requires_grad_(True))  # as weights in training are
    assert not swag.mean.requires_grad
    torch.testing.assert_close(swag.mean, states.mean(0))
    torch.testing.assert_close(swag.variance(), states.var(0, unbiased=False))
    running = torch.stack([states[k] - states[: k + 1].mean(0) for k in range(30)])
    low = torch.einsum("ksp,ksq->spq", running, running) / 29
    expected = 0.5 * (torch.diag_embed(states.var(0, unbiased=False)) + low)
    torch.testing.assert_close(swag.covariance(), expected)
    draws = swag.draw(60000, generator(1))
    for k in range(2):
        assert float((draws[k].T.cov() - expected[k]).norm() / expected[k].norm()) < 0.03
    assert float(swag.draw(3, generator(), scale=0.0).var(dim=1).max()) < 1e-20
    diagonal = Swag(rank=0)
    diagonal.collect(states[0])
    with pytest.raises(ValueError, match="1 states were collected"):
        diagonal.draw(2, generator())
    with pytest.raises(ValueError, match="rank is 1"):
        Swag(rank=1)
    assert math.isfinite(float(draws.sum()))


@pytest.mark.parametrize("draws", [2, 5])
def test_losses_and_gradients_of_a_batch_are_those_of_each_network_in_training(draws: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2)]
    stacked, x, y = Stacked(nets[0]), torch.randn(20, 3, generator=generator()), torch.arange(20) % 2
    weights, buffers = stacked.gather(nets)
    index, rows = torch.tensor([3, 1, 4, 15, 9]), Part(x, y, torch.arange(20))
    weights = weights[torch.arange(draws) % 2]  # more draws than networks have the first one's statistics
    losses = batch_losses(Members(stacked, weights, buffers), rows, index, class_losses)
    with torch.no_grad():
        found = plain_gradient(losses, weights)
    for k in range(draws):
        net = nets[k % 2].train()
        net.zero_grad()
        loss = F.cross_entropy(net(x[index]), y[index])
        loss.backward()
        torch.testing.assert_close(losses(weights)[k].detach(), loss.detach())
        own = torch.cat([p.grad.flatten() for p in net.parameters()])
        torch.testing.assert_close(found[k], own, rtol=1e-4, atol=1e-6)
