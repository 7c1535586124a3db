"""Chains against a posterior in closed form, forces against finite differences, and what intervals are made of."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.posterior.predictors import dropouts, started, without_dropout
from probatum.numerics.posterior.stacked import Stacked
from probatum.spec import Budget, Data, Optimisation, Part, Spec
from probatum.techniques.learner.sgmcmc_multichain.langevin import (
    forces,
    free_energy,
    mean_passage,
    mueller_brown,
    occupancy,
    simulate,
)
from probatum.techniques.learner.sgmcmc_multichain.sgmcmc_multichain import (
    energies,
    fit,
    force_losses,
    observe,
    row_likelihoods,
    sample_chains,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NOISE, ROWS = 0.5, 60


def regression() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(ROWS, 2, generator=generator(), dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    y = y + NOISE * torch.randn(ROWS, generator=generator(1), dtype=torch.float64)
    covariance = torch.linalg.inv(x.T @ x / NOISE**2 + torch.eye(2, dtype=torch.float64))
    return x, y, covariance @ x.T @ y / NOISE**2, covariance


def repeated(*batch: Tensor) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield batch


def losses(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * ((weights @ x.T - y) / NOISE).square()


def chains(temperature: float = 1.0, n_data: int | None = ROWS) -> Tensor:
    x, y, mean, _ = regression()
    start = mean + torch.zeros(64, 2, dtype=torch.float64)
    how: dict[str, Any] = {"rate": 0.03, "decay": 0.9999, "damping": 1.0, "temperature": temperature, "burn": 0.2}
    return sample_chains(losses, start, repeated(x, y), n_data, 2000, generator(2), draws=800, **how)


def test_mean_and_covariance_of_a_regression_in_closed_form() -> None:
    _, _, mean, covariance = regression()
    flat = chains().flatten(0, 1)
    assert float(((flat.mean(0) - mean) / mean).abs().max()) < 0.05
    assert float((flat.T.cov() - covariance).norm() / covariance.norm()) < 0.15


@pytest.mark.parametrize("rows", [ROWS, 15])
def test_the_default_preconditioner_from_a_mode(rows: int) -> None:
    """Where the gradient of all rows is 0, which must not be taken for its size."""
    x, y, mean, covariance = regression()
    draw = generator(3)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            index = torch.arange(ROWS) if rows == ROWS else torch.randperm(ROWS, generator=draw)[:rows]
            yield x[index], y[index]

    start = mean + torch.zeros(64, 2, dtype=torch.float64)
    found = sample_chains(losses, start, batches(), ROWS, 2000, generator(2), draws=500, rate=5e-3)
    flat = found.flatten(0, 1)
    assert float(((flat.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.15
    assert float((flat.T.cov() - covariance).norm() / covariance.norm()) < 0.25


def test_the_priors_scale_is_that_of_each_weight() -> None:
    x, y, _, _ = regression()
    scale = torch.tensor([0.05, 2.0], dtype=torch.float64)
    covariance = torch.linalg.inv(x.T @ x / NOISE**2 + torch.diag(scale**-2))
    mean = covariance @ x.T @ y / NOISE**2
    how: dict[str, Any] = {"rate": 0.03, "damping": 1.0, "burn": 0.5, "prior_scale": scale, "draws": 300}
    found = sample_chains(losses, mean.repeat(64, 1), repeated(x, y), ROWS, 1000, generator(2), **how)
    flat = found.flatten(0, 1)
    assert float(((flat.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.1
    assert float((flat.T.cov() - covariance).norm() / covariance.norm()) < 0.15


def test_steps_fall_and_draws_are_spaced_as_told() -> None:
    """Without noise and with a slope that stays the same the path is a sum that is known."""
    slope = torch.tensor([2.0, -0.5])

    def linear(weights: Tensor, rows: Tensor) -> Tensor:
        return (weights @ slope)[:, None].expand(-1, len(rows))

    how: dict[str, Any] = {"rate": 0.3, "power": 0.75, "offset": 5.0, "temperature": 0.0, "prior_scale": 1e6}
    how |= {"decay": 0.8, "damping": 0.4, "burn": 0.5, "draws": 3}
    found = sample_chains(linear, torch.zeros(1, 2), repeated(torch.zeros(4)), 20, 12, generator(), **how)
    place, second, path = torch.zeros(2), torch.ones(2), []
    for step in range(12):
        second = 0.8 * second + 0.2 * slope**2  # of the mean's gradient
        place = place - 0.3 * (1 + step / 5) ** -0.75 * slope / (0.4 + second.sqrt())
        path.append(place)
    torch.testing.assert_close(found[0], torch.stack([path[8], path[9], path[11]]))
    few = sample_chains(linear, torch.zeros(1, 2), repeated(torch.zeros(4)), 20, 3, generator(), **{**how, "draws": 9})
    torch.testing.assert_close(few[0, :, 0], torch.stack(path[2:3])[:, 0])


def test_dropout_of_every_kind_is_off() -> None:
    def network() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(3, 8), nn.SELU(), nn.AlphaDropout(0.4), nn.Linear(8, 2), nn.Dropout1d(0.2))

    found = fit(data("classes"), Budget(40, 32, 7), generator(), network, Optimisation(1e-2), chains=2, draws=2)
    assert not dropouts(found.posterior.stacked.model)
    members = started([network(), network()])
    without_dropout(members.stacked.model)
    value, part = row_likelihoods(members, 0), data("classes").train
    torch.testing.assert_close(
        value(members.weights, part.x, part.y), value(members.weights, part.x, part.y), rtol=0, atol=0
    )


def test_likelihoods_are_those_of_each_network() -> None:
    held = data("reals")
    nets = [nn.Linear(3, 1), nn.Linear(3, 1)]
    members = started(nets)
    logs = torch.tensor([[0.3], [-0.7]])
    found = row_likelihoods(members, 1)(torch.cat([members.weights, logs], dim=1), held.train.x, held.train.y)
    for k, net in enumerate(nets):
        law = torch.distributions.Normal(net(held.train.x), logs[k].exp())
        torch.testing.assert_close(found[k], -law.log_prob(held.train.y)[:, 0])
    given = data("classes")
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    members = started(nets)
    found = row_likelihoods(members, 0)(members.weights, given.train.x, given.train.y)
    for k, net in enumerate(nets):
        torch.testing.assert_close(
            found[k], nn.functional.cross_entropy(net(given.train.x), given.train.y, reduction="none")
        )


def test_targets_in_a_row_and_pickles() -> None:
    held = data("reals")
    row = Data(held.spec, *(Part(p.x, p.y[:, 0], p.rows) for p in (held.train, held.valid, held.test)))
    draws = []
    for given in (held, row):
        net = nn.Linear(3, 1)
        nn.init.ones_(net.weight)
        nn.init.zeros_(net.bias)
        found = fit(
            given, Budget(60, 32, 7), generator(), lambda net=net: copy.deepcopy(net), Optimisation(1e-2), chains=2
        )
        draws.append(found.samples(held.test))
        torch.testing.assert_close(pickle.loads(pickle.dumps(found)).samples(held.test), draws[-1], rtol=0, atol=0)
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)


def test_variance_is_linear_in_the_temperature() -> None:
    wide, narrow = (chains(t).flatten(0, 1).var(0).sum() for t in (1.0, 0.1))
    assert float(narrow / wide) == pytest.approx(0.1, rel=0.1)


def test_a_mean_loss_needs_the_number_of_rows() -> None:
    x, y, mean, _ = regression()

    def mean_loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return losses(weights, x, y).mean(dim=1)

    start = mean + torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="give n_data"):
        sample_chains(mean_loss, start, repeated(x, y), None, 5, generator(), draws=1)
    how: dict[str, Any] = {"rate": 0.01, "damping": 1.0, "draws": 2}
    one = sample_chains(mean_loss, start, repeated(x, y), ROWS, 5, generator(), **how)
    other = sample_chains(losses, start, repeated(x, y), ROWS, 5, generator(), **how)
    torch.testing.assert_close(one, other)


def test_forces_are_gradients_and_train_through_them() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    stacked = Stacked(net)
    weights = stacked.gather([net, net])[0]
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    energy = energies(stacked, weights, lambda place: place.square().sum(-1))
    found = forces(energy, x.expand(2, 5, 2))
    step = 1e-5
    for k in range(2):
        move = torch.zeros(2, dtype=torch.float64)
        move[k] = step
        numeric = -(energy((x + move).expand(2, 5, 2)) - energy((x - move).expand(2, 5, 2))) / (2 * step)
        torch.testing.assert_close(found[:, :, k], numeric, atol=1e-7, rtol=1e-6)
    target = torch.randn(5, 2, generator=generator(1), dtype=torch.float64)
    value = force_losses(stacked, 0.7)
    leaf = weights[:1].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda w: value(w, x, target), leaf)
    assert value(weights, x, target).shape == (2, 5)
    with pytest.raises(ValueError, match="noise is 0"):
        force_losses(stacked, 0.0)


def test_a_harmonic_particle() -> None:
    run = simulate(
        lambda x: -2 * x, torch.zeros(3, 200, 1), 1500, 0.02, generator(), temperature=0.5, burn=300, every=5
    )
    assert bool(run.stable.all())
    flat = run.positions.flatten(1)
    assert flat.var(dim=1).tolist() == pytest.approx([0.25] * 3, rel=0.1)  # kT / k, and dt k / 2 more
    edges = torch.linspace(-1, 1, 9, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    expected = 2 * middle.square()
    assert float((free_energy(flat.double(), edges) - (expected - expected.mean())).abs().max()) < 0.25
    assert occupancy(flat, 0.0).tolist() == pytest.approx([0.5] * 3, abs=0.05)


def test_paths_by_hand() -> None:
    start = torch.tensor([[[1.0, -1.0]], [[0.5, 2.0]]])
    how: dict[str, Any] = {"temperature": 0.3, "burn": 2, "every": 3}
    run = simulate(lambda x: -3 * x, start, 9, 0.1, generator(4), **how)
    draw, place, path = generator(4), start, []
    for _ in range(9):
        place = place - 0.1 * 3 * place + (2 * 0.3 * 0.1) ** 0.5 * torch.randn(2, 1, 2, generator=draw)
        path.append(place)
    torch.testing.assert_close(run.positions, torch.stack([path[2], path[5], path[8]], dim=1))


def test_losses_of_forces_are_those_of_a_gaussian() -> None:
    stacked = Stacked(nn.Linear(2, 1, bias=False))
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    x, target = torch.randn(4, 2, generator=generator()), torch.randn(4, 2, generator=generator(1))
    found = force_losses(stacked, 0.7, lambda place: 1.5 * place.square().sum(-1))(weights, x, target)
    force = -weights[:, None] - 3 * x  # of the linear energy, and of the known one
    law = torch.distributions.Normal(force, 0.7)
    expected = (law.log_prob(force) - law.log_prob(target)).sum(dim=2)
    torch.testing.assert_close(found, expected)


def test_explosions_are_counted() -> None:
    def force(x: Tensor) -> Tensor:
        return torch.stack([-x[0], 500 * x[1] ** 3 + 50])

    run = simulate(force, torch.zeros(2, 4, 1), 50, 0.1, generator(), reach=10.0)
    assert run.stable.tolist() == [True, False]
    assert bool(run.positions.isfinite().all())
    values = torch.randn(2, 8, 3, generator=generator())
    stable = torch.ones(2, 8, dtype=torch.bool)
    stable[0, :3] = False
    found = observe(values, stable)
    assert (found.exploded, found.total) == (3, 16)
    kept = values[stable].double()
    torch.testing.assert_close(found.mean, kept.mean(0))
    torch.testing.assert_close(found.low, torch.quantile(kept, 0.025, dim=0))
    lonely = torch.zeros(2, 8, dtype=torch.bool)
    lonely[0, 0] = True
    with pytest.raises(ValueError, match="15 of 16 simulations exploded"):
        observe(values, lonely)


def test_chains_apart_are_seen_and_a_runs_own_error_told() -> None:
    values = torch.randn(4, 50, 2, generator=generator())
    values[0, :, 1] += 5
    halves = torch.stack([values + 0.2, values - 0.2])
    found = observe(values, torch.ones(4, 50, dtype=torch.bool), halves=halves)
    assert float(found.rhat[0]) < 1.05 < 1.3 < float(found.rhat[1])
    assert float(found.between[1]) > 5 * float(found.between[0])
    torch.testing.assert_close(found.finite, torch.full((2,), 0.04, dtype=torch.float64))
    few = observe(values[:, :3], torch.ones(4, 3, dtype=torch.bool))
    assert math.isnan(float(few.rhat[0]))


def test_passages() -> None:
    path = torch.tensor([-1.0, -0.2, 0.1, 1.0, 1.0, -1.0, -1.0, 1.0])
    assert mean_passage(path[None, :, None], -0.5, 0.5).tolist() == [2.5]  # 3 and 2 steps
    assert math.isnan(float(mean_passage(torch.zeros(1, 5, 1), -0.5, 0.5)))


def test_the_surface_has_its_known_minima() -> None:
    minima = torch.tensor([[-0.558, 1.442], [0.623, 0.028], [-0.050, 0.467]], dtype=torch.float64)
    assert mueller_brown(minima).tolist() == pytest.approx([-146.70, -108.17, -80.77], abs=0.01)
    assert float(forces(mueller_brown, minima).abs().max()) < 2


def data(task: str) -> Data:
    def part(n: int, seed: int) -> Part:
        x = torch.randn(n, 3, generator=generator(seed))
        value = x[:, :1] + 0.3 * torch.randn(n, 1, generator=generator(seed + 10))
        return Part(x, value if task == "reals" else (value[:, 0] > 0).long(), torch.arange(n))

    return Data(
        Spec("table", task, (3,), 2 if task == "classes" else 1, numeric=3), part(200, 0), part(60, 1), part(60, 2)
    )


@pytest.mark.parametrize("task", ["classes", "reals"])
def test_the_learner_learns(task: str) -> None:
    held, outputs = data(task), 2 if task == "classes" else 1
    count = 0

    def network() -> nn.Module:
        nonlocal count
        count += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(count)
            return nn.Sequential(
                nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, outputs)
            )

    how = (Budget(400, 32, 7), generator(), network, Optimisation(1e-2))
    found = fit(held, *how, chains=4, draws=4, rate=1e-3, temperature=1.0)
    assert found.passes == 400 * 32
    draws = found.samples(held.test)
    assert draws.shape == (16, 60, outputs)
    assert 0.9 < found.report()["rhat-median"] <= found.report()["rhat-largest"]
    if task == "classes":
        assert float((found.predict(held.test).argmax(1) == held.test.y).float().mean()) > 0.8
    else:
        assert 0.2 < float(found.noise(held.test).mean()) < 0.5
        assert float((found.predict(held.test) - held.test.y).std()) < 0.5


def test_bad_settings_are_named() -> None:
    how = (data("classes"), Budget(20, 16, 4), generator(), lambda: nn.Linear(3, 2), Optimisation())
    for settings, message in (
        ({"rate": 0.0}, "rate is 0.0"),
        ({"power": 0.3}, "power is 0.3"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"chains": 0}, "chains is 0"),
        ({"chains_budget": "half"}, "chains_budget is 'half'"),
        ({"start": 1.0}, "start is 1.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            fit(*how, **settings)
    with pytest.raises(ValueError, match="diverged at rate"):
        fit(*how, rate=1e300, temperature=1.0)
