"""Layouts, calls with made weights, first variances and surgery against plain modules."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.hypernetworks import hypernet
from probatum.numerics.hypernetworks.hypernet import (
    Layout,
    Supplier,
    Trunk,
    call,
    call_each,
    draw_linear,
    hyperfan_in,
    layer_weights,
    supplier_of,
    supply,
    withdraw,
)

pytestmark = pytest.mark.fast


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )


class Fixed(Supplier):
    """Its weights are one parameter."""

    def __init__(self, layout: Layout, start: Tensor) -> None:
        super().__init__(layout)
        self.start = nn.Parameter(start)
        self.calls = 0

    def theta(self) -> Tensor:
        self.calls += 1
        return self.start * 1

    def state_of_theta(self) -> str:
        return "always"


def test_flatten_and_unflatten_are_inverse_also_in_batches() -> None:
    model = net()
    layout = Layout.of(model)
    values = {name: value.detach() for name, value in model.named_parameters()}
    flat = layout.flatten(values)
    assert flat.shape == (layout.numel,) == (sum(p.numel() for p in model.parameters()),)
    assert torch.equal(flat, nn.utils.parameters_to_vector(model.parameters()).detach())
    assert all(torch.equal(layout.unflatten(flat)[name], value) for name, value in values.items())
    batch = torch.randn(2, 5, layout.numel, generator=own())
    assert torch.equal(layout.flatten(layout.unflatten(batch)), batch)
    scalar = nn.Module()
    scalar.gain, scalar.other = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
    both = Layout.of(scalar)
    assert torch.equal(both.flatten(both.unflatten(torch.arange(8.0).reshape(2, 4))), torch.arange(8.0).reshape(2, 4))


def test_kinds_and_fan_in() -> None:
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 6, 3, groups=2),
            "back": nn.ConvTranspose1d(4, 6, 5, groups=2),
            "norm": nn.LayerNorm(3),
            "words": nn.Embedding(7, 5),
        }
    )
    found = {e.name: (e.kind, e.fan_in) for e in Layout.of(model).entries}
    assert found == {
        "conv.weight": ("weight", 18),
        "conv.bias": ("bias", 18),
        "back.weight": ("weight", 10),
        "back.bias": ("bias", 10),
        "norm.weight": ("scale", 1),
        "norm.bias": ("shift", 1),
        "words.weight": ("table", 1),
    }


def test_call_is_the_module_and_moves_running_statistics() -> None:
    model, x = net(), torch.randn(6, 2, 4, 4, generator=own())
    other = copy.deepcopy(model)
    values = {name: value.detach().clone() for name, value in other.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(call(model, values, x), other(x))
    assert torch.equal(model[1].running_mean, other[1].running_mean)
    kept = {"1.running_mean": torch.zeros(4), "1.running_var": torch.ones(4)}
    call(model, {**values, **kept}, x)
    assert not torch.equal(kept["1.running_mean"], torch.zeros(4))
    assert torch.equal(model[1].running_mean, other[1].running_mean)


def test_call_each_equals_a_loop() -> None:
    model, x = net().eval(), torch.randn(5, 2, 4, 4, generator=own())
    layout = Layout.of(model)
    values = layout.unflatten(torch.randn(5, layout.numel, generator=own(1)))
    wanted = torch.cat([call(model, {name: v[i] for name, v in values.items()}, x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(call_each(model, values, x), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="1 is a batch norm in training"):
        call_each(model.train(), values, x)
    with pytest.raises(ValueError, match="weights for 5 rows; x has 4"):
        call_each(model.eval(), values, x[:4])


def test_hyperfan_in_gives_the_wanted_variances() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(50, 40), nn.BatchNorm2d(300))
    layout, conditions = Layout.of(model), torch.randn(400, 12, generator=own())
    trunk = Trunk(12, (64, 64), generator=own(1))
    last = draw_linear(64, layout.numel, 1.0, own())
    hyperfan_in(last, trunk(conditions), layout.deviations(), own(2))
    made = (last(trunk(conditions)) + layout.centres()).detach()
    for name, ratio in layout.ratios(made).items():
        assert ratio == pytest.approx(1, abs=0.35 if name in ("0.bias", "1.bias") else 0.1), name
    weights = layout.unflatten(made)
    assert float(weights["0.weight"].var()) == pytest.approx(2 / 72, rel=0.1)
    assert float(weights["2.weight"].mean()) == pytest.approx(1, abs=0.02)


def test_trunk_keeps_second_moments() -> None:
    x = torch.randn(2000, 32, generator=own())
    trunk = Trunk(32, (256, 256, 256), generator=own(1))
    assert float(trunk(x).detach().square().mean()) == pytest.approx(1, abs=0.15)
    assert float(trunk.layers[2].weight.detach().var()) == pytest.approx(2 / 256, rel=0.03)
    assert float(Trunk(32, (512,), "fan_out", own()).layers[0].weight.detach().var()) == pytest.approx(
        2 / 512, rel=0.05
    )


@pytest.mark.parametrize("names", [None, ["0.weight", "4.weight"]])
def test_supplied_weights_give_the_same_network_gradients_and_back(names: list[str] | None) -> None:
    model, x = net(), torch.randn(6, 2, 4, 4, generator=own())
    plain = copy.deepcopy(model)
    layout = Layout.of(model, names)
    start = layout.flatten({name: p.detach() for name, p in model.named_parameters() if name in layout.names})
    supplier = Fixed(layout, start)
    assert supply(model, supplier) == len(layout.names)
    assert {name for name, _ in model.named_parameters()} == {"0.hypernet.start"} | (
        set(dict(plain.named_parameters())) - set(layout.names)
    )
    assert torch.equal(model(x), plain(x))
    assert supplier.calls == 1
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    grads = layout.unflatten(supplier.start.grad)
    for name, parameter in plain.named_parameters():
        if name in grads:
            torch.testing.assert_close(grads[name], parameter.grad)
    again = copy.deepcopy(model)
    with torch.no_grad():
        again[0].hypernet.start.mul_(2)
    assert not torch.equal(again.eval()(x), copy.deepcopy(model).eval()(x))  # a copy reads from its own supplier
    assert supplier_of(model) is supplier
    assert withdraw(model) == len(layout.names)
    assert withdraw(model) == 0
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


def test_weights_are_kept_in_evaluation_until_a_parameter_changes() -> None:
    model, x = net(), torch.randn(2, 2, 4, 4, generator=own())
    supplier = Fixed(Layout.of(model), nn.utils.parameters_to_vector(model.parameters()).detach())
    supply(model, supplier)
    model.eval()
    with torch.no_grad():
        first = model(x)
        assert torch.equal(model(x), first)
        assert supplier.calls == 1
        supplier.start.add_(0.1)
        assert not torch.equal(model(x), first)
        assert supplier.calls == 2
        second = model(x)
        assert supplier.calls == 2
        supplier.start.data.add_(0.1)  # no version is counted here
        assert not torch.equal(model(x), second)
        assert supplier.calls == 3
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x)
        model(x)
        assert supplier.calls == 5
        copied = copy.deepcopy(supplier)
        assert copied._kept is None
        assert supplier._kept is not None
    model(x)
    assert supplier.calls == 6
    assert supplier._kept is None  # with gradients every pass makes its own
    with pytest.raises(ValueError, match="has a hypernet already"):
        supply(model, supplier)


def test_a_failed_pass_leaves_nothing_behind() -> None:
    model = net()
    supplier = Fixed(Layout.of(model), nn.utils.parameters_to_vector(model.parameters()).detach())
    supply(model, supplier)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 3, 4, 4))
    assert supplier._now is None


def test_tied_weights_stay_tied() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model, x = nn.Sequential(first, second), torch.randn(3, 4, generator=own())
    wanted = model(x).detach()
    layout = Layout.of(model)
    assert layout.numel == 16
    assert supply(model, Fixed(layout, first.weight.detach().flatten())) == 2
    assert torch.equal(model(x), wanted)
    assert withdraw(model) == 2
    assert model[0].weight is model[1].weight


def test_bad_input_is_told() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"names \['5\.weight'\] are no parameters .* it has 0\.weight"):
        Layout.of(model, ["5.weight"])
    with pytest.raises(ValueError, match="no parameters to make"):
        Layout.of(nn.Identity())
    with pytest.raises(ValueError, match="7 values were given"):
        Layout.of(model).unflatten(torch.zeros(7))
    with pytest.raises(ValueError, match="give exactly"):
        Layout.of(model).flatten({"0.weight": torch.zeros(4, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"names \['odd'\] are no parameters"):
        call(model, {"odd": torch.zeros(1)}, torch.zeros(1, 2, 4, 4))
    for settings, message in (({"hidden": ()}, "hidden is"), ({"hidden": (4,), "mode": "odd"}, "mode is 'odd'")):
        with pytest.raises(ValueError, match=message):
            Trunk(3, **settings)
    assert layer_weights(model) == ["0.weight", "4.weight"]


def test_nothing_draws_from_the_global_state() -> None:
    before = torch.get_rng_state()
    trunk = Trunk(4, (8,), generator=own())
    hyperfan_in(draw_linear(8, 3, 1.0, own()), trunk(torch.zeros(1, 4)) + 1, 1.0, own())
    assert torch.equal(before, torch.get_rng_state())


def test_example() -> None:
    assert doctest.testmod(hypernet).failed == 0
