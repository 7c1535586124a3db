"""DeepLIFT: completeness for every rule and layer, captum, and hand-worked cancellations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.data.open import open_dataset
from probatum.spec import Spec
from probatum.techniques.explain.deeplift.deeplift import RULES, deeplift
from probatum.train.baselines import build

pytestmark = pytest.mark.fast

D = torch.float64


def filled(net: nn.Module, seed: int = 0, scale: float = 0.5) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=D))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_var.abs_().add_(0.5)
    return net.eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Reused(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = nn.ReLU()
        self.other = act or self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.two(self.act(self.one(x)))))


class Everything(nn.Module):
    """Residual sums and differences, scaling, concatenation, pooling, functional forms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 3)
        self.shift = nn.Parameter(torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.conv1(x)))
        second = torch.tanh(self.conv2(first) + self.shift + 0.3) - 0.5 * first
        maps = self.pool(second + first)
        wide = torch.cat([F.avg_pool2d(maps, 2).mean(dim=(2, 3)), maps.flatten(2).amax(dim=2)], dim=1)
        return self.head(self.drop(F.gelu(wide.view(x.size(0), -1))) / 2.0)


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    table = Spec("table", "classes", (6,), 3, numeric=4, cardinalities=(5, 3))
    codes = torch.cat([draw(6, 4), torch.tensor([[1, 2], [4, 0], [0, 1], [3, 2], [2, 2], [1, 1.0]])], dim=1)
    return {
        "mlp": (nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.Sigmoid(), nn.Linear(9, 3)), draw(6, 5)),
        "reused": (Reused(), draw(6, 5)),
        "everything": (Everything(), draw(6, 1, 8, 8)),
        "resnet": (build(Spec("image", "classes", (1, 8, 8), 3)), draw(6, 1, 8, 8)),
        "series": (build(Spec("series", "classes", (2, 32), 3)), draw(6, 2, 32)),
        "table": (build(table), codes),
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", list(networks()))
def test_contributions_sum_to_the_difference(name: str, rule: str) -> None:
    net, x = networks()[name]
    filled(net, scale=0.3)
    y, start = (
        torch.tensor([0, 1, 2, 0, 1, 2]),
        torch.zeros_like(x) if name == "table" else 0.3 * draw(*x.shape, seed=4),
    )
    values, gap = deeplift(net, x, y, reference=start, rule=rule)
    rise = (net(x) - net(start)).detach().gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(values.flatten(1).sum(1), rise, atol=1e-4, rtol=1e-4)
    assert float(gap.max()) < 1e-9
    assert float(rise.abs().min()) > 1e-4


@pytest.mark.filterwarnings("ignore:Setting forward")  # captum tells of its hooks
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_rescale_is_captums(name: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is the witness")
    net, x = networks()[name]
    filled(net).double()
    if name == "resnet":  # captum refuses in-graph sums of modules it hooks; give it the plain stem instead
        net = nn.Sequential(net.stem, net.pool, nn.Flatten(), nn.Linear(16, 3)).double().eval()
    x, start, y = x.double(), 0.2 * draw(*x.shape, seed=7).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    ours = deeplift(net, x, y, reference=start, rule="rescale").values
    expected = attr.DeepLift(net).attribute(x.requires_grad_(), start, target=y)
    torch.testing.assert_close(ours, expected.detach(), atol=1e-8, rtol=1e-6)


def test_reveal_cancel_shares_a_minimum() -> None:
    class Minimum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gap, self.act = nn.Linear(2, 1, bias=False), nn.ReLU()
            self.gap.weight.data.copy_(torch.tensor([[1.0, -1.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] - self.act(self.gap(x))  # min(x1, x2)

    x, zero = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0]]), torch.zeros(3, dtype=torch.int64)
    revealed = deeplift(Minimum().eval(), x, zero, rule="reveal-cancel").values
    torch.testing.assert_close(revealed, torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
    rescaled = deeplift(Minimum().eval(), x, zero, rule="rescale").values
    torch.testing.assert_close(rescaled[1:], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def _released(net: nn.Sequential, x: list[float], start: list[float], target: int) -> list[float]:
    """RevealCancel of a dense ReLU network in scalars, as the released code goes about it: linear layers route differences of
    one sign by the weights' signs, at a difference of 0 half and half; an empty part has the mean slope on both sides of the
    other one."""
    layers = [(m.weight.detach().tolist(), m.bias.detach().tolist()) for m in net if isinstance(m, nn.Linear)]
    here, there, passes = x, start, []
    for depth, (weight, bias) in enumerate(layers):
        delta = [a - b for a, b in zip(here, there, strict=True)]
        terms = [[w * d for w, d in zip(row, delta, strict=True)] for row in weight]
        up, down = ([sum(t for t in row if (t > 0) is side) for row in terms] for side in (True, False))
        base = [b + sum(w * v for w, v in zip(row, there, strict=True)) for row, b in zip(weight, bias, strict=True)]
        passes.append((weight, delta, up, down, base))
        here, there = ([b + u + d for b, u, d in zip(base, up, down, strict=True)], base)
        if depth < len(layers) - 1:
            here, there = ([max(v, 0.0) for v in values] for values in (here, there))
    plus = minus = [float(k == target) for k in range(len(layers[-1][1]))]
    for depth in reversed(range(len(layers))):
        weight, delta, up, down, base = passes[depth]
        if depth < len(layers) - 1:
            pairs = [_revealed(b, u, d) for b, u, d in zip(base, up, down, strict=True)]
            plus = [p * gain for p, (gain, _) in zip(plus, pairs, strict=True)]
            minus = [m * loss for m, (_, loss) in zip(minus, pairs, strict=True)]
        back = []
        for i, d in enumerate(delta):
            rising = sum(row[i] * (plus[k] if row[i] > 0 else minus[k]) for k, row in enumerate(weight))
            falling = sum(row[i] * (minus[k] if row[i] > 0 else plus[k]) for k, row in enumerate(weight))
            back.append(rising if d > 0 else falling if d < 0 else (rising + falling) / 2)
        plus = minus = back
    return [m * d for m, d in zip(plus, passes[0][1], strict=True)]


def _revealed(base: float, up: float, down: float) -> tuple[float, float]:
    def f(v: float) -> float:
        return max(v, 0.0)

    def per_unit(part: float, other: float) -> float:
        if part == 0:
            return (float(base > 0) + float(base + other > 0)) / 2
        return ((f(base + part) - f(base)) + (f(base + other + part) - f(base + other))) / (2 * part)

    return per_unit(up, down), per_unit(down, up)


@pytest.mark.parametrize("seed", range(4))
def test_reveal_cancel_is_the_released_one(seed: int) -> None:
    net = filled(
        nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)), seed=seed, scale=1.0
    ).double()
    x, start = draw(12, 5, seed=seed + 9).double(), 0.4 * draw(12, 5, seed=seed + 20).double()
    x[:, 1] = start[:, 1]
    y = torch.arange(12) % 3
    found = deeplift(net, x, y, reference=start, rule="reveal-cancel").values
    for i in range(12):
        expected = _released(net, x[i].tolist(), start[i].tolist(), int(y[i]))
        assert found[i].tolist() == pytest.approx(expected, abs=1e-9)


def test_saturated_and() -> None:
    net = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    for tensor, value in zip(net.parameters(), ([[-1.0, -1.0]], [1.0], [[-1.0]], [1.0]), strict=True):
        tensor.data.copy_(torch.tensor(value))  # 1 - relu(1 - x1 - x2), flat where x1 + x2 > 1
    values = deeplift(net, torch.ones(1, 2), torch.tensor([0])).values
    torch.testing.assert_close(values, torch.tensor([[0.5, 0.5]]))


def test_max_pool_shares_by_hand() -> None:
    net = nn.Sequential(nn.MaxPool1d(2), nn.Flatten()).eval()
    x, start = torch.tensor([[[5.0, 3.0]]]), torch.tensor([[[1.0, 2.0]]])
    # winners: first at x, second at the reference; orders: first then second 3 + 0, second then first 1 + 2
    values = deeplift(net, x, torch.tensor([0]), reference=start).values
    torch.testing.assert_close(values, torch.tensor([[[2.5, 0.5]]]))


def test_linear_net_by_hand_and_zero_difference() -> None:
    net = filled(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    x, start, y = draw(5, 4), draw(5, 4, seed=2), torch.tensor([0, 1, 2, 2, 0])
    x[0, 1] = start[0, 1]
    expected = (net[1].weight @ net[0].weight)[y] * (x - start)
    for rule in RULES:
        torch.testing.assert_close(deeplift(net, x, y, reference=start, rule=rule).values, expected.detach())
    still = deeplift(filled(networks()["mlp"][0]), draw(2, 5), y[:2], reference=draw(2, 5), rule="reveal-cancel")
    assert not still.values.any()


def test_a_reused_relu_is_its_clone() -> None:
    x, y = draw(4, 5), torch.tensor([0, 1, 2, 0])
    for rule in RULES:
        reused = deeplift(filled(Reused()), x, y, rule=rule).values
        torch.testing.assert_close(reused, deeplift(filled(Reused(nn.ReLU())), x, y, rule=rule).values)


def test_rules_differ_where_they_should() -> None:
    net, x = networks()["resnet"]
    filled(net)
    y = torch.zeros(6, dtype=torch.int64)
    values = {rule: deeplift(net, x, y, rule=rule).values for rule in RULES}
    torch.testing.assert_close(values["mixed"], values["rescale"])  # all its nonlinearities lie behind convolutions
    assert not torch.allclose(values["reveal-cancel"], values["rescale"], atol=1e-3)
    flat, z = networks()["mlp"]
    filled(flat)
    torch.testing.assert_close(deeplift(flat, z, y).values, deeplift(flat, z, y, rule="reveal-cancel").values)


def test_softmax_is_left_out_contrast_and_several_references() -> None:
    net, x = networks()["mlp"]
    filled(net)
    y, other = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 2, 0, 2, 0, 1])
    ours = deeplift(net, x, y).values
    torch.testing.assert_close(deeplift(nn.Sequential(net, nn.Softmax(1)).eval(), x, y).values, ours)
    both = deeplift(net, x, y, rule="rescale", contrast=other).values
    columns = deeplift(net, x, y[:, None], rule="rescale", contrast=other[:, None]).values
    assert torch.equal(columns, both)
    apart = deeplift(net, x, y, rule="rescale").values - deeplift(net, x, other, rule="rescale").values
    torch.testing.assert_close(both, apart)
    mean = deeplift(net, x, y, reference=[0.0, 1.0], chunk=4).values
    torch.testing.assert_close(mean, (ours + deeplift(net, x, y, reference=1.0).values) / 2)


def test_leaves_the_model_alone() -> None:
    net, x = networks()["everything"]
    filled(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    deeplift(net, x, torch.zeros(6, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in net.parameters())


def test_trained_on_the_bench() -> None:
    data = open_dataset("digits").prepare(1)
    net = build(data.spec).eval()
    found = deeplift(net, data.test.x[:20], data.test.y[:20])
    assert found.values.shape == (20, 1, 8, 8)
    assert float(found.gap.max()) < 1e-6


class Tokens(nn.Module):
    """Every number times a vector of its own, as in embeddings of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.head = nn.Parameter(torch.zeros(5, 4)), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.unsqueeze(2) * self.vectors).relu().flatten(1))


@pytest.mark.parametrize("rule", RULES)
def test_broadcast_products(rule: str) -> None:
    net, x, y = filled(Tokens()), draw(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    values, gap = deeplift(net, x, y, rule=rule)
    rise = (net(x) - net(torch.zeros_like(x))).detach().gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(values.sum(1), rise, atol=1e-5, rtol=1e-5)
    assert float(gap.max()) < 1e-9


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 / (x + 9.0)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_misuse() -> None:
    net, x, y = filled(nn.Sequential(nn.Linear(5, 4), nn.ReLU())), draw(3, 5), torch.tensor([0, 1, 2])
    with pytest.raises(TypeError, match=r"LayerNorm \(node '_1'\) has no rule"):
        deeplift(nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)).eval(), x, y)
    with pytest.raises(ValueError, match=r"reference has shape \(2, 5\) for inputs \(3, 5\)"):
        deeplift(net, x, y, reference=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="training mode"):
        deeplift(nn.Linear(5, 4), x, y)
    with pytest.raises(TypeError, match=r"truediv .* has no rule"):
        deeplift(Inverse().eval(), x, y)
    with pytest.raises(ValueError, match="cannot be traced"):
        deeplift(Branching().eval(), x, y)
    with pytest.raises(TypeError, match="model is function"):
        deeplift(lambda z: z, x, y)
    with pytest.raises(ValueError, match="rule is 'gradient'"):
        deeplift(net, x, y, rule="gradient")
    with pytest.raises(ValueError, match=r"labels are 0 \.\. 3"):
        deeplift(net, x, y + 2)


class Residual(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.act, self.inplace = nn.ReLU(inplace=inplace), inplace

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = self.act(x)
        z = self.two(y)
        if self.inplace:
            z += x  # x is what the activation has made of it
        else:
            z = z + y
        return self.head(F.relu(z, inplace=self.inplace))


@pytest.mark.parametrize("rule", RULES)
def test_operations_in_place_are_explained_as_what_they_compute(rule: str) -> None:
    plain, spoiling = filled(Residual(False)).eval(), filled(Residual(True)).eval()
    x, target = draw(4, 5), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(spoiling(x), plain(x))
    ours, theirs = deeplift(spoiling, x, target, rule=rule), deeplift(plain, x, target, rule=rule)
    torch.testing.assert_close(ours.values, theirs.values)
    assert float(ours.gap.max()) < 1e-5
    assert spoiling.act.inplace


@pytest.mark.parametrize("function", [lambda h: h * h, lambda h: torch.ones(3).div(h)])
def test_products_with_itself_and_quotients_by_it_have_no_rule(function: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.layer(x))

    with pytest.raises(TypeError, match="has no rule"):
        deeplift(Net().eval(), draw(4, 5), torch.tensor([0, 1, 2, 0]), rule="rescale")


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x), self.training))


@pytest.mark.parametrize("rule", RULES)
def test_dropout_as_a_function_is_left_out_where_it_drops_nothing(rule: str) -> None:
    x, target = draw(4, 5), torch.tensor([0, 1, 2, 0])
    plain = filled(Wrapped(lambda h, training: F.relu(h))).eval()
    expected = deeplift(plain, x, target, rule=rule).values
    for function in (
        lambda h, training: F.dropout(F.relu(h), 0.5, training),
        lambda h, training: F.relu(F.dropout(h, p=0.5, training=training, inplace=True)),
        lambda h, training: F.alpha_dropout(F.relu(h)),
    ):
        net = filled(Wrapped(function)).eval()
        torch.testing.assert_close(deeplift(net, x, target, rule=rule).values, expected)
    for always in (lambda h, training: F.dropout(F.relu(h)), lambda h, training: F.dropout(F.relu(h), 0.5, True)):
        with pytest.raises(TypeError, match=r"dropout .* has no rule"):
            deeplift(filled(Wrapped(always)).eval(), x, target, rule=rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda h: torch.add(F.relu(h), h.tanh(), alpha=-2), lambda h: F.relu(h) - 2 * h.tanh()),
        (lambda h: F.relu(h).add(h.tanh(), alpha=-1), lambda h: F.relu(h) - h.tanh()),
        (lambda h: torch.sub(F.relu(h), h.tanh(), alpha=-2), lambda h: F.relu(h) + 2 * h.tanh()),
        (lambda h: torch.sub(F.relu(h), h.tanh(), alpha=3), lambda h: F.relu(h) - 3 * h.tanh()),
    ],
)
def test_sums_with_a_factor_are_sums_and_differences(
    rule: str, one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]
) -> None:
    x, target = draw(4, 5), torch.tensor([0, 1, 2, 0])
    nets = [filled(Wrapped(lambda h, _, f=f: F.relu(f(h)))).eval() for f in (one, other)]
    torch.testing.assert_close(nets[0](x), nets[1](x))
    found = [deeplift(net, x, target, rule=rule).values for net in nets]
    torch.testing.assert_close(*found)
