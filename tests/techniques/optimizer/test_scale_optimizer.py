"""SCALE against its formulas (arXiv:2506.16659, algorithm 1)."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor, nn

from closures import closure_is_called_with_gradients_and_its_loss_given_back
from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.optimizer import scale_optimizer
from probatum.techniques.optimizer.scale_optimizer import ScaleOptimizer, gradient_variances, scale_direction

pytestmark = pytest.mark.fast


def own(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.norm = nn.LayerNorm(5)
        self.inner = nn.Linear(5, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.embed(ids).mT).mT.mean(dim=1)
        return self.head(torch.tanh(self.inner(self.norm(x))))


def net() -> Net:
    made = Net()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=own(i)))
    return made


def backward(model: nn.Module, seed: int = 0) -> None:
    model.zero_grad()
    ids = torch.randint(6, (8, 5), generator=own(seed))  # tokens 6, 7 and 8 never occur
    nn.functional.cross_entropy(model(ids), torch.arange(8) % 4).backward()


def test_every_hidden_row_moves_by_lr() -> None:
    model = net()
    optimizer = ScaleOptimizer.for_model(model, lr=0.01)
    for seed in range(3):
        before = copy.deepcopy(model.state_dict())
        backward(model, seed)
        optimizer.step()
        for name in ("conv.weight", "inner.weight", "head.weight"):
            moved = (model.state_dict()[name] - before[name]).flatten(1)
            torch.testing.assert_close(
                moved.square().mean(dim=1).sqrt(), torch.full((len(moved),), 0.01), atol=1e-6, rtol=0
            )
        moved = model.embed.weight.detach() - before["embed.weight"]
        torch.testing.assert_close(moved.square().mean(dim=0).sqrt(), torch.full((6,), 0.01), atol=1e-6, rtol=0)
        assert torch.equal(moved[6:], torch.zeros(3, 6))


def test_three_steps_match_the_reference_formulas() -> None:
    model = net()
    twin = copy.deepcopy(model)
    optimizer = ScaleOptimizer.for_model(model, lr=0.02, vector_lr=0.005, weight_decay=0.1)
    vectors = torch.optim.AdamW([p for p in twin.parameters() if p.ndim == 1], lr=0.005, weight_decay=0.1)
    momentum = torch.zeros_like(twin.head.weight)
    for seed in range(3):
        backward(model, seed)
        backward(twin, seed)
        optimizer.step()
        vectors.step()
        with torch.no_grad():
            momentum = 0.9 * momentum + 0.1 * twin.head.weight.grad
            for parameter, update, dim in (
                (twin.embed.weight, twin.embed.weight.grad, 0),
                (twin.conv.weight, twin.conv.weight.grad.flatten(1), 1),
                (twin.inner.weight, twin.inner.weight.grad, 1),
                (twin.head.weight, momentum, 1),
            ):
                scale = torch.mean(torch.square(update), dim=dim, keepdim=True).sqrt().clamp(min=1e-8)
                parameter.mul_(1 - 0.02 * 0.1).sub_(0.02 * (update / scale).view_as(parameter))
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_positive_row_scaling_of_the_gradient_changes_nothing() -> None:
    gradient = torch.randn(5, 8, dtype=torch.float64, generator=own(0))
    factors = torch.rand(5, 1, dtype=torch.float64, generator=own(1)) * 100 + 0.01
    torch.testing.assert_close(scale_direction(gradient * factors, "matrix"), scale_direction(gradient, "matrix"))


def test_state_is_the_last_layer_and_two_per_vector_entry() -> None:
    model = net()
    optimizer = ScaleOptimizer.for_model(model)
    backward(model)
    optimizer.step()
    numel = sum(v.numel() for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert numel == model.head.weight.numel() + 2 * vectors
    assert optimizer.state_bytes() == 4 * numel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_resumes_the_trajectory(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    optimizer = ScaleOptimizer.for_model(model, lr=0.01)
    backward(model)
    optimizer.step()
    again = copy.deepcopy(model)
    second = ScaleOptimizer.for_model(again, lr=0.5)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (again, second)):
        backward(one, 1)
        its.step()
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_override_and_tied_roles() -> None:
    model = net()
    optimizer = ScaleOptimizer.for_model(model, last_layer="inner", roles={"head.weight": "embedding"})
    roles = {id(p): group["role"] for group in optimizer.param_groups for p in group["params"]}
    assert [roles[id(p)] for p in (model.inner.weight, model.head.weight, model.embed.weight)] == [
        "last",
        "embedding",
        "embedding",
    ]


def test_momentum_placement() -> None:
    for placement, expected in (("none", 0), ("last", 1), ("all", 4)):
        model = net()
        optimizer = ScaleOptimizer.for_model(model, momentum_on=placement)
        backward(model)
        optimizer.step()
        assert sum("momentum" in state for state in optimizer.state.values()) == expected


def test_schedules_act_on_both_rates() -> None:
    optimizer = ScaleOptimizer.for_model(net(), lr=0.1, vector_lr=0.01)
    assert {group["role"]: group["lr"] for group in optimizer.param_groups} == {
        "matrix": 0.1,
        "embedding": 0.1,
        "last": 0.1,
        "vector": 0.01,
    }


def test_no_last_layer() -> None:
    with pytest.raises(ValueError, match="last_layer="):
        ScaleOptimizer(nn.Linear(3, 2).parameters())
    with pytest.raises(ValueError, match="last_layer="):
        ScaleOptimizer.for_model(nn.LayerNorm(3))


def test_plain_groups() -> None:
    model = net()
    optimizer = ScaleOptimizer(
        [{"params": [model.head.weight], "role": "last"}, {"params": [*model.inner.parameters()]}], lr=0.1
    )
    assert [(g["role"], len(g["params"])) for g in optimizer.param_groups] == [
        ("last", 1),
        ("matrix", 1),
        ("vector", 1),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"vector_lr": -1.0}, "vector_lr is -1.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"momentum_on": "first"}, "momentum_on is 'first'"),
        ({"normalisation": "l1"}, "normalisation is 'l1'"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleOptimizer.for_model(net(), **settings)


def test_sparse_gradient() -> None:
    model = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2))
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse=False"):
        ScaleOptimizer.for_model(model).step()


def test_gradient_variance_per_layer_leaves_gradients_alone() -> None:
    model = net()
    ids = torch.arange(8).view(2, 4) % 6
    same = gradient_variances(model, [lambda: model(ids).square().sum()] * 3)
    assert all(value < 1e-10 for value in same.values())
    assert set(same) == {"embed.weight", "conv.weight", "inner.weight", "head.weight"}
    scaled = gradient_variances(model, [lambda: model(ids).sum(), lambda: 3 * model(ids).sum()])
    (gradient,) = torch.autograd.grad(model(ids).sum(), model.head.weight)
    torch.testing.assert_close(torch.tensor(scaled["head.weight"]), 2 * gradient.square().sum())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="two or more"):
        gradient_variances(model, [lambda: model(ids).sum()])


def test_trains_on_the_bench() -> None:
    data = open_dataset("breast-cancer").prepare(0)
    run = fit("scale-optimizer(lr=0.002)", data, 1, training=Training(epochs=5))
    assert isinstance(run.optimizer, ScaleOptimizer)
    assert accuracy(run.model, data.test) > 0.9


def test_example() -> None:
    assert doctest.testmod(scale_optimizer).failed == 0


def test_a_new_group_must_say_its_role() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = ScaleOptimizer.for_model(net)
    extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="role is None"):
        optimizer.add_param_group({"params": [extra.weight]})
    optimizer.add_param_group({"params": [extra.weight], "role": "matrix"})
    assert optimizer.param_groups[-1]["lr"] == optimizer.defaults["lr"]


def test_a_head_registered_first_is_the_last_layer() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 2), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = HeadFirst()
    optimizer = ScaleOptimizer.for_model(model)
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    kept = [name for name, p in model.named_parameters() if p.ndim == 2 and optimizer.state.get(p)]
    assert kept == ["head.weight"]


def test_a_closure_is_called_with_gradients_and_its_loss_given_back() -> None:
    closure_is_called_with_gradients_and_its_loss_given_back(
        lambda weight: ScaleOptimizer([{"params": [weight], "role": "last"}])
    )
