"""Self-normalizing networks against torch, quadrature and simulation (arXiv:1706.02515)."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.layer import selu_snn
from probatum.techniques.layer.selu_snn import (
    ALPHA,
    LAM,
    Moments,
    alpha_dropout,
    apply,
    check_inputs,
    check_network,
    contracting,
    layer_moments,
    lecun_normal_,
    moment_map,
    outside_domain,
    selu,
)

pytestmark = pytest.mark.fast


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=own(seed))


def test_selu_is_torchs() -> None:
    x = torch.cat([torch.linspace(-30, 30, 1001).double(), torch.tensor([-1e-12, 0.0, 1e-12, 800.0, -800.0]).double()])
    torch.testing.assert_close(selu(x), nn.SELU()(x), atol=1e-7, rtol=1e-12)
    y = x[(x.abs() > 1e-2) & (x < 40)][::50].requires_grad_()
    assert torch.autograd.gradcheck(selu, (y,))


@pytest.mark.parametrize(
    ("mean", "variance", "omega", "tau"), [(0, 1, 0, 1), (0.1, 1.5, 0.1, 1.1), (-0.5, 0.3, 0.9, 2.0), (2, 4, -1, 3)]
)
def test_moment_map_against_quadrature(mean: float, variance: float, omega: float, tau: float) -> None:
    # Gauss-Legendre on each side of the kink, where the integrand is smooth
    m, s = mean * omega, math.sqrt(variance * tau)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    first = second = 0.0
    for low, high in ((min(m - 12 * s, -1.0), 0.0), (0.0, max(m + 12 * s, 1.0))):
        z = (high - low) / 2 * nodes + (high + low) / 2
        mass = (high - low) / 2 * weights * np.exp(-((z - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi))
        value = selu(torch.as_tensor(z)).numpy()
        first, second = first + (mass * value).sum(), second + (mass * value**2).sum()
    found = moment_map(mean, variance, omega, tau)
    assert found.mean == pytest.approx(first, abs=1e-8)
    assert found.variance == pytest.approx(second - first**2, abs=1e-8)


def test_fixed_point_and_contraction() -> None:
    assert moment_map(0, 1) == pytest.approx((0.0, 1.0), abs=1e-8)
    moments = (0.1, 1.5)
    for _ in range(100):
        moments = moment_map(*moments)
    assert moments == pytest.approx((0.0, 1.0), abs=1e-6)
    assert contracting(0.0, 1.0, 0.0, 1.0)
    assert not contracting(0.0, 1.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="variance"):
        moment_map(0, 0)


def test_moment_map_does_not_overflow() -> None:
    for moments in (moment_map(0, 1e6), moment_map(50, 1e-3, 1.0), moment_map(-50, 1.0, 1.0)):
        assert all(math.isfinite(value) for value in moments)
    assert moment_map(50, 1.0, 1.0).mean == pytest.approx(50 * LAM)


def test_moments_of_a_wide_layer_follow_the_map() -> None:
    layer = nn.Linear(400, 4000).double()
    lecun_normal_(layer, own(2))
    x = normals(200, 400, seed=3) * 1.2**0.5
    output = selu(layer(x).detach())
    expected = moment_map(0.0, 1.2)
    assert float(output.mean()) == pytest.approx(expected.mean, abs=0.02)
    assert float(output.var()) == pytest.approx(expected.variance, abs=0.03)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(rate: float) -> None:
    x = normals(1_000_000)
    dropped = alpha_dropout(x, rate, own(1))
    assert abs(float(dropped.mean())) < 0.02
    assert float(dropped.var()) == pytest.approx(1.0, rel=0.02)
    zeros = torch.zeros(10_000)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = nn.AlphaDropout(rate)(zeros)
    torch.testing.assert_close(alpha_dropout(zeros, rate, own(2)).unique(), theirs.unique())
    assert alpha_dropout(x, 0.0) is x
    with pytest.raises(ValueError, match="rate is 1"):
        alpha_dropout(x, 1.0)


@pytest.mark.parametrize("layer", [nn.Linear(256, 128), nn.Conv2d(16, 64, 5), nn.Conv1d(32, 256, 3, groups=4)])
def test_lecun_normal_variance_is_one_over_fan_in(layer: nn.Module) -> None:
    fan_in = nn.init._calculate_fan_in_and_fan_out(layer.weight)[0]
    lecun_normal_(layer, own())
    assert float(layer.weight.detach().var()) * fan_in == pytest.approx(1.0, rel=0.05)
    assert float(layer.bias.detach().abs().max()) == 0


def mlp(depth: int = 16) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(128, 3))


def test_converter_makes_a_deep_network_self_normalizing() -> None:
    net = mlp()
    linear = sum(p.numel() for m in net.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    state = torch.get_rng_state()
    assert apply(net, generator=own(1)) == 48
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in net.parameters()) == linear
    kinds = {type(m) for m in net}
    assert kinds == {nn.Linear, nn.Identity, nn.SELU, nn.AlphaDropout}
    assert {m.p for m in net if isinstance(m, nn.AlphaDropout)} == {0.1}
    check_network(net)
    net.train()
    moments = layer_moments(net, normals(2000, 128).float())
    assert len(moments) == 16
    assert outside_domain(moments) == []
    assert net.training
    assert all(not module._forward_hooks for module in net.modules())
    assert outside_domain(layer_moments(net, 5 + normals(2000, 128).float()))[0] == "2"


def test_converter_on_convolutions_and_on_nothing() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.05), nn.Conv2d(4, 2, 3)
    )
    assert apply(net.eval(), generator=own()) == 3
    assert isinstance(net[3], nn.FeatureAlphaDropout)
    assert net[2].inplace
    assert not net[3].training
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    before = plain[0].weight.clone()
    assert apply(plain) == 0
    assert torch.equal(plain[0].weight, before)


def test_same_stream_gives_the_same_weights_and_tied_ones_are_drawn_once() -> None:
    first, second = mlp(2), mlp(2)
    apply(first, generator=own(4))
    apply(second, generator=own(4))
    assert torch.equal(first[0].weight, second[0].weight)
    tied = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    tied[2].weight = tied[0].weight
    apply(tied, generator=own(4))
    assert tied[2].weight is tied[0].weight


def test_a_module_used_twice_is_swapped_in_both_places() -> None:
    act = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    assert apply(net, generator=own()) == 2
    assert [type(module) for module in net] == [nn.Linear, nn.SELU, nn.Linear, nn.SELU]


def test_attention_stays_as_it_is() -> None:
    net = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.ReLU(), nn.Linear(8, 8)])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert apply(net, generator=own()) == 1
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"2.weight", "2.bias"}


def test_misuse() -> None:
    with pytest.raises(ValueError, match=r"use nn\.FeatureAlphaDropout"):
        apply(nn.Sequential(nn.SELU(), nn.Dropout3d(0.5)))
    with pytest.raises(ValueError, match="feature 0 has mean nan"):
        check_inputs(torch.full((4, 2), float("nan")), strict=True)
    with pytest.raises(ValueError, match=r"'1' is Dropout beside SELU; use nn.AlphaDropout\(p=0.5\)"):
        check_network(nn.Sequential(nn.SELU(), nn.Dropout(0.5)))
    check_network(nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
    with pytest.raises(ValueError, match=r"max_dropout is 1.0"):
        apply(mlp(1), max_dropout=1.0)
    x = normals(200, 3)
    assert check_inputs(x, strict=True)
    assert check_inputs(torch.cat([x, torch.full((200, 1), 9.0)], dim=1))
    x[:, 1] = 30 + 0.1 * x[:, 1]
    with pytest.raises(ValueError, match="feature 1 has mean 30"):
        check_inputs(x, strict=True)
    with pytest.warns(UserWarning, match="standardised"):
        assert not check_inputs(x)


@pytest.mark.parametrize("name", ["breast-cancer", "digits"])
def test_trains_on_the_bench(name: str) -> None:
    data = open_dataset(name).prepare(0)
    run = fit("selu-snn", data, 1, training=Training(epochs=3))
    assert any(isinstance(module, nn.SELU) for module in run.model.modules())
    assert not any(isinstance(module, nn.ReLU) for module in run.model.modules())
    assert run.curve[-1]["valid_error"] < 0.5


def test_example() -> None:
    assert doctest.testmod(selu_snn).failed == 0


def test_inside_an_encoder_it_runs_in_evaluation_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.ReLU(), nn.Linear(16, 2))
    apply(model)
    x = torch.randn(2, 5, 16)
    expected = model.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_parametrised_weights_are_refused_before_anything_is_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    before = model[0].weight.detach().clone()
    with pytest.raises(TypeError, match=r"'2' has a parametrised weight"):
        apply(model)
    assert isinstance(model[1], nn.ReLU)
    assert torch.equal(model[0].weight, before)


def test_moments_of_a_selu_in_place_and_of_one_module_in_two_places() -> None:
    shared = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Linear(4, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 2))
    assert apply(model) == 2
    assert model[1] is model[3]
    x = normals(50, 4).float()
    first = selu(model[0](x))
    second = selu(model[2](first))
    found = layer_moments(model, x)
    assert list(found) == ["1", "1:2"]
    for moments, values in zip(found.values(), (first, second), strict=True):
        values = values.detach().double()
        assert moments.mean == pytest.approx(float(values.mean()), rel=1e-4)
        assert moments.variance == pytest.approx(float(((values - values.mean()) ** 2).mean()), rel=1e-4)


def test_frozen_weights_stay() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    net[2].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    assert apply(net, generator=own()) == 1
    stayed = {name for name, value in net.state_dict().items() if torch.equal(value, before[name])}
    assert stayed == {"0.weight", "0.bias", "2.weight", "3.bias"}
    assert not net[2].bias.any()
    assert [p.requires_grad for p in net.parameters()] == flags
    lecun_normal_(net[0], own())  # said outright, it is drawn
    assert not torch.equal(net[0].weight, before["0.weight"])
    assert not net[0].bias.any()


@pytest.mark.parametrize(
    "kind", ["ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "CELU", "GELU", "SiLU", "Mish", "Hardswish"]
)
def test_all_rectifiers_become_selu(kind: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), getattr(nn, kind)(), nn.Linear(3, 3), nn.Sigmoid())
    assert apply(net, generator=own()) == 1
    assert [type(module) for module in net] == [nn.Linear, nn.SELU, nn.Linear, nn.Sigmoid]
    assert not net[1].inplace


def test_all_norms_go() -> None:
    norms = [nn.RMSNorm(8), nn.LayerNorm(8), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True), nn.BatchNorm1d(4)]
    norms += [nn.InstanceNorm2d(4), nn.InstanceNorm3d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4)]
    net = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU(), *norms)
    assert apply(net, generator=own()) == 1 + len(norms)
    assert {type(module) for module in net[2:]} == {nn.Identity}
    assert len(list(net.parameters())) == 2


def test_the_domain_of_the_theorem_by_its_ends() -> None:
    middle = {"mean": 0.0, "variance": 1.0, "omega": 0.0, "tau": 1.0}
    ends = {"mean": (-0.1, 0.1), "omega": (-0.1, 0.1), "variance": (0.8, 1.5), "tau": (0.95, 1.1)}
    for name, (low, high) in ends.items():
        for inside, outside in ((low, low - 0.01), (high, high + 0.01)):
            assert contracting(**{**middle, name: inside}), name
            assert not contracting(**{**middle, name: outside}), name
    moments = {
        f"{mean} {variance}": Moments(mean, variance)
        for mean in (-0.11, -0.1, 0.1, 0.11)
        for variance in (0.79, 0.8, 1.5, 1.51)
    }
    kept = {"-0.1 0.8", "-0.1 1.5", "0.1 0.8", "0.1 1.5"}
    assert set(outside_domain(moments)) == set(moments) - kept


def test_inputs_by_their_ends() -> None:
    base = torch.tensor([-1.0, 1.0] * 8, dtype=torch.float64)[:, None]  # mean 0, deviation 1
    for mean, deviation, fits in (
        (1, 1, True), (1.01, 1, False), (-1, 1, True), (-1.01, 1, False), (0, 0.5, True), (0, 0.49, False), (0, 2, True),
        (0, 2.01, False), (50, 0, True),
    ):  # fmt: skip
        x = mean + deviation * base
        if fits:
            assert check_inputs(x, strict=True)
        else:
            with pytest.raises(
                ValueError, match=f"feature 0 has mean {mean:.3g} and standard deviation {deviation:.3g}"
            ):
                check_inputs(x, strict=True)


def test_dropout_by_hand_and_its_rates() -> None:
    q, low = 0.8, -1.0507009873554805 * 1.6732632423543772
    a = (q + low**2 * q * 0.2) ** -0.5
    kept, dropped = a * (3.0 - 0.2 * low), a * (low - 0.2 * low)
    found = alpha_dropout(torch.full((4000,), 3.0, dtype=torch.float64), 0.2, own(3))
    is_kept = (found - kept).abs() < 1e-9
    torch.testing.assert_close(found[~is_kept], torch.full_like(found[~is_kept], dropped))
    assert float(is_kept.double().mean()) == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ValueError, match=r"rate is -0\.1"):
        alpha_dropout(found, -0.1)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.02), nn.Dropout1d(0.4), nn.Dropout3d(0.3))
    assert apply(net, max_dropout=0.07, generator=own()) == 4
    assert [(type(module), module.p) for module in net[2:]] == [
        (nn.AlphaDropout, 0.02), (nn.FeatureAlphaDropout, 0.07), (nn.FeatureAlphaDropout, 0.07)
    ]  # fmt: skip
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="max_dropout"):
            apply(nn.Sequential(nn.ReLU()), max_dropout=rate)


def test_far_moments_by_their_limits() -> None:
    # deep in the negative half all units sit at -lam alpha; far in the positive half SELU is linear
    low = moment_map(-60.0, 1.0, 1.0)
    assert low.mean == pytest.approx(-1.0507009873554805 * 1.6732632423543772)
    assert low.variance == pytest.approx(0.0, abs=1e-9)
    high = moment_map(60.0, 2.0, 1.0, 0.5)
    assert high == pytest.approx((60 * 1.0507009873554805, 1.0507009873554805**2))
    wide = moment_map(0.0, 1e8)  # half of a normal distribution beside half at -lam alpha
    s = 1e4
    assert wide.mean == pytest.approx(LAM * (s / math.sqrt(2 * math.pi) - ALPHA / 2), rel=1e-3)
