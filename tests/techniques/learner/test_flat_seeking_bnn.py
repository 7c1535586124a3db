"""Flat seeking against closed forms, against torch's optimizers at radius 0, and its passes' masks and statistics."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.posterior.approximations import batch_losses, fit_mean_field, fit_sgld, fit_swag, plain_gradient
from probatum.numerics.posterior.ensembles import Members, class_losses, train_members
from probatum.numerics.posterior.predictors import started
from probatum.numerics.posterior.stacked import Stacked
from probatum.numerics.tensors.draws import own_draws
from probatum.spec import Budget, Data, Optimisation, Part, Spec
from probatum.techniques.learner import flat_seeking_bnn
from probatum.techniques.learner.flat_seeking_bnn import (
    METHODS,
    FlatSeeking,
    ascended,
    fit,
    flat_gradient,
    worst_nearby,
)

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = 120, seed: int = 0) -> Part:
    x = torch.randn(n, 4, generator=generator(seed))
    return Part(x, (x[:, 0] + 0.3 * x[:, 1] > 0).long(), torch.arange(n))


def net(dropout: float = 0.3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def test_ascent_of_a_quadratic_in_closed_form() -> None:
    matrix = torch.diag(torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64))
    w = torch.randn(2, 3, generator=generator(), dtype=torch.float64)
    slope = plain_gradient(lambda v: 0.5 * ((v @ matrix) * v).sum(1), w)
    expected = w + 0.2 * (w @ matrix) / (w @ matrix).norm(dim=1, keepdim=True)
    torch.testing.assert_close(ascended(w, slope, 0.2), expected, atol=1e-6, rtol=0)


def test_the_gradient_is_that_of_the_ascended_point() -> None:
    stacked = Stacked(nn.Linear(3, 1, bias=False).double())
    members = Members(stacked, torch.randn(2, 3, generator=generator(), dtype=torch.float64), {})

    def losses(v: Tensor) -> Tensor:
        return v.pow(4).sum(1)

    for rho in (0.3, 1.0):
        found = flat_gradient(members, rho)(losses, members.weights)
        slope = 4 * members.weights**3
        at = members.weights + rho * slope / slope.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found, 4 * at**3)
    calls: list[Tensor] = []
    plain = flat_gradient(members, 0.0)(lambda v: (calls.append(v), losses(v))[1], members.weights)
    assert len(calls) == 1
    torch.testing.assert_close(plain, 4 * members.weights**3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_radius_zero_is_the_plain_optimizer_bit_for_bit(optimizer: str) -> None:
    part, models = rows(), [net(), net()]
    make: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    }
    optimizers = [make[optimizer](model) for model in models]
    flat = FlatSeeking(optimizers[1], 0.0, models[1])
    with torch.random.fork_rng(devices=[]):
        for step in range(5):
            index = torch.arange(20 * step, 20 * step + 20)
            torch.manual_seed(step)
            optimizers[0].zero_grad(set_to_none=True)
            F.cross_entropy(models[0](part.x[index]), part.y[index]).backward()
            optimizers[0].step()
            torch.manual_seed(step)

            def closure(index: Tensor = index) -> Tensor:
                loss = F.cross_entropy(models[1](part.x[index]), part.y[index])
                loss.backward()
                return loss

            flat.step(closure)
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("trainer", ["members", "mean-field", "swag", "sgld"])
def test_radius_zero_is_the_plain_trainer_bit_for_bit(trainer: str) -> None:
    results = []
    for flat in (False, True):
        members, part = started([net(), net()]), rows()
        how = {"gradient": flat_gradient(members, 0.0)} if flat else {"gradient": plain_gradient}
        with own_draws(generator(5)):
            if trainer == "members":
                found = train_members(members, part, None, 9, 32, generator(), Optimisation(1e-2), class_losses, **how)
                results.append(found.weights)
                continue
            one = (started([net()]), part, 9, 32, generator())
            if trainer == "mean-field":
                posterior = fit_mean_field(*one, Optimisation(1e-2), class_losses, draws=3, **how)
            elif trainer == "swag":
                posterior = fit_swag(*one, class_losses, draws=3, rate=0.1, **how)
            else:
                posterior = fit_sgld(*one, class_losses, draws=3, rate=0.01, **how)
            results.append(posterior.weights)
    assert torch.equal(*results)


def test_both_passes_have_one_mask_and_only_the_first_gathers_statistics() -> None:
    model, part = net(0.5), rows(30)
    streams: list[Tensor] = []
    handle = model[3].register_forward_pre_hook(lambda _m, _inputs: streams.append(torch.get_rng_state()))
    once = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        once(part.x)
        streams.clear()
        torch.manual_seed(0)

        def closure() -> Tensor:
            loss = F.cross_entropy(model(part.x), part.y)
            loss.backward()
            return loss

        before = [p.detach().clone() for p in model.parameters()]
        FlatSeeking(torch.optim.SGD(model.parameters(), lr=0.0), 0.1, model).step(closure)
    handle.remove()
    assert torch.equal(*streams)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)  # exactly as it was
    assert torch.equal(once[1].running_mean, model[1].running_mean)
    assert int(model[1].num_batches_tracked) == 1


def test_a_step_is_the_gradient_at_the_ascended_point_by_hand() -> None:
    a, b = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([[0.5]]))
    unused = nn.Parameter(torch.ones(1))
    flat = FlatSeeking(torch.optim.SGD([a, b, unused], lr=0.1), 0.3)

    def closure() -> Tensor:
        loss = (a**4).sum() + (b**4).sum()
        loss.backward()
        return loss

    loss = flat.step(closure)
    w = torch.tensor([1.0, -2.0, 0.5])
    slope = 4 * w**3  # 4, -32, 0.5
    there = w + 0.3 * slope / torch.tensor(4.0**2 + 32.0**2 + 0.5**2).sqrt()
    torch.testing.assert_close(torch.cat([a, b.flatten()]).detach(), w - 0.1 * 4 * there**3)
    assert loss.item() == pytest.approx(1 + 16 + 0.0625)  # of the first pass
    assert not loss.requires_grad
    assert unused.item() == 1


def test_what_the_loss_does_not_reach_is_not_stepped() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    flat = FlatSeeking(torch.optim.SGD([a, b], lr=0.1, weight_decay=0.5), 0.1)

    def closure(used: list[Tensor]) -> Tensor:
        loss = torch.cat(used).square().sum()
        loss.backward()
        return loss

    flat.step(lambda: closure([a, b]))
    held = b.item()
    flat.step(lambda: closure([a]))
    assert b.item() == held < 1  # zeros for a gradient would have let the decay act


def test_a_penalty_is_added_behind_both_passes() -> None:
    w = nn.Parameter(torch.tensor([2.0]))
    calls: list[float] = []

    def closure() -> Tensor:
        loss = w.square().sum()
        loss.backward()
        return loss

    def penalty() -> None:
        calls.append(float(w.detach()))
        w.grad += 7.0

    FlatSeeking(torch.optim.SGD([w], lr=0.1), 0.5, penalty=penalty).step(closure)
    assert calls == [2.0]  # at the weights themselves
    assert w.item() == pytest.approx(2 - 0.1 * (2 * 2.5 + 7))


def test_an_exception_in_the_second_pass_leaves_nothing_moved() -> None:
    model, part, calls = net(0.5), rows(30), 0
    before = [p.detach().clone() for p in model.parameters()]

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # having moved the statistics, and drawn fewer numbers than a whole pass
            model[1](part.x @ torch.ones(4, 8))
            raise MemoryError("no room")
        loss = F.cross_entropy(model(part.x), part.y)
        loss.backward()
        return loss

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        once = copy.deepcopy(model)
        once(part.x)
        after = torch.get_rng_state()
        torch.manual_seed(0)
        with pytest.raises(MemoryError):
            FlatSeeking(torch.optim.SGD(model.parameters(), lr=0.1), 0.5, model).step(closure)
        assert torch.equal(torch.get_rng_state(), after)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)
    assert torch.equal(model[1].running_mean, once[1].running_mean)


def test_streams_of_accelerators_are_replayed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for two devices: each has a stream, and every pass draws once from each."""
    streams = [0, 10]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor(streams[device]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: streams.__setitem__(device, int(state)))
    w, drawn = nn.Parameter(torch.ones(2)), []

    def closure() -> Tensor:
        drawn.append(list(streams))
        for device in range(2):
            streams[device] += 1
        loss = w.square().sum()
        loss.backward()
        return loss

    flat = FlatSeeking(torch.optim.SGD([w], lr=0.1), 0.1)
    flat.step(closure)
    flat.step(closure)
    assert drawn == [[0, 10], [0, 10], [1, 11], [1, 11]]
    assert streams == [2, 12]


def test_weights_that_are_not_numbers_are_no_closures_fault() -> None:
    w = nn.Parameter(torch.tensor([1.0, float("nan")]))

    def closure() -> Tensor:
        loss = w.square().sum()
        loss.backward()
        return loss

    assert FlatSeeking(torch.optim.SGD([w], lr=0.1), 0.1).step(closure).isnan()
    with pytest.raises(ValueError, match="leaves no gradients"):
        FlatSeeking(torch.optim.SGD([w], lr=0.1), 0.1).step(lambda: w.detach().sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    w, slope = torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    assert torch.equal(ascended(w, slope, 0.1), w)  # 1e-12 is 0 in float16
    large = torch.full((1, 400), 200.0, dtype=torch.float16)  # whose squares are beyond float16
    torch.testing.assert_close(ascended(0 * large, large, 1.0), torch.full_like(large, 0.05))
    small = nn.Parameter(torch.zeros(400, dtype=torch.float16))

    def closure() -> Tensor:
        loss = (200 * small).sum()
        loss.backward()
        return loss

    flat = FlatSeeking(torch.optim.SGD([small], lr=0.0), 1.0)
    seen: list[Tensor] = []
    flat.step(lambda: (seen.append(small.detach().clone()), closure())[1])
    torch.testing.assert_close(seen[1], torch.full_like(seen[1], 0.05))


def test_stacked_passes_share_masks_and_statistics() -> None:
    part = rows(40)
    members = started([net(0.5), net(0.5)])
    losses = batch_losses(members, part, torch.arange(40), class_losses)
    draws: list[Tensor] = []

    def watched(weights: Tensor) -> Tensor:
        draws.append(torch.get_rng_state())
        return losses(weights)

    single = started([net(0.5), net(0.5)])
    with own_draws(generator(3)):
        batch_losses(single, part, torch.arange(40), class_losses)(single.weights)
        after = torch.get_rng_state()
    with own_draws(generator(3)):
        flat_gradient(members, 0.1)(watched, members.weights)
        assert torch.equal(torch.get_rng_state(), after)  # as after one pass
    assert torch.equal(draws[0], draws[1])

    for name, value in single.buffers.items():
        assert torch.equal(value, members.buffers[name]), name


def test_a_stacked_second_pass_that_raises_leaves_the_statistics_of_the_first() -> None:
    part, calls = rows(40), 0
    members, once = started([net(0.5), net(0.5)]), started([net(0.5), net(0.5)])
    losses = batch_losses(members, part, torch.arange(40), class_losses)

    def failing(weights: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = losses(weights)
        if calls == 2:
            raise MemoryError("no room")
        return found

    with own_draws(generator(3)):
        batch_losses(once, part, torch.arange(40), class_losses)(once.weights)
        after = torch.get_rng_state()
    with own_draws(generator(3)):
        with pytest.raises(MemoryError):
            flat_gradient(members, 0.1)(failing, members.weights)
        assert torch.equal(torch.get_rng_state(), after)
    assert calls == 2
    assert torch.equal(members.buffers["1.running_mean"], once.buffers["1.running_mean"])


def test_mean_field_takes_one_eps_and_leaves_the_divergence_alone() -> None:
    """For a linear loss of N(mu, sigma) the update of mu and sigma is known, at the ascended point as anywhere."""
    points: list[Tensor] = []

    def spy(losses: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
        points.append(weights.clone())
        return torch.zeros_like(weights)

    members = started([nn.Linear(4, 2)])
    found = fit_mean_field(
        members,
        rows(),
        400,
        30,
        generator(),
        Optimisation(0.05),
        class_losses,
        draws=500,
        prior_scale=0.5,
        gradient=spy,
    )
    assert len(points) == 400
    assert float(found.weights.mean().abs()) < 0.1  # with no data's gradient q goes to the prior
    assert float(found.weights.std()) == pytest.approx(0.5, rel=0.15)


def test_mean_field_hands_g_to_mu_and_g_eps_to_sigma() -> None:
    """One step of SGD-like size: Adam's first move is lr times the gradient's sign."""
    points: list[Tensor] = []
    slope = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])

    def spy(losses: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
        points.append(weights.clone())
        return slope

    members = started([nn.Linear(4, 2)])
    start = members.weights[0].clone()
    how = {"draws": 4000, "prior_scale": 1e6, "start_scale": 0.3, "temperature": 0.0, "gradient": spy}
    found = fit_mean_field(members, rows(), 1, 30, generator(), Optimisation(0.05), class_losses, **how)
    eps = (points[0][0] - start) / 0.3
    mean, spread = found.weights.mean(dim=0), found.weights.std(dim=0)
    torch.testing.assert_close(mean, start - 0.05 * slope[0].sign(), atol=0.02, rtol=0)
    grown = spread > 0.3
    assert grown.tolist() == (slope[0] * eps < 0).tolist()  # sigma falls where g eps is positive
    assert 0 < int(grown.sum()) < 10


def test_a_radius_costs_two_gradients_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def counted(members: Members, rho: float) -> Callable[..., Tensor]:
        real = flat_gradient(members, rho)

        def gradient(losses: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
            calls.append(rho)
            return real(losses, weights)

        return gradient

    monkeypatch.setattr(flat_seeking_bnn, "flat_gradient", counted)
    spec = Spec("table", "classes", (4,), 2, numeric=4)
    data = Data(spec, rows(), rows(60, 1), rows(60, 2))
    expected = {"ensemble": {0.0: 24, 0.1: 12}, "swag": {0.0: 48, 0.1: 24}, "sgld": {0.0: 48, 0.1: 24}}
    for method, steps in expected.items():
        for rho, count in steps.items():
            calls.clear()
            how = {"method": method, "rho": rho, "members": 2, "draws": 3}
            found = fit(data, Budget(48, 30, 4), generator(), net, Optimisation(1e-2), **how)
            assert calls == [rho] * count
            assert found.passes == 48 * 30
    calls.clear()
    found = fit(
        data, Budget(48, 30, 4), generator(), net, Optimisation(1e-2), method="ensemble", rho=0.1, members=2,
        members_budget="full", budget_is="steps",
    )  # fmt: skip
    assert len(calls) == 48
    assert found.passes == 2 * 2 * 48 * 30


def test_settings_reach_the_posteriors() -> None:
    spec = Spec("table", "classes", (4,), 2, numeric=4)
    data = Data(spec, rows(), rows(60, 1), rows(60, 2))

    def spread(**how: object) -> float:
        found = fit(data, Budget(60, 30, 4), generator(), net, Optimisation(1e-2), rho=0.0, draws=8, **how)
        return float(found.posterior.weights.std(dim=0).mean())

    cold, warm = (spread(method="sgld", temperature=t, sgld_rate=1e-3) for t in (1e-8, 0.1))
    assert warm > 3 * cold
    slow, fast = (spread(method="swag", swag_rate=rate) for rate in (0.001, 0.1))
    assert fast > 10 * slow
    assert spread(method="mean-field", temperature=1.0, prior_scale=1.0) > spread(
        method="mean-field", temperature=1.0, prior_scale=1e-3
    )


def test_the_worst_nearby_of_a_slope() -> None:
    """Of a linear loss the worst lies at distance rho along the gradient."""
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    start = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    found = worst_nearby(lambda v: v @ slope, start, 0.7, steps=9)
    torch.testing.assert_close(found, start @ slope + 0.7 * 5)
    torch.testing.assert_close(worst_nearby(lambda v: v @ slope, start, 0.7, steps=2), start @ slope + 0.35 * 5)


def test_the_worst_nearby_of_a_quadratic() -> None:
    matrix = torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64))

    def losses(v: Tensor) -> Tensor:
        return 0.5 * ((v @ matrix) * v).sum(1)

    start = torch.tensor([[0.01, 0.02]], dtype=torch.float64)
    found = float(worst_nearby(losses, start, 0.5, steps=60))
    angle = torch.linspace(0, 6.2832, 2000, dtype=torch.float64)
    ring = start + 0.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert found == pytest.approx(float(losses(ring).max()), rel=1e-3)


def test_a_closure_that_steps_is_refused() -> None:
    model, part = net(), rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(part.x), part.y)
        loss.backward()
        optimizer.step()
        return loss

    with pytest.raises(ValueError, match="closure changes the weights"):
        FlatSeeking(optimizer, 0.05).step(closure)
    with pytest.raises(ValueError, match=r"rho is -0\.1"):
        FlatSeeking(optimizer, -0.1)


@pytest.mark.parametrize("method", METHODS)
def test_methods_learn_within_the_budget_of_gradients(method: str) -> None:
    spec = Spec("table", "classes", (4,), 2, numeric=4)
    data = Data(spec, rows(), rows(60, 1), rows(60, 2))
    found = fit(data, Budget(240, 30, 4), generator(), net, Optimisation(2e-2), method=method, draws=6, members=3)
    assert found.passes == 240 * 30
    assert float((found.predict(data.test).argmax(1) == data.test.y).float().mean()) > 0.8
    assert found.samples(data.test).shape[0] == (3 if method == "ensemble" else 6)


def test_bad_settings_are_named() -> None:
    spec = Spec("table", "classes", (4,), 2, numeric=4)
    how = (Data(spec, rows(), rows(), rows()), Budget(8, 30, 4), generator(), net, Optimisation())
    for settings, message in (
        ({"rho": -1.0}, "rho is -1.0"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"budget_is": "time"}, "budget_is is 'time'"),
        ({"swag_rate": 0.0}, "swag_rate is 0.0"),
        ({"members": 1}, "members is 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            fit(*how, **settings)


def test_optimizers_with_looks_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match="LBFGS takes looks at the loss of its own"):
        FlatSeeking(torch.optim.LBFGS(nn.Linear(2, 2).parameters()))
    FlatSeeking(torch.optim.Adam(nn.Linear(2, 2).parameters(), fused=True))
