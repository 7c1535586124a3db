"""What holds a network, against brute force, closed forms and other solvers."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from probatum.numerics.continual.stages import class_mask
from probatum.techniques.stream.class_incremental.penalties import (
    PathIntegral,
    align,
    distillation,
    fisher_diagonal,
    project,
    put_weight,
    quadratic,
    weights_of,
)
from small_networks import generator, normal, small

pytestmark = pytest.mark.fast


def test_fisher_information_is_the_mean_squared_gradient() -> None:
    net, x, seen = small().double(), normal(10, 5).double(), class_mask((0, 1, 3), 4)
    found = fisher_diagonal(net, x, seen, generator(3), chunk=4)
    draw = generator(3)
    labels = torch.cat(
        [
            torch.multinomial(net(rows).masked_fill(~seen, -math.inf).softmax(1), 1, generator=draw).squeeze(1)
            for rows in x.split(4)
        ]
    )
    assert not (labels == 2).any()
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for row, label in zip(x, labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(row[None]).masked_fill(~seen, -math.inf), label[None]).backward()
        for name, p in net.named_parameters():
            expected[name] += p.grad.square() / 10  # type: ignore[union-attr]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach())
        assert bool((found[name] >= 0).all())


def test_the_quadratic_penalty_is_zero_at_the_old_weights_and_half_the_weighted_square() -> None:
    net = small()
    reference = weights_of(net)
    importance = {name: torch.rand(p.shape, generator=generator()) for name, p in net.named_parameters()}
    assert quadratic(net, reference, importance).item() == 0.0
    with torch.no_grad():
        for p in net.parameters():
            p += 0.5
    expected = sum(float(value.sum()) for value in importance.values()) * 0.25 / 2
    assert quadratic(net, reference, importance).item() == pytest.approx(expected, rel=1e-5)


def test_path_integral_by_hand() -> None:
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0]]))
    path = PathIntegral(damping=0.1)
    path.begin(net)
    for gradient, step in (([1.0, -2.0], [-0.5, 0.5]), ([2.0, 1.0], [-0.1, 0.2])):
        net.weight.grad = torch.tensor([gradient])
        path.before(net, 1.0)
        with torch.no_grad():
            net.weight += torch.tensor([step])
        path.after(net)
    path.end(net)
    omega = [0.5 + 0.2, 1.0 - 0.2]
    expected = [omega[0] / (0.6**2 + 0.1), omega[1] / (0.7**2 + 0.1)]
    assert path.importance is not None
    assert path.importance["weight"].flatten().tolist() == pytest.approx(expected, rel=1e-5)
    path.begin(net)
    net.weight.grad = torch.zeros(1, 2)
    path.before(net, 3.0)
    assert not net.weight.grad.any(), "no penalty where no weight has moved"
    with torch.no_grad():
        net.weight += 0.25
    path.after(net)
    net.weight.grad = torch.zeros(1, 2)
    path.before(net, 3.0)
    assert net.weight.grad.flatten().tolist() == pytest.approx([2 * 3 * 0.25 * value for value in expected], rel=1e-5)
    path.after(net)
    path.end(net)
    assert all(bool((value >= 0).all()) for value in path.importance.values())
    with pytest.raises(ValueError, match="damping is 0"):
        PathIntegral(0.0)


def test_distillation_is_the_scaled_divergence_and_zero_where_nothing_changed() -> None:
    output, teacher = normal(8, 5).double().requires_grad_(), normal(8, 5, seed=1).double()
    p, q = (teacher / 3).softmax(1), (output / 3).softmax(1)
    torch.testing.assert_close(distillation(output, teacher, 3.0), 9 * (p * (p / q).log()).sum(1).mean())
    assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda o: distillation(o, teacher, 2.0), (output,))


def test_a_parametrised_head_is_aligned_through_its_parametrisation() -> None:
    head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    before, old = head.weight.detach().clone(), class_mask((0, 1, 2), 5)
    before[3:] *= 4
    put_weight(head, before)
    torch.testing.assert_close(head.weight.detach(), before)
    align(head, old, ~old)
    norms = head.weight.detach().norm(dim=1)
    assert float(norms[old].mean()) == pytest.approx(float(norms[~old].mean()), rel=1e-5)
    torch.testing.assert_close(head.weight.detach()[:3], before[:3])


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_projection_solves_the_quadratic_programme(seed: int, margin: float) -> None:
    memory, gradient = normal(4, 12, seed=seed).double(), normal(12, seed=seed + 50).double()
    gradient = gradient - 2 * memory.sum(dim=0) * (seed > 0)
    found = project(gradient, memory, margin)
    if bool((memory @ gradient >= 0).all()):
        assert torch.equal(found, gradient)
        return
    solved = minimize(
        lambda v: 0.5 * float(((torch.tensor(v) @ memory) + gradient).square().sum()),
        [margin + 1.0] * 4,
        bounds=[(margin, None)] * 4,
        tol=1e-14,
    )
    torch.testing.assert_close(found, gradient + torch.tensor(solved.x) @ memory, atol=1e-3, rtol=1e-3)
    assert bool((memory @ found >= -1e-8).all())
    if margin == 0.0:  # nothing that satisfies the constraints is nearer
        for other in itertools.islice((found + 0.1 * normal(12, seed=s).double() for s in range(200)), 200):
            if bool((memory @ other >= 0).all()):
                assert float((other - gradient).norm()) >= float((found - gradient).norm()) - 1e-9


def test_what_is_not_finite_is_left_to_the_loop() -> None:
    broken = torch.full((12,), math.nan)
    assert torch.equal(project(broken, torch.stack([normal(12)])).isnan(), broken.isnan())


def test_projection_takes_repeated_and_empty_memories() -> None:
    row = normal(12).double()
    found = project(-row, torch.stack([row, row, 0 * row]))
    assert float((row @ found).abs()) < 1e-6


def test_alignment_makes_mean_norms_equal() -> None:
    head = nn.Linear(6, 5)
    with torch.no_grad():
        head.weight[3:] *= 4
    before = head.weight.detach().clone()
    old = class_mask((0, 1, 2), 5)
    factor = align(head, old, ~old)
    norms = head.weight.detach().norm(dim=1)
    assert float(norms[old].mean()) == pytest.approx(float(norms[~old].mean()), rel=1e-5)
    assert torch.equal(head.weight[old], before[old])
    torch.testing.assert_close(head.weight[~old], before[~old] * factor)


def test_fisher_of_a_network_that_begins_in_place_leaves_the_rows() -> None:
    x, seen = normal(7, 5), torch.tensor([True, True, False, True])
    found = []
    for inplace in (False, True):
        net, rows = nn.Sequential(nn.LeakyReLU(0.3, inplace=inplace), small()), x.clone()
        found.append(fisher_diagonal(net, rows, seen, generator()))
        assert torch.equal(rows, x)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [300.0, 1e-4])
def test_fisher_of_half_precision_is_that_of_float32(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).to(dtype), (scale * torch.randn(40, 4)).to(dtype)
    seen = torch.ones(3, dtype=torch.bool)
    found = fisher_diagonal(model, x, seen, generator(1))
    wanted = fisher_diagonal(copy.deepcopy(model).float(), x.float(), seen, generator(1))
    assert model.weight.dtype == dtype
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0.0)


def test_paths_of_half_precision_gather_small_steps() -> None:
    model, path = nn.Linear(1, 1, bias=False).half(), PathIntegral()
    path.begin(model)
    model.float()  # as it is trained
    for _ in range(10):
        model.weight.grad = torch.full((1, 1), 1e-4)
        path.before(model, 0.0)
        with torch.no_grad():
            model.weight -= 1e-4
        path.after(model)
    model.half()
    path.end(model)
    assert path.importance is not None
    assert float(path.importance["weight"]) == pytest.approx(1e-7 / 1e-3, rel=0.05)
