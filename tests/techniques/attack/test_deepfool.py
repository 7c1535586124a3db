"""DeepFool against affine closed forms, brute force, and a certified lower bound."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from probatum.spec import Spec
from probatum.techniques.attack.deepfool import boundary_step, deepfool, fool, robustness

pytestmark = pytest.mark.fast

D = torch.float64


def affine(inputs: int = 6, classes: int = 4) -> nn.Linear:
    layer = nn.Linear(inputs, classes).to(D).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, inputs, generator=generator))
        layer.bias.copy_(torch.randn(classes, generator=generator))
    return layer


def mlp() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).to(D)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=D) / 3)
    return net.eval()


def points(n: int = 40) -> Tensor:
    return 2 * torch.randn(n, 6, dtype=D, generator=torch.Generator().manual_seed(1))


def length_of(w: Tensor, power: float) -> float:
    """A p-norm by logarithms, for powers of any size."""
    return float(w.abs().max()) if power == math.inf else float((power * w.abs().log()).logsumexp(0).div(power).exp())


@pytest.mark.parametrize("norm", [1, 1.001, 1.01, 1.5, 2, 3, math.inf])
def test_affine_distance_is_exact_in_one_step(norm: float) -> None:
    layer, x = affine(), points()
    output = layer(x).detach()
    y = output.argmax(1)
    dual = {1: math.inf, math.inf: 1.0}.get(norm) or norm / (norm - 1)
    expected = []
    for f, t in zip(output, y.tolist(), strict=True):
        rivals = [k for k in range(4) if k != t]
        lengths = [length_of((layer.weight[k] - layer.weight[t]).detach(), dual) for k in rivals]
        expected.append(min(float(f[t] - f[k]) / length for k, length in zip(rivals, lengths, strict=True)))
    found = fool(layer, x, y, norm=norm, slack=0.0)
    distance = torch.linalg.vector_norm(found.inputs - x, norm, dim=1) / 1.02
    torch.testing.assert_close(distance, torch.tensor(expected, dtype=D), atol=1e-5, rtol=0)
    assert bool(found.left.all())
    assert set(found.steps.tolist()) == {1}


def test_step_lands_on_the_linearised_boundary() -> None:
    generator = torch.Generator().manual_seed(4)
    w, g = torch.randn(9, 3, 5, dtype=D, generator=generator), -torch.rand(9, 3, dtype=D, generator=generator)
    for norm in (1, 2, 4, math.inf):
        after = g + (w * boundary_step(w, g, norm)[:, None, :]).sum(2)
        assert float(after.max(dim=1).values.abs().max()) < 1e-10  # the nearest is reached, none is overrun
    w[0] = 0.0
    assert not boundary_step(w, g, 2)[0].any()


def test_nonlinear_net_is_left_close_to_the_smallest_change() -> None:
    net, grid = mlp(), torch.linspace(-6, 6, 481, dtype=D)

    def plane(z: Tensor) -> Tensor:  # a two-dimensional slice, small enough for brute force
        return net(torch.cat([z, torch.ones(len(z), 4, dtype=D)], dim=1))

    x = points(12)[:, :2]
    y = plane(x).argmax(1)
    everywhere = torch.tensor(list(itertools.product(grid.tolist(), grid.tolist())), dtype=D)
    classes = plane(everywhere).argmax(1)
    found = fool(plane, x, y)
    assert bool(found.left.all())
    moved = (found.inputs - x).norm(dim=1)
    smallest = torch.stack([(everywhere[classes != y[i]] - x[i]).norm(dim=1).min() for i in range(len(x))])
    assert bool((moved >= smallest - 0.02).all())  # the grid is 0.025 wide
    assert float((moved / smallest).median()) < 1.3  # a rough random net; 1.02 of it is the overshoot


def test_never_below_a_certified_radius() -> None:
    net, x = mlp(), points()
    output = net(x).detach()
    y = output.argmax(1)
    lipschitz = math.prod(float(torch.linalg.matrix_norm(net[i].weight.detach(), 2)) for i in (0, 2, 4))
    top = output.topk(2, dim=1).values
    radius = (top[:, 0] - top[:, 1]) / (math.sqrt(2) * lipschitz)
    found = fool(net, x, y)
    assert bool(found.left.all())
    assert bool(((found.inputs - x).norm(dim=1) >= radius).all())


def test_batch_equals_one_by_one() -> None:
    net, x = mlp(), points(10)
    y = net(x).argmax(1)
    whole = deepfool(net, x, y)
    single = torch.cat([deepfool(net, x[i : i + 1], y[i : i + 1]) for i in range(10)])
    torch.testing.assert_close(whole, single)


def test_misclassified_examples_stay_put_and_zero_steps_do_nothing() -> None:
    net, x = mlp(), points()
    y = (net(x).argmax(1) + 1) % 4
    found = fool(net, x, y)
    assert torch.equal(found.inputs, x)
    assert bool(found.left.all())
    assert torch.equal(deepfool(net, x, net(x).argmax(1), max_steps=0), x)
    with pytest.raises(ValueError, match="no example was moved"):
        robustness(x, found)


def test_box_holds_and_is_tested_after_clipping() -> None:
    net, x = mlp(), points().clamp(-1, 1)
    y = net(x).argmax(1)
    found = fool(net, x, y, box=(-1.0, 1.0))
    assert float(found.inputs.abs().max()) <= 1.0
    assert torch.equal(net(found.inputs).argmax(1) != y, found.left)
    assert found.left.double().mean() > 0.5


def test_a_box_is_kept_where_the_boundary_is_looked_for() -> None:
    layer = nn.Linear(2, 2, bias=False).to(D).eval()
    layer.weight.data.copy_(torch.tensor([[0.0, 0.0], [3.0, 1.0]]))  # class 1 where 3 a + b > 0
    x = torch.tensor([[-0.9, -0.6]], dtype=D)
    far = nn.Sequential(
        layer, Shift(3.3)
    ).eval()  # class 1 where 3 a + b > 3.3, which (1, 0.3) is and no (a <= 1, b < 0.3)
    found = fool(far, x, torch.tensor([0]), box=(-1.0, 1.0), slack=1e-3)
    assert bool(found.left.all())
    assert float(found.inputs[0, 0]) == 1.0
    assert 0.3 < float(found.inputs[0, 1]) < 0.35


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, z: Tensor) -> Tensor:
        return z - torch.tensor([0.0, self.by], dtype=z.dtype)


def test_a_network_that_begins_in_place_and_the_inputs_stay_what_they_are() -> None:
    net, x = mlp(), points(6)
    spoiling, plain = (
        nn.Sequential(nn.LeakyReLU(0.5, inplace=True), net).eval(),
        nn.Sequential(nn.LeakyReLU(0.5), net).eval(),
    )
    before, y = x.clone(), plain(x).argmax(1)
    assert torch.equal(deepfool(spoiling, x, y), deepfool(plain, x, y))
    assert torch.equal(x, before)


def test_robustness_is_the_mean_relative_norm() -> None:
    layer, x = affine(), points()
    found = fool(layer, x, layer(x).argmax(1))
    expected = ((found.inputs - x).norm(dim=1) / x.norm(dim=1)).mean()
    assert robustness(x, found) == pytest.approx(float(expected))


def test_few_candidates_cost_less_and_identical_classes_are_passed_over() -> None:
    layer, x = affine(), points()
    y = layer(x).argmax(1)
    assert bool(fool(layer, x, y, candidates=1).left.all())
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1].expand(4, -1))
        layer.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    still = fool(layer, x, torch.zeros(40, dtype=torch.int64))
    assert torch.equal(still.inputs, x)
    assert not still.left.any()


def test_works_without_gradients_and_leaves_no_trace() -> None:
    net, x = mlp(), points(5)
    before = x.clone()
    with torch.no_grad():
        deepfool(net, x, net(x).argmax(1))
    assert torch.equal(x, before)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_misuse() -> None:
    net, x = mlp(), points(4)
    y = net(x).argmax(1)
    with pytest.raises(ValueError, match="two logits or more"):
        deepfool(nn.Linear(6, 1).to(D).eval(), x, y)
    with pytest.warns(UserWarning, match="sum to 1"):
        deepfool(lambda z: net(z).softmax(1), x, y, max_steps=1)
    with pytest.raises(TypeError, match=r"torch.uint8.*float\(\) / 255"):
        deepfool(net, x.to(torch.uint8), y)
    with pytest.raises(ValueError, match="training mode"):
        deepfool(mlp().train(), x, y)
    with pytest.raises(ValueError, match=r"norm is 0\.5"):
        deepfool(net, x, y, norm=0.5)
    with pytest.raises(ValueError, match="overshoot is -1"):
        deepfool(net, x, y, overshoot=-1)
    with pytest.raises(ValueError, match="box is"):
        deepfool(net, x, y, box=(1.0, 0.0))
    assert torch.equal(deepfool(net, x, y[:, None]), deepfool(net, x, y))
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        deepfool(net, x, y)
    with pytest.raises(ValueError, match="expected"):
        deepfool(net, x, y[:2])


def test_codes_and_masked_steps_stay() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.randn(8, 3, 4)
    x[:, -1] = torch.tensor([1.0, 1, 1, 0])
    y = net(x).argmax(dim=1)
    spec = Spec("series", "classes", (3, 4), 3, masked=True)
    found = fool(net, x, y, spec=spec, box=(-50.0, 50.0))
    assert found.left.all()
    assert torch.equal(found.inputs[:, -1], x[:, -1])
    assert torch.equal(found.inputs[..., -1], x[..., -1])
    rows = torch.cat([torch.randn(8, 2), torch.randint(3, (8, 1)).float()], dim=1)
    table, linear = Spec("table", "classes", (3,), 3, numeric=2, cardinalities=(3,)), nn.Linear(3, 3).eval()
    moved = fool(linear, rows, linear(rows).argmax(dim=1), spec=table)
    assert moved.left.any()
    assert torch.equal(moved.inputs[:, 2], rows[:, 2])
