"""Critics against distances in closed form, priors against their covariances."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import Tensor

from probatum.numerics.posterior.gaussian_process import rbf
from probatum.techniques.learner.functional_gp_prior.functional_prior import (
    Critic,
    GaussianPrior,
    HierarchicalPrior,
    Perceptron,
    measurement_points,
    process_functions,
    tune_prior,
    warn_of_scale,
    wasserstein,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_critic_finds_the_distance_of_shifted_gaussians() -> None:
    draw = generator()
    shift = torch.tensor([1.5, -2.0, 0.0, 1.0])
    theirs, ours = (torch.randn(1024, 4, 1, generator=draw) for _ in range(2))
    found = wasserstein(theirs, ours + shift[:, None], draw, steps=400, width=64)
    assert found == pytest.approx(float(shift.norm()), rel=0.1)
    assert wasserstein(theirs, ours, draw, steps=200, width=64) < 0.4


def test_a_critic_is_no_judge_of_what_it_was_fitted_to() -> None:
    draw = generator(3)
    seen, fresh = ((torch.randn(128, 10, 1, generator=draw), torch.randn(128, 10, 1, generator=draw)) for _ in range(2))
    told = wasserstein(*seen, generator(1), 200, 64)
    assert told > 0.4
    assert abs(wasserstein(*seen, generator(1), 200, 64, fresh)) < 0.5 * told
    shifted = (fresh[0], fresh[1] + 1.0)
    moved = wasserstein(seen[0], seen[1] + 1.0, generator(1), 200, 64, shifted)
    assert moved == pytest.approx(10**0.5, rel=0.2)


def test_outputs_have_critics_of_their_own_and_their_distances_are_summed() -> None:
    draw = generator()
    theirs, ours = torch.randn(2, 512, 3, 2, generator=draw).unbind(0)
    ours = ours + torch.tensor([2.0, 0.0])
    critic = Critic(3, 2, 48, draw)
    total = critic.fit(theirs, ours, 300, draw)
    with torch.no_grad():
        apart = critic(ours).mean(0) - critic(theirs).mean(0)
    assert total == pytest.approx(float(apart.sum()), rel=1e-5)
    assert float(apart[0]) > 3 > 10 * abs(float(apart[1]))
    assert wasserstein(theirs, ours, draw, steps=300, width=48) == pytest.approx(2 * 3**0.5, rel=0.1)


def test_the_process_has_its_covariance() -> None:
    x = torch.randn(5, 2, generator=generator())
    functions = process_functions(rbf(0.8, 1.3), 2, generator(1))(x, 40000)
    expected = rbf(0.8, 1.3)(x, x)
    for k in range(2):
        torch.testing.assert_close(functions[:, :, k].T.cov(), expected, atol=0.06, rtol=0)


def test_a_linear_network_has_its_covariance() -> None:
    net, x = Perceptron((4, 1)), torch.randn(6, 4, generator=generator())
    prior = GaussianPrior(net)
    with torch.no_grad():
        prior.raw.copy_(torch.tensor([0.5, -0.3]))
    scale = torch.nn.functional.softplus(prior.raw).detach()
    functions = net(prior.draw(60000, generator(1)), x)[:, :, 0].detach()
    expected = scale[0] ** 2 * x @ x.T / 4 + scale[1] ** 2
    torch.testing.assert_close(functions.T.cov(), expected, atol=0.06, rtol=0.03)


def test_a_perceptron_is_its_layers() -> None:
    net, x = Perceptron((3, 5, 2)), torch.randn(7, 3, generator=generator())
    weights = torch.randn(2, net.size, generator=generator(1))
    for k in range(2):
        a, b, c, d = weights[k].split(net.parts)
        hidden = torch.tanh(x @ a.reshape(3, 5) / 3**0.5 + b)
        torch.testing.assert_close(net(weights, x)[k], hidden @ c.reshape(5, 2) / 5**0.5 + d)


def test_densities_are_those_of_the_draws() -> None:
    net = Perceptron((2, 1))
    weights = torch.randn(3, net.size, generator=generator())
    gaussian = GaussianPrior(net, 0.7)
    law = torch.distributions.Normal(0.0, 0.7)
    differences = gaussian.log_density(weights) - law.log_prob(weights).sum(1)
    torch.testing.assert_close(differences, differences[:1].expand(3))
    hierarchical = HierarchicalPrior(net, 0.7)
    shape, rate = (value.detach() for value in hierarchical.shape_and_rate())
    variance = 1 / torch.distributions.Gamma(shape, rate).sample((400000,))
    estimate = []
    for row in weights:
        parts = row.split(net.parts)
        logs = sum(
            torch.distributions.Normal(0.0, variance[:, k].sqrt()[:, None]).log_prob(part).sum(1)
            for k, part in enumerate(parts)
        )
        estimate.append(logs.logsumexp(0))
    differences = hierarchical.log_density(weights) - torch.stack(estimate)
    torch.testing.assert_close(differences, differences[:1].expand(3), atol=0.05, rtol=0)
    spread = hierarchical.draw(20000, generator()).detach()
    assert float(spread.var()) == pytest.approx(0.49, rel=0.15)


@pytest.mark.parametrize("kind", [GaussianPrior, HierarchicalPrior])
def test_tuning_brings_a_linear_network_to_its_process(kind: type) -> None:
    net, draw = Perceptron((1, 1)), generator()
    prior = kind(net, 1.0)

    def target(x: Tensor, count: int) -> Tensor:  # lines with slopes of 2 and offsets of 0.3
        slopes, offsets = torch.randn(2, count, 1, 1, generator=draw).unbind(0)
        return 2 * slopes * x + 0.3 * offsets

    x = torch.linspace(-1.5, 1.5, 30)[:, None]
    before = prior.draw(4, generator(9)).detach()
    state = torch.get_rng_state()
    tune_prior(prior, net, target, x, draw, steps=150, critic_steps=15, functions=128, points=8, width=32, lr=2e-2)
    assert torch.equal(state, torch.get_rng_state())
    found = prior.draw(20000, generator(9)).detach()
    assert before.shape == (4, 2)
    assert float(found[:, 0].std()) == pytest.approx(2.0, rel=0.25)
    assert float(found[:, 1].std()) < 0.65


def test_points_lie_in_the_widened_box() -> None:
    x = torch.rand(50, 2, generator=generator()) * torch.tensor([1.0, 4.0])
    points = measurement_points(x, 40, generator(1), margin=0.1)
    assert points.shape == (40, 2)
    assert bool((points >= x.amin(0) - 0.11 * (x.amax(0) - x.amin(0))).all())
    assert sum(bool((row == x).all(1).any()) for row in points) == 20


def test_inputs_that_are_not_standardised_are_told() -> None:
    x = torch.randn(30, 2, generator=generator()) * torch.tensor([1.0, 500.0])
    with pytest.warns(UserWarning, match="1 of 2 inputs are not standardised \\(column 1 spans"):
        warn_of_scale(x)
    unit = torch.randn(2000, 1, generator=generator())
    unit = unit / unit.std()
    for spread, told in ((0.008, True), (0.012, False), (9.0, False), (12.0, True)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warn_of_scale(spread * unit)
        assert bool(found) == told, spread
    net = Perceptron((2, 1))
    with pytest.warns(UserWarning, match="not standardised"):
        tune_prior(
            GaussianPrior(net),
            net,
            process_functions(rbf(1.0), 1, generator()),
            x,
            generator(),
            steps=1,
            critic_steps=1,
        )
    with pytest.raises(ValueError, match="not positive semi-definite"):
        process_functions(lambda a, b: -torch.ones(len(a), len(b)), 1, generator())(x, 3)
    with pytest.raises(ValueError, match=re.escape("sizes are (3,)")):
        Perceptron((3,))
    with pytest.raises(ValueError, match="scale is 0"):
        GaussianPrior(Perceptron((2, 1)), 0.0)
