"""Gradient noise against its formula (arXiv:1511.06807, eq. 1) and against plain optimizers."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Data
from probatum.techniques.method import gradient_noise
from probatum.techniques.method.gradient_noise import GradientNoise, add_noise, noise_std

pytestmark = pytest.mark.fast

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: tuple[MakeOptimizer, ...] = (
    lambda net: torch.optim.SGD(net.parameters(), lr=0.05),
    lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    lambda net: torch.optim.Adam(net.parameters(), lr=0.01),
)


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=own(i)))
    return net, torch.randn(16, 5, generator=own(8)), torch.randint(2, (16,), generator=own(9))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("t", [0, 1, 99])
def test_variance_follows_the_schedule(t: int) -> None:
    parameter = nn.Parameter(torch.zeros(1_000_000))
    parameter.grad = torch.full_like(parameter, 2.0)
    noise = GradientNoise(0.3, generator=own())
    noise.t = t
    noise.perturb(torch.optim.SGD([parameter], lr=0.1))
    added = parameter.grad - 2.0
    assert float(added.var()) == pytest.approx(0.3 / (1 + t) ** 0.55, rel=0.01)
    assert abs(float(added.mean())) < 4 * noise_std(t, 0.3) / 1000
    assert noise.t == t + 1


def test_gamma_zero_is_constant_noise() -> None:
    assert noise_std(12345, 0.25, 0.0) == 0.5


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_no_noise_is_the_plain_optimizer_bit_for_bit(make: MakeOptimizer) -> None:
    net, x, y = problem()
    other = copy.deepcopy(net)
    plain, noisy = make(net), make(other)
    GradientNoise(0.0).attach(noisy)
    for _ in range(5):
        step(net, plain, x, y)
        step(other, noisy, x, y)
    assert torch.equal(weights(net), weights(other))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_noise_enters_the_gradient_that_the_optimizer_sees(make: MakeOptimizer) -> None:
    net, x, y = problem()
    other = copy.deepcopy(net)
    plain, noisy = make(net), make(other)
    GradientNoise(0.1, generator=own(3)).attach(noisy)
    stream = own(3)
    for t in range(4):
        plain.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        for parameter in net.parameters():
            parameter.grad += (0.1 / (1 + t) ** 0.55) ** 0.5 * torch.randn(parameter.shape, generator=stream)
        plain.step()
        step(other, noisy, x, y)
    torch.testing.assert_close(weights(net), weights(other))


def test_save_and_resume_give_the_same_trajectory() -> None:
    net, x, y = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    noise = GradientNoise(0.3, generator=own(5)).attach(optimizer)
    for _ in range(3):
        step(net, optimizer, x, y)
    again, state = copy.deepcopy(net), copy.deepcopy(noise.state_dict())
    second = torch.optim.SGD(again.parameters(), lr=0.05)
    resumed = GradientNoise(0.3, generator=own(77)).attach(second)
    resumed.load_state_dict(state)
    for _ in range(3):
        step(net, optimizer, x, y)
        step(again, second, x, y)
    assert resumed.t == 6
    assert torch.equal(weights(net), weights(again))


def test_frozen_parameters_and_the_global_stream_stay_untouched() -> None:
    net, x, y = problem()
    net[0].weight.requires_grad_(False)
    before, state = net[0].weight.clone(), torch.get_rng_state()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    GradientNoise(1.0).attach(optimizer)
    step(net, optimizer, x, y)
    assert torch.equal(net[0].weight, before)
    assert net[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_accumulated_gradients_get_noise_once() -> None:
    net, x, y = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    noise = GradientNoise(0.3).attach(optimizer)
    for half in (slice(0, 8), slice(8, 16)):
        nn.functional.cross_entropy(net(x[half]), y[half]).backward()
    optimizer.step()
    assert noise.t == 1


def test_noise_comes_after_unscaling() -> None:
    net, x, y = problem()
    other = copy.deepcopy(net)
    plain, scaled = (torch.optim.SGD(model.parameters(), lr=0.05) for model in (net, other))
    GradientNoise(0.1, generator=own(2)).attach(plain)
    GradientNoise(0.1, generator=own(2)).attach(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step(net, plain, x, y)
    scaler.scale(nn.functional.cross_entropy(other(x), y)).backward()
    scaler.step(scaled)
    torch.testing.assert_close(weights(net), weights(other))


FUSED: tuple[MakeOptimizer, ...] = (
    lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, fused=True),
    lambda net: torch.optim.AdamW(net.parameters(), lr=0.01, fused=True),
)


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("make", FUSED)
def test_optimizers_that_unscale_in_their_own_step_get_noise_on_the_true_scale(
    make: MakeOptimizer, unscaled: bool
) -> None:
    net, x, y = problem()
    other = copy.deepcopy(net)
    plain, scaled = make(net), make(other)
    GradientNoise(0.1, generator=own(2)).attach(plain)
    noise = GradientNoise(0.1, generator=own(2)).attach(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        step(net, plain, x, y)
        scaled.zero_grad()
        scaler.scale(nn.functional.cross_entropy(other(x), y)).backward()
        if unscaled:
            scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
    torch.testing.assert_close(weights(net), weights(other))
    scaled.zero_grad()
    scaler.scale(nn.functional.cross_entropy(other(x * float("inf")), y)).backward()
    scaler.step(scaled)
    assert noise.t == 3  # the fourth was skipped
    torch.testing.assert_close(weights(net), weights(other))


def test_real_and_imaginary_parts_get_noise() -> None:
    gradient = torch.zeros(200_000, dtype=torch.complex64)
    add_noise([gradient], 0.5, own())
    assert float(gradient.real.std()) == pytest.approx(0.5, rel=0.01)
    assert float(gradient.imag.std()) == pytest.approx(0.5, rel=0.01)


def test_sparse_gradients_stay_sparse() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    table(torch.tensor([3, 3, 7])).sum().backward()
    add_noise([table.weight.grad], 0.5, own())
    gradient = table.weight.grad.coalesce()
    assert gradient.indices().tolist() == [[3, 7]]
    expected = torch.tensor([[2.0], [1.0]]) + 0.5 * torch.randn(2, 4, generator=own())
    torch.testing.assert_close(gradient.values(), expected)


def test_the_default_stream_is_seed_nought() -> None:
    parameter = nn.Parameter(torch.zeros(50))
    parameter.grad = torch.zeros(50)
    GradientNoise(1.0).perturb(torch.optim.SGD([parameter], lr=0.1))
    assert torch.equal(parameter.grad, torch.randn(50, generator=own(0)))


def test_detached_noise_is_gone() -> None:
    net, x, y = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    noise = GradientNoise(0.3).attach(optimizer)
    with pytest.raises(ValueError, match="already attached"):
        noise.attach(optimizer)
    noise.detach()
    step(net, optimizer, x, y)
    assert noise.t == 0


@pytest.mark.parametrize(("name", "settings"), [("eta", {"eta": -0.1}), ("gamma", {"gamma": -1.0})])
def test_negative_settings(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{name} is {settings[name]}; it must be at least 0"):
        GradientNoise(**settings)


def test_step_before_backward_and_step_with_closure() -> None:
    net, _, _ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    GradientNoise(0.3).attach(optimizer)
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\) before"):
        optimizer.step()
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)


@pytest.fixture(scope="module")
def cancer() -> Data:
    return open_dataset("breast-cancer").prepare(0)


def test_on_the_bench_neutral_equals_the_baseline(cancer: Data) -> None:
    training = Training(epochs=2)
    plain = weights(fit(None, cancer, 3, training=training).model)
    assert torch.equal(plain, weights(fit("gradient-noise(eta=0.0)", cancer, 3, training=training).model))
    assert not torch.equal(plain, weights(fit("gradient-noise(eta=0.01)", cancer, 3, training=training).model))


def test_on_the_bench_noise_comes_after_clipping(cancer: Data) -> None:
    run = fit("gradient-noise(eta=1.0, gamma=0.0)", cancer, 3, training=Training(epochs=1, clip=1e-3))
    gradient = torch.cat([p.grad.flatten() for p in run.model.parameters()])
    assert float(gradient.std()) == pytest.approx(1.0, rel=0.02)


def test_example() -> None:
    assert doctest.testmod(gradient_noise).failed == 0
