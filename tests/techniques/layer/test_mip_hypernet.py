"""Magnitude invariance against closed forms, the ordinary hypernetwork and plain networks."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.numerics.hypernetworks.hypernet import Layout, supplier_of, withdraw
from probatum.recipe import Training
from probatum.techniques.layer import mip_hypernet
from probatum.techniques.layer.mip_hypernet import (
    MipHypernet,
    apply,
    category_codes,
    encode,
    gradient_norms,
    run,
    squash,
    weight_scales,
    within,
)

pytestmark = pytest.mark.fast


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, 3))


def made(**settings: object) -> MipHypernet:
    return MipHypernet.of(net(), 2, hidden=(16, 64), generator=own(), **settings)


@pytest.mark.parametrize("d", [1, 3, 7])
def test_encoding_has_constant_norm(d: int) -> None:
    g = torch.cat([torch.zeros(1, d), torch.ones(1, d), torch.rand(200, d, generator=own())]).double()
    torch.testing.assert_close(encode(g).square().sum(dim=1), torch.full((202,), float(d)).double(), rtol=0, atol=1e-12)
    assert float((encode(g.float()).norm(dim=1) - d**0.5).abs().max()) < 1e-6
    standard = encode(torch.rand(20_000, 1, generator=own()), "standard")
    assert float(standard.mean()) == pytest.approx(0, abs=0.03)
    assert float(standard.var()) == pytest.approx(1, abs=0.03)


def test_ordinary_hypernetwork_is_proportional_to_its_input_and_mip_is_not() -> None:
    g = torch.rand(5, 2, generator=own())
    plain = made(encoding="raw", residual=False, gain=1.0)
    with torch.no_grad():
        plain.last.bias.zero_()
    for c in (0.1, 0.5, 0.9):
        torch.testing.assert_close(plain(c * g), c * plain(g), rtol=1e-5, atol=1e-5)
        mip = made(gain=1.0)
        assert float((mip(c * g) - c * mip(g)).detach().abs().max()) > 0.1
    steps = torch.linspace(0.1, 1, 10)[:, None].expand(10, 2)
    spread = [maker(steps).detach().norm(dim=1) for maker in (plain, made(gain=1.0))]
    ratio = [float(scales.max() / scales.min()) for scales in spread]
    assert ratio[0] == pytest.approx(10, rel=1e-4)
    assert ratio[1] < 1.5


def test_zero_gain_is_the_ordinary_network_for_every_g() -> None:
    plain, x = net(), torch.randn(8, 6, generator=own())
    maker = made(gain=0.0)
    for g in torch.rand(4, 2, generator=own()):
        assert torch.equal(run(net(), maker, x, g), net()(x))
    each = run(net().eval(), maker, x, torch.rand(8, 2, generator=own()))
    torch.testing.assert_close(each, plain.eval()(x))


def test_theta_0_comes_from_a_trained_network_and_small_gains_stay_near() -> None:
    trained = net()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(3)
    maker = MipHypernet.of(trained, 1, gain=0.01, generator=own())
    wanted = nn.utils.parameters_to_vector(trained.parameters()).detach()
    assert torch.equal(maker.last.bias.detach(), wanted)
    gap = (maker(torch.tensor([0.3])).detach() - wanted) / Layout.of(trained).deviations()
    assert 0 < float(gap.square().mean().sqrt()) < 0.02


def test_first_scale_of_the_baseline_is_that_of_fresh_weights() -> None:
    g = torch.rand(500, 2, generator=own(5))
    for encoding in ("raw", "standard"):
        for gain in (1.0, 0.3):
            maker = made(encoding=encoding, residual=False, gain=gain)
            assert float(weight_scales(maker, g).square().mean()) == pytest.approx(gain**2, rel=0.2)


@pytest.mark.parametrize("residual", [False, True])
def test_weights_start_at_fan_out_and_biases_at_zero_as_in_the_authors_code(residual: bool) -> None:
    maker = MipHypernet.of(nn.Linear(50, 60), 2, hidden=(300, 200), residual=residual, generator=own())
    fans = [300, 200, 3060]
    gains = [2 / (1 + 0.01**2)] * 2 + [1.0]
    weights = [maker.trunk.layers[0].weight, maker.trunk.layers[2].weight, maker.last.weight]
    for weight, fan, gain in zip(weights, fans, gains, strict=True):
        assert float(weight.detach().square().mean()) == pytest.approx(gain / fan, rel=0.1)
    assert not maker.trunk.layers[0].bias.any()
    assert bool(maker.last.bias.any()) == residual


def test_gradient_norms_by_hand() -> None:
    maker, grid = made(gain=0.5), torch.rand(3, 2, generator=own(1))
    x, y = torch.randn(8, 6, generator=own()), torch.arange(8) % 3
    model = net().eval()

    def loss(theta: Tensor, g: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, maker.layout.unflatten(theta), (x,)), y)

    found = gradient_norms(maker, grid, loss)
    for norm, g in zip(found, grid, strict=True):
        maker.zero_grad()
        loss(maker(g), g).backward()
        total = torch.stack([p.grad.norm() for p in maker.parameters()]).norm()
        assert float(norm) == pytest.approx(float(total), rel=1e-5)


def test_inputs_outside_the_range() -> None:
    with pytest.raises(ValueError, match=r"g ranges from -0\.5 to 1\.2; scale it to \[0, 1\]"):
        made()(torch.tensor([-0.5, 1.2]))
    with pytest.raises(ValueError, match="nan"):
        made(outside="clip")(torch.tensor([0.5, float("nan")]))
    clipped = made(outside="clip")
    assert torch.equal(clipped(torch.tensor([-0.5, 1.2])), clipped(torch.tensor([0.0, 1.0])))
    assert torch.equal(within(torch.tensor([-1e-8, 1.0])), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="g has 3 numbers; this hypernetwork takes 2"):
        made()(torch.rand(3))


def test_squashing() -> None:
    reference = torch.randn(60, 2, generator=own()).double()
    by_range = squash(reference, reference)
    assert by_range.aminmax() == (0, 1)
    assert bool((squash(reference * 9, reference) <= 1).all())
    ranks = torch.tensor(rankdata(reference.numpy(), axis=0))
    torch.testing.assert_close(squash(reference, reference, "quantiles"), (ranks - 0.5) / 60)
    with pytest.raises(ValueError, match=r"columns \[1\] of the reference hold one value"):
        squash(reference, torch.stack([torch.arange(3.0), torch.ones(3)], dim=1))
    with pytest.raises(ValueError, match="how is 'odd'"):
        squash(reference, reference, "odd")


def test_categories_have_unit_norm() -> None:
    torch.testing.assert_close(category_codes(5, 8, own()).norm(dim=1), torch.ones(5))


def test_in_place_on_dropout() -> None:
    model, x = net(), torch.randn(200, 6, generator=own())
    state = torch.get_rng_state()
    assert apply(model, gain=0.0, generator=own()) == 2
    seen: list[Tensor] = []
    model[3].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    features = net()[:3](x)
    model(x)
    g = float(supplier_of(model).g)
    zero = float(((seen[0] == 0) & (features != 0)).float().mean() / (features != 0).float().mean())
    assert zero == pytest.approx(0.5 * g, abs=0.05)
    model(x)
    assert float(supplier_of(model).g) != g
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    model.eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
        plain = net().eval()
        plain[2].load_state_dict(model[2].state_dict())
        torch.testing.assert_close(model(x), plain(x))
        kept = model(x)
        assert withdraw(model) == 2
        assert len(model[3]._forward_pre_hooks) == 1  # this test's own
        torch.testing.assert_close(model(x), kept)


def test_evaluation_is_at_the_g_asked_for() -> None:
    found, x = [], torch.randn(4, 6, generator=own())
    for at in (0.0, 1.0):
        model = net()
        apply(model, at=at, gain=1.0, generator=own())
        model(x)
        with torch.no_grad():
            found.append(model.eval()(x))
        maker = supplier_of(model).maker
        values = maker.layout.unflatten(maker(torch.tensor([at])))
        torch.testing.assert_close(supplier_of(model).weight_of("0.weight"), values["0.weight"])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 1.0}, "most is 1.0"),
        ({"at": 1.5}, "at is 1.5"),
        ({"gain": -1.0}, "gain is -1.0"),
        ({"encoding": "odd"}, "encoding is 'odd'"),
        ({"hidden": (0,)}, r"hidden is \(0,\)"),
        ({"names": ["7.weight"]}, r"names \['7\.weight'\]"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(net(), **settings)
    assert apply(nn.Sequential(nn.Identity())) == 0
    with pytest.raises(ValueError, match="ordinary has shape"):
        MipHypernet(Layout.of(net()), 1, torch.zeros(3))


def test_on_the_bench() -> None:
    data = open_dataset("digits").prepare(0)
    finished = fit("mip-hypernet(hidden=(8, 8))", data, 2, training=Training(epochs=3, batch_size=64))
    assert finished.curve[-1]["valid_error"] < 0.3


def test_example() -> None:
    assert doctest.testmod(mip_hypernet).failed == 0


def test_dropout_goes_before_the_head_that_runs_last() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 2), nn.Sequential(nn.Linear(6, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = HeadFirst()
    apply(model)
    assert len(model.head._forward_pre_hooks) == 1
    assert not model.body[0]._forward_pre_hooks


def test_a_last_layer_that_hooks_do_not_reach_is_refused_and_one_called_by_keyword_is_not() -> None:
    attention = nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"attention": attention, "head": nn.Linear(8, 2)})
    with pytest.raises(ValueError, match=r"part of nn\.MultiheadAttention"):
        apply(model, last_layer=attention.out_proj)
    assert supplier_of(model) is None

    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=self.body(x).square() + 1)

    torch.manual_seed(0)
    made = ByName()
    apply(made, most=0.9, generator=own())
    seen: list[Tensor] = []
    made.head.register_forward_pre_hook(lambda _m, _a, given: seen.append(given["input"]), with_kwargs=True)
    made(x=torch.ones(400, 6))
    rate = 0.9 * float(supplier_of(made).g)
    assert float((seen[0] == 0).float().mean()) == pytest.approx(rate, abs=0.05)
    whole = made.body(torch.ones(6)).square() + 1
    kept = seen[0].sum(dim=0) / (seen[0] != 0).sum(dim=0)
    torch.testing.assert_close(kept, whole / (1 - rate), rtol=1e-4, atol=1e-4)
    assert withdraw(made) == 2
    assert not made._forward_hooks_with_kwargs
    assert len(made.head._forward_pre_hooks_with_kwargs) == 1  # this test's own


def test_averages_through_data_are_seen_in_evaluation() -> None:
    model, x = net().eval(), torch.randn(4, 6, generator=own())
    apply(model, gain=1.0, generator=own())
    with torch.no_grad():
        before = model(x)
        for p in model.parameters():
            p.data.mul_(0.5)
        assert not torch.allclose(model(x), before)
        torch.testing.assert_close(model(x), copy.deepcopy(model)(x))


def test_gradients_reach_g() -> None:
    maker, g = made(gain=1.0).double(), torch.rand(2, generator=own()).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: maker(0.8 * value + 0.1)[:5], (g,))


def test_encodings_and_weights_by_hand() -> None:
    g = torch.tensor([[0.0, 1.0], [1 / 3, 0.5]])
    half, root = 3**0.5 / 2, 2**-0.5
    torch.testing.assert_close(encode(g), torch.tensor([[1.0, 0, 0, 1], [half, root, 0.5, root]]))
    torch.testing.assert_close(encode(g, "standard"), 12**0.5 * torch.tensor([[-0.5, 0.5], [-1 / 6, 0]]))
    assert torch.equal(encode(g, "raw"), g)
    maker = made(gain=0.7)
    first, second = maker.trunk.layers[0], maker.trunk.layers[2]
    hidden = F.leaky_relu(encode(g) @ first.weight.T + first.bias, 0.01)
    hidden = F.leaky_relu(hidden @ second.weight.T + second.bias, 0.01)
    theta_0 = nn.utils.parameters_to_vector(net().parameters())
    torch.testing.assert_close(maker(g), theta_0 + hidden @ maker.last.weight.T)
