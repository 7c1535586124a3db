"""Integrated gradients: axioms, closed forms, and captum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probatum.spec import Spec
from probatum.techniques.explain.integrated_gradients import (
    RULES,
    integrate_embedding,
    integrated_gradients,
    quadrature,
)
from probatum.train.baselines import build

pytestmark = pytest.mark.fast

D = torch.float64


def mlp(inputs: int = 6, outputs: int = 3, seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, outputs)).to(D)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=D))
    return net.eval()


def batch(n: int = 7, inputs: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, inputs, dtype=D, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


@pytest.mark.parametrize("rule", RULES)
def test_quadrature(rule: str) -> None:
    nodes, weights = quadrature(rule, 6)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-14)
    assert float((weights * nodes).sum()) == pytest.approx(0.5, abs=1e-14)  # exact for straight lines
    if rule == "gauss-legendre":
        assert float((weights * nodes**11).sum()) == pytest.approx(1 / 12, abs=1e-14)  # exact to degree 2m - 1
    if rule == "trapezoid":
        with pytest.raises(ValueError, match="at least 2"):
            quadrature(rule, 1)
    else:
        assert [part.tolist() for part in quadrature(rule, 1)] == [[0.5], [1.0]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 5])
def test_linear_model_is_exact_for_any_number_of_steps(rule: str, steps: int) -> None:
    (x, y), layer = batch(), nn.Linear(6, 3).to(D).eval()
    start = torch.rand(6, dtype=D)
    values, gap = integrated_gradients(layer, x, y, baseline=start, steps=steps, rule=rule, tolerance=None)
    torch.testing.assert_close(values, layer.weight[y].detach() * (x - start))
    assert float(gap.max()) < 1e-12


def test_gap_falls_with_steps_and_adapts() -> None:
    (x, y), net = batch(40), mlp()
    y = torch.arange(40) % 3
    gaps = [float(integrated_gradients(net, x, y, steps=m, tolerance=None).gap.mean()) for m in (5, 40, 320)]
    assert gaps[0] > 4 * gaps[1] > 16 * gaps[2]
    rise = (net(x) - net(torch.zeros_like(x))).detach().gather(1, y[:, None]).squeeze(1)
    values, gap = integrated_gradients(net, x, y, steps=5, tolerance=0.01, max_steps=5 * 2**12)
    assert bool((gap <= 0.01 * rise.abs() + 1e-6).all())
    torch.testing.assert_close((values.sum(1) - rise).abs(), gap)


def test_chunks_do_not_matter() -> None:
    (x, y), net = batch(), mlp()
    whole = integrated_gradients(net, x, y, steps=9, tolerance=None, chunk=10_000)
    pieces = integrated_gradients(net, x, y, steps=9, tolerance=None, chunk=4)
    torch.testing.assert_close(whole.values, pieces.values)


def test_symmetric_inputs_get_equal_shares() -> None:
    def product(x: Tensor) -> Tensor:
        return (x[:, 0] * x[:, 1] + (x[:, 0] + x[:, 1]).sin())[:, None]

    values, _ = integrated_gradients(product, torch.tensor([[1.3, 1.3]], dtype=D), torch.tensor([0]))
    assert float(values[0, 0] - values[0, 1]) == pytest.approx(0, abs=1e-12)


def test_implementation_invariance_and_linearity() -> None:
    (x, y), net, other = batch(), mlp(), mlp(seed=5)

    def rewritten(z: Tensor) -> Tensor:
        hidden = net[0](z)
        return net[4](((hidden + hidden.abs()) / 2 @ net[2].weight.T + net[2].bias).tanh())

    ours = integrated_gradients(net, x, y, tolerance=None).values
    torch.testing.assert_close(integrated_gradients(rewritten, x, y, tolerance=None).values, ours)
    mixed = integrated_gradients(lambda z: 2 * net(z) - 3 * other(z), x, y, tolerance=None).values
    torch.testing.assert_close(mixed, 2 * ours - 3 * integrated_gradients(other, x, y, tolerance=None).values)


def test_saturation() -> None:
    x = torch.tensor([[2.0]], dtype=D)
    values, gap = integrated_gradients(lambda z: 1 - (1 - z).relu(), x, torch.tensor([0]), steps=50)
    assert values.item() == pytest.approx(1.0)
    assert gap.item() < 1e-12


@pytest.mark.parametrize(("rule", "theirs"), [("midpoint", "riemann_middle"), ("gauss-legendre", "gausslegendre")])
def test_captum(rule: str, theirs: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is the witness")
    (x, y), net = batch(), mlp()
    start = torch.rand(7, 6, dtype=D)
    ours = integrated_gradients(net, x, y, baseline=start, steps=30, rule=rule, tolerance=None)
    expected = attr.IntegratedGradients(net).attribute(x, start, target=y, n_steps=30, method=theirs)
    torch.testing.assert_close(ours.values, expected, atol=1e-5, rtol=0)


def test_probability_score() -> None:
    (x, y), net = batch(), mlp()
    ours = integrated_gradients(net, x, y, score="probability", tolerance=None).values
    other = integrated_gradients(lambda z: net(z).softmax(1), x, y, tolerance=None).values
    torch.testing.assert_close(ours, other)


def test_several_baselines_are_averaged() -> None:
    (x, y), net = batch(), mlp()
    starts = [torch.zeros(6, dtype=D), 0.5, torch.rand(7, 6, dtype=D)]
    mean = integrated_gradients(net, x, y, baseline=starts, tolerance=None)
    single = [integrated_gradients(net, x, y, baseline=start, tolerance=None).values for start in starts]
    torch.testing.assert_close(mean.values, torch.stack(single).mean(0))


def test_several_inputs() -> None:
    (x, y), net = batch(), mlp()
    both = integrated_gradients(lambda a, b: net(torch.cat([a, b], 1)), (x[:, :2], x[:, 2:]), y, tolerance=None)
    torch.testing.assert_close(torch.cat(both.values, dim=1), integrated_gradients(net, x, y, tolerance=None).values)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.head = mlp(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(dim=1))


def test_embedding_form() -> None:
    net, ids = Tokens().to(D).eval(), torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(2))
    target = torch.tensor([0, 1, 2, 0])
    ours = integrate_embedding(net, net.embed, ids, target, tolerance=None, chunk=7)
    direct = integrated_gradients(lambda e: net.head(e.mean(1)), net.embed(ids).detach(), target, tolerance=None)
    assert ours.values.shape == ids.shape
    torch.testing.assert_close(ours.values, direct.values.sum(-1))
    assert len(net.embed._forward_hooks) == 0
    attr = pytest.importorskip("captum.attr", reason="captum is the witness")
    zero = torch.zeros(4, 6, 5, dtype=D)
    expected = attr.IntegratedGradients(lambda e: net.head(e.mean(1))).attribute(
        net.embed(ids).detach(), zero, target=target, method="riemann_middle"
    )
    torch.testing.assert_close(ours.values, expected.sum(-1), atol=1e-5, rtol=0)


def test_category_codes_are_held() -> None:
    spec = Spec("table", "classes", (4,), 3, numeric=2, cardinalities=(5, 3))
    torch.manual_seed(0)
    net, codes = build(spec).eval(), torch.tensor([[1.0, 2.0], [4.0, 0.0], [0.0, 1.0]])
    x = torch.cat([torch.tensor([[0.5, -1.0], [2.0, 1.0], [-1.0, 3.0]]), codes], dim=1)
    values, gap = integrated_gradients(net, x, torch.tensor([0, 1, 2]), spec=spec)
    kept = torch.cat([torch.zeros(3, 2), codes], dim=1)
    rise = (net(x) - net(kept)).detach().gather(1, torch.tensor([[0], [1], [2]])).squeeze(1)
    assert not values[:, 2:].any()
    torch.testing.assert_close(values.sum(1), rise, atol=1e-3, rtol=0.06)
    torch.testing.assert_close((values.sum(1) - rise).abs(), gap, atol=1e-5, rtol=0)


def test_leaves_model_and_inputs_alone() -> None:
    (x, y), net = batch(), mlp()
    before = x.clone()
    with torch.no_grad():
        integrated_gradients(net, x, y)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_misuse() -> None:
    (x, y), net = batch(), mlp()
    with pytest.warns(UserWarning, match="1 of 7 inputs equal their baseline"):
        values = integrated_gradients(net, x, y, baseline=x[0]).values
    assert not values[0].any()
    with pytest.raises(ValueError, match=r"baseline has shape \(5,\)"):
        integrated_gradients(net, x, y, baseline=torch.zeros(5))
    with pytest.raises(TypeError, match=r"torch.int64, .*integrate_embedding"):
        integrated_gradients(net, x.long(), y)
    with pytest.raises(ValueError, match="no gradient"):
        integrated_gradients(lambda z: net(z).detach(), x, y)
    with pytest.raises(ValueError, match="training mode"):
        integrated_gradients(mlp().train(), x, y)
    with pytest.raises(ValueError, match=r"baseline is a list of 2 for 2 inputs; give a tuple"):
        integrated_gradients(lambda a, b: net(torch.cat([a, b], 1)), (x[:, :2], x[:, 2:]), y, baseline=[0.0, 1.0])
    with pytest.raises(ValueError, match="rule is 'simpson'"):
        integrated_gradients(net, x, y, rule="simpson")
    with pytest.raises(ValueError, match="steps is 0"):
        integrated_gradients(net, x, y, steps=0)
    with pytest.raises(ValueError, match="runs once"):
        integrate_embedding(Tokens().to(D).eval(), nn.Linear(2, 2), torch.zeros(2, 3, dtype=torch.int64), y[:2])


def test_a_network_that_begins_in_place() -> None:
    (x, y), net = batch(), mlp()
    spoiling, plain = nn.Sequential(nn.ELU(inplace=True), net).eval(), nn.Sequential(nn.ELU(), net).eval()
    before = x.clone()
    torch.testing.assert_close(
        integrated_gradients(spoiling, x, y).values, integrated_gradients(plain, x, y).values
    )  # fmt: skip
    assert torch.equal(x, before)


def test_an_embedding_that_is_changed_in_place_behind() -> None:
    class Spoiled(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.relu(self.embed(x), inplace=True).mean(dim=1))

    class Plain(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.relu(self.embed(x)).mean(dim=1))

    torch.manual_seed(0)
    plain, spoiled = Plain().double().eval(), Spoiled().double().eval()
    spoiled.load_state_dict(plain.state_dict())
    codes, target = torch.randint(11, (4, 6)), torch.tensor([0, 1, 2, 0])
    ours, theirs = (integrate_embedding(net, net.embed, codes, target, tolerance=None) for net in (spoiled, plain))
    torch.testing.assert_close(ours.values, theirs.values)
