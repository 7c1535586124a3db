"""Benign oscillation: the mechanism's growth, the world's gradient, sharpness against the whole Hessian."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from probatum.data.open import open_dataset
from probatum.spec import Data, Part, Spec
from probatum.techniques.probe.benign_oscillation import (
    Outcome,
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


def test_the_end_of_a_run_in_the_world_is_at_a_tenth_of_the_rate() -> None:
    """Five steps of which two are slow, beside torch's gradients."""
    world, seed, width = World(size=5, rows=4, noise=0.4), 3, 3
    found = run_world(world, 0.8, 5, np.random.default_rng(seed), width=width, start=0.3, decay=0.4)
    rng = np.random.default_rng(seed)
    x, y = world.draw(rng)
    weights = torch.tensor(0.3 * rng.standard_normal((2, width, 5)), requires_grad=True)
    residuals = []
    for step in range(5):
        row = int(rng.integers(4))
        active = (weights @ torch.tensor(x[row]).T).relu().square().sum(dim=(1, 2)) / width
        gap = y[row] - active[0] + active[1]
        residuals.append(float(y[row] * gap.detach()))
        (gradient,) = torch.autograd.grad(0.5 * gap**2, weights)
        weights = (weights - (0.8 if step < 3 else 0.08) * gradient).detach().requires_grad_()
    np.testing.assert_allclose(found.residuals, residuals)
    seen = 0.3 * weights.detach().numpy()[:, :, 1]
    told = [(np.maximum(s * seen[0], 0) ** 2 - np.maximum(s * seen[1], 0) ** 2).mean() * s for s in (1, -1)]
    np.testing.assert_allclose(found.margins, told)
    assert found.sign_changes() == np.mean(np.sign(residuals[1:]) != np.sign(residuals[:-1]))
    with pytest.raises(ValueError, match=r"decay 1\.0"):
        run_world(world, 0.1, 5, np.random.default_rng(0), decay=1.0)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))


def reals(column: bool) -> Data:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    y = x[:, :1] - 0.5 * x[:, 1:2]
    part = Part(x, y if column else y[:, 0], torch.arange(40))
    return Data(Spec("table", "reals", (3,), 1, numeric=3), part, part, part)


def test_targets_without_a_column_are_the_same_targets() -> None:
    found = [
        benign_oscillation(plain, reals(column), torch.Generator().manual_seed(0), rates=[0.1], steps=60)
        for column in (True, False)
    ]
    assert found[0] == found[1]
    assert found[0]["rate 0.1: test rmse"] < 0.3
    data = open_dataset("iris").prepare(0)
    tall = replace(
        data, train=replace(data.train, y=data.train.y[:, None]), test=replace(data.test, y=data.test.y[:, None])
    )
    both = [
        benign_oscillation(lambda: nn.Linear(4, 3), part, torch.Generator().manual_seed(0), rates=[0.1], steps=20)
        for part in (data, tall)
    ]
    assert set(both[0]) == set(both[1])
    bad = replace(data, train=replace(data.train, y=torch.full_like(data.train.y, 3)))
    with pytest.raises(ValueError, match="the label 3"):
        benign_oscillation(lambda: nn.Linear(4, 3), bad, torch.Generator(), rates=[0.1], steps=4)


def test_the_run_on_a_network_step_by_step() -> None:
    """Plain SGD with the fall at the end, residual signs after each step, and the edge of stability, all anew."""
    data, own = reals(True), torch.Generator().manual_seed(5)
    found = benign_oscillation(plain, data, own, rates=[0.3], steps=10, batch_size=8, decay=0.3, watched=16)
    draws = torch.Generator().manual_seed(5)
    torch.randint(2**62, (), generator=draws)  # the seed of what the network itself draws
    net, x, y = plain(), data.train.x, data.train.y
    signs = []
    for step in range(10):
        if step == 7:
            parameters = list(net.parameters())
            value = sharpness(lambda: 0.5 * (net(x[:16]) - y[:16]).square().mean(), parameters, draws)
        index = torch.randint(40, (8,), generator=draws)
        net.zero_grad()
        (0.5 * (net(x[index]) - y[index]).square().mean()).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= (0.3 if step < 7 else 0.03) * p.grad
            if step < 7:
                signs.append((y[:16] - net(x[:16])).sign())
    with torch.no_grad():
        error = float((net(x) - y).square().mean())
        assert found["rate 0.3: train error"] == pytest.approx(
            float((net(x[:16]) - y[:16]).square().mean()) / 2, rel=1e-4
        )
    assert found["rate 0.3: test rmse"] == pytest.approx(error**0.5, rel=1e-4)
    changes = np.mean([float((a != b).float().mean()) for a, b in itertools.pairwise(signs)])
    assert found["rate 0.3: sign changes"] == pytest.approx(changes)
    assert found["rate 0.3: sharpness x rate / 2"] == pytest.approx(value * 0.15, rel=1e-3)


def test_frozen_parts_stay_and_are_not_looked_at() -> None:
    nets: list[nn.Module] = []

    class Net(nn.Sequential):
        def __deepcopy__(self, memo: dict) -> nn.Module:
            nets.append(net())
            return nets[-1]

    def net() -> nn.Module:
        torch.manual_seed(0)
        found = Net(nn.BatchNorm1d(3), nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
        found[0].eval()
        found[1].requires_grad_(False)
        return found

    told = benign_oscillation(net, reals(True), torch.Generator().manual_seed(0), rates=[0.1], steps=10)
    assert told["rate 0.1: sharpness x rate / 2"] > 0
    before, after = net().state_dict(), nets[0].state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias", "3.weight", "3.bias"}
    with pytest.raises(ValueError, match="all weights of Linear are frozen"):
        benign_oscillation(lambda: nn.Linear(3, 1).requires_grad_(False), reals(True), torch.Generator(), rates=[0.1])


def test_sharpness_of_attention_and_of_what_is_not_curved() -> None:
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 4, 8)
    found = sharpness(lambda: layer(x).square().mean(), list(layer.parameters()), torch.Generator().manual_seed(0), 5)
    assert np.isfinite(found)
    assert found != 0
    weight = torch.ones(3, requires_grad=True)
    assert sharpness(weight.sum, [weight], torch.Generator()) == 0.0
    with pytest.raises(ValueError, match="steps is 0"):
        sharpness(weight.sum, [weight], torch.Generator(), 0)


def test_two_weights_by_hand() -> None:
    found = two_weights(0.5, 0.2, 2, strong=0.5, weak=0.1)
    r0 = 1 - 0.25 - 0.01
    u, v = 0.5 * (1 + 0.5 * r0), 0.1 * (1 + 0.2 * r0)
    r1 = 1 - u * u - v * v
    u, grown = u * (1 + 0.5 * r1), v * (1 + 0.2 * r1) / 0.1
    assert found["sum of residuals"] == pytest.approx(r0 + r1)
    assert found["sum of squared residuals"] == pytest.approx(r0**2 + r1**2)
    assert found["measured growth"] == pytest.approx(np.log(grown))
    expected = 0.1 * 0.3 * (r0**2 + r1**2) + 0.4 * np.log(u / 0.5)
    assert found["predicted growth"] == pytest.approx(expected)


def test_what_a_network_is_told_by_at_a_rate_that_does_nothing() -> None:
    data = open_dataset("iris").prepare(0)
    torch.manual_seed(1)
    net = nn.Linear(4, 3)
    found = benign_oscillation(lambda: net, data, torch.Generator().manual_seed(0), [1e-12], steps=4, watched=10)
    with torch.no_grad():
        away = net(data.train.x[:10]) - torch.eye(3)[data.train.y[:10]]
        accuracy = float((net(data.test.x).argmax(dim=1) == data.test.y).double().mean())
    assert found["rate 1e-12: train error"] == pytest.approx(float(away.square().sum()) / 20, rel=1e-5)
    assert found["rate 1e-12: test accuracy"] == pytest.approx(accuracy)
    assert found["rate 1e-12: sign changes"] == 0


def test_tokens_are_targets_at_every_place() -> None:
    ids = torch.randint(1, 5, (20, 4), generator=torch.Generator().manual_seed(0))
    part = Part(ids, ids.roll(-1, dims=1), torch.arange(20))
    data = Data(Spec("text", "next-token", (4,), 5, vocabulary=5), part, part, part)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5))
    found = benign_oscillation(lambda: net, data, torch.Generator().manual_seed(0), [1e-12], steps=4, watched=20)
    with torch.no_grad():
        away = net(ids) - torch.eye(5)[part.y]
        accuracy = float((net(ids).argmax(dim=2) == part.y).double().mean())
    assert found["rate 1e-12: train error"] == pytest.approx(float(away.square().sum()) / 40, rel=1e-5)
    assert found["rate 1e-12: test accuracy"] == pytest.approx(accuracy)


def test_sign_changes_by_hand() -> None:
    def changes(*residuals: float) -> float:
        return Outcome((), None, np.array(residuals), 0.0).sign_changes()

    assert changes(1.0, -1.0) == 1.0
    assert changes(1.0, -1.0, -2.0, 3.0, 4.0) == 0.5
    assert changes(1.0) == changes() == 0.0
    assert World(rows=4).draw(np.random.default_rng(0))[1].tolist() == [1.0, -1.0, 1.0, -1.0]


def test_targets_far_from_nought_are_no_divergence() -> None:
    data = reals(True)
    far = replace(data.train, y=data.train.y + 1e4)
    found = benign_oscillation(
        lambda: nn.Linear(3, 1),
        Data(data.spec, far, far, far),
        torch.Generator().manual_seed(0),
        [0.1, 10.0],
        steps=300,
    )
    assert found["rate 0.1: test rmse"] < 1
    assert found["largest stable rate"] == 0.1
    assert found["rate 10: diverged at step"] > 0


def test_the_last_step_of_all_can_diverge() -> None:
    outcome = run_world(World(), 1e200, 1, np.random.default_rng(0))
    assert (outcome.diverged, outcome.margins) == (1, ())
    assert len(outcome.residuals) == 1
    with pytest.raises(OverflowError, match="diverged at step 1;"):
        two_weights(1e9, 1.0, 1)


def test_two_weights_at_nought() -> None:
    found = two_weights(2.0, 1.0, 1, strong=1.0, weak=1.0)  # the weak weight is thrown to 0, the strong one to -1
    assert found["measured growth"] == -np.inf
    assert found["predicted growth"] == 0.5
    for weights in ({"strong": 0.0}, {"weak": 0.0}):
        with pytest.raises(ValueError, match="a weight of 0 never grows"):
            two_weights(2.0, 1.0, 1, **weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sharpness_in_half_precision(dtype: torch.dtype) -> None:
    weight = torch.ones(200_000, dtype=dtype, requires_grad=True)  # of which the squared length is beyond float16
    found = sharpness(lambda: 1.5 * weight.float().square().sum(), [weight], torch.Generator().manual_seed(0))
    assert found == pytest.approx(3.0, rel=1e-2)


def test_sharpness_of_what_is_not_finite_is_not_nought() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert np.isnan(sharpness(lambda: weight.square().sum() * float("nan"), [weight], torch.Generator()))


def test_tokens_that_are_missing_or_too_many_are_told() -> None:
    ids = torch.randint(1, 5, (4, 4), generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5))
    for y, told in ((ids.where(ids > 1, -100), "the label -100"), (ids[:, :, None], r"\(4, 4, 1\); expected \(4, 4\)")):
        part = Part(ids, y, torch.arange(4))
        data = Data(Spec("text", "next-token", (4,), 5, vocabulary=5), part, part, part)
        with pytest.raises(ValueError, match=told):
            benign_oscillation(lambda: net, data, torch.Generator(), [0.1], steps=2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [2, 50])
def test_divergence_is_told_by_its_step_alone(steps: int) -> None:
    outcome = run_world(World(), 1e200, steps, np.random.default_rng(0))
    assert outcome.diverged == 1
    assert len(outcome.residuals) == 1


@pytest.mark.parametrize("curvature", [1e20, 1e-28])
def test_sharpness_beyond_the_squares_of_single_precision(curvature: float) -> None:
    weight = torch.ones(3, requires_grad=True)
    found = sharpness(lambda: 0.5 * curvature * weight.square().sum(), [weight], torch.Generator().manual_seed(0))
    assert found == pytest.approx(curvature, rel=1e-4, abs=0)


def test_weights_that_are_no_numbers_are_told() -> None:
    for weights in ({"strong": np.nan}, {"weak": np.nan}):
        with pytest.raises(ValueError, match="nan"):
            two_weights(2.0, 1.0, 1, **weights)


def test_a_network_that_leaves_all_bounds_in_the_last_step_diverges() -> None:
    found = benign_oscillation(
        lambda: nn.Linear(3, 1), reals(True), torch.Generator().manual_seed(0), [100.0], steps=2, decay=0.0
    )
    assert found == {"rate 100: diverged at step": 2.0, "largest stable rate": 0.0}
