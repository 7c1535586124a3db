"""Benign oscillation: the mechanism's growth, the world's gradient, sharpness against the whole Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from probatum.data.open import open_dataset
from probatum.techniques.probe.benign_oscillation import (
    World,
    benign_oscillation,
    run_world,
    sharpness,
    two_weights,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("strong_rate", [1.05, 1.1, 1.2])
def test_growth_of_the_weak_weight_is_as_predicted(strong_rate: float) -> None:
    found = two_weights(strong_rate, 0.02 * strong_rate, steps=3000)
    assert found["sum of residuals"] > 0, "bounded swinging leaves residuals positive on average"
    assert found["measured growth"] > 0
    assert found["measured growth"] == pytest.approx(found["predicted growth"], rel=0.1)


def test_without_residuals_nothing_grows() -> None:
    found = two_weights(1.1, 0.02, steps=1000, strong=1.0, weak=0.0 + 1e-300)
    assert found["sum of squared residuals"] == 0
    assert found["measured growth"] == 0
    calm = two_weights(0.5, 0.01, steps=3000)
    swinging = two_weights(1.2, 0.01, steps=3000)
    assert swinging["measured growth"] > 20 * calm["measured growth"]


def test_divergence_is_told_with_its_step() -> None:
    with pytest.raises(OverflowError, match="diverged at step"):
        two_weights(4.0, 0.1, steps=1000)
    outcome = run_world(World(), 10.0, 2000, np.random.default_rng(0))
    assert outcome.diverged is not None
    assert 0 < outcome.diverged < 200
    assert len(outcome.residuals) == outcome.diverged


def test_the_world_is_as_described() -> None:
    x, y = World(rows=400, noise=0.2, share=0.7).draw(np.random.default_rng(0))
    assert set(y) == {1.0, -1.0}
    np.testing.assert_allclose(np.linalg.norm(x[:, 0], axis=1), 0.3)
    np.testing.assert_allclose(np.linalg.norm(x[:, 2], axis=1), 0.2)
    assert np.all(x[:, 2, :2] == 0)
    assert np.mean(x[:, 1, 0] != 0) == pytest.approx(0.7, abs=0.07)


def test_one_step_in_the_world_is_the_gradient() -> None:
    world, seed = World(size=5, rows=1, share=1.0), 3
    before = run_world(world, 1e-9, 1, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    x, y = world.draw(rng)
    weights = torch.tensor(0.05 * rng.standard_normal((2, 8, 5)), requires_grad=True)
    active = (weights @ torch.tensor(x[0]).T).relu().square().sum(dim=(1, 2)) / 8
    loss = 0.5 * (y[0] - active[0] + active[1]) ** 2
    loss.backward()
    after = (weights - 0.3 * weights.grad).detach().numpy()
    found = run_world(world, 0.3, 1, np.random.default_rng(seed))
    sees = weights.detach().numpy()[0, :, 1] > 0
    expected = np.log(np.abs(after[0, sees, 1]).mean() / weights.detach().numpy()[0, sees, 1].mean())
    assert found.weak_log_growth == pytest.approx(expected, rel=1e-6)
    assert before.weak_log_growth == pytest.approx(0, abs=1e-8)
    margin = (np.maximum(0.3 * after[0, :, 1], 0) ** 2 - np.maximum(0.3 * after[1, :, 1], 0) ** 2).mean()
    assert found.margins[0] == pytest.approx(margin)


def test_sharpness_is_the_largest_eigenvalue() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    values = [p.detach().clone() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]

    def loss_at(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([v.numel() for v in values])
        state = {n: p.view_as(v) for n, p, v in zip(names, parts, values, strict=True)}
        return (torch.func.functional_call(net, state, (x,)) - y).square().mean()

    hessian = torch.autograd.functional.hessian(loss_at, torch.cat([v.flatten() for v in values]))
    expected = torch.linalg.eigvalsh(hessian).abs().max()
    found = sharpness(
        lambda: (net(x) - y).square().mean(), list(net.parameters()), torch.Generator().manual_seed(0), 200
    )
    assert found == pytest.approx(float(expected), rel=1e-3)
    linear = nn.Linear(2, 1, bias=False).double()
    rows = torch.diag(torch.tensor([3.0, 1.0])).double()
    found = sharpness(lambda: 0.5 * linear(rows).square().sum(), [linear.weight], torch.Generator().manual_seed(0), 50)
    assert found == pytest.approx(9.0)


def test_on_real_networks() -> None:
    data = open_dataset("iris").prepare(0)

    def factory() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))

    rates = [1e-3, 0.1, 1e5]
    found = benign_oscillation(factory, data, torch.Generator().manual_seed(0), rates=rates, steps=120)
    assert found["largest stable rate"] == 0.1
    assert "rate 100000: diverged at step" in found
    assert found["rate 0.1: sign changes"] > found["rate 0.001: sign changes"]
    assert found["rate 0.1: test accuracy"] > 0.7
    again = benign_oscillation(factory, data, torch.Generator().manual_seed(0), rates=rates, steps=120)
    assert again == found


def test_misuse() -> None:
    data = open_dataset("iris").prepare(0)
    for settings, told in (
        ({"rates": []}, "rates are"),
        ({"rates": [-0.1]}, "rates are"),
        ({"steps": 1}, "steps is 1"),
        ({"decay": 1.0}, "decay is 1.0"),
    ):
        with pytest.raises(ValueError, match=told):
            benign_oscillation(lambda: nn.Linear(4, 3), data, torch.Generator(), **settings)
    with pytest.raises(ValueError, match="strong_rate > weak_rate"):
        two_weights(0.1, 0.2, 10)
    with pytest.raises(ValueError, match="size is 2"):
        World(size=2)
    with pytest.raises(ValueError, match="rate is 0"):
        run_world(World(), 0.0, 10, np.random.default_rng(0))
