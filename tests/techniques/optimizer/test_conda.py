"""Conda against AdamW, pytorch_optimizer and its invariances (arXiv:2509.24218)."""

from __future__ import annotations

import copy
import doctest
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from closures import closure_is_called_with_gradients_and_its_loss_given_back
from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.optimizer import conda
from probatum.techniques.optimizer.conda import Conda, momentum_basis, project, project_back

pytestmark = pytest.mark.fast


def own(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=own(seed))


def run(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        for i, parameter in enumerate(parameters):
            parameter.grad = draw(*parameter.shape, seed=100 * step + i).to(parameter.dtype)
        optimizer.step()


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=7 + i)) for i, shape in enumerate(shapes)]


def test_identity_basis_is_adamw() -> None:
    ours, theirs = parameters((6, 4), (3, 5), (5,)), parameters((6, 4), (3, 5), (5,))
    run(Conda(ours, lr=1e-2, basis="identity"), ours, 20)
    run(torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0), theirs, 20)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_projection_and_back_is_the_identity(shape: tuple[int, int]) -> None:
    basis, x = momentum_basis(draw(*shape)), draw(*shape, seed=1)
    assert basis.shape == (min(shape), min(shape))
    torch.testing.assert_close(project_back(project(x, basis), basis), x)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_rotating_the_short_side_rotates_the_updates(shape: tuple[int, int]) -> None:
    turn = torch.linalg.qr(draw(min(shape), min(shape), seed=5))[0]

    def rotate(x: Tensor) -> Tensor:
        return x @ turn if shape[0] >= shape[1] else turn.mT @ x

    plain, turned = (nn.Parameter(torch.zeros(*shape, dtype=torch.float64)) for _ in range(2))
    first, second = Conda([plain], lr=0.1, gap=1), Conda([turned], lr=0.1, gap=1)
    for step in range(4):
        plain.grad = draw(*shape, seed=step)
        turned.grad = rotate(plain.grad)
        first.step()
        second.step()
        torch.testing.assert_close(turned.detach().norm(), plain.detach().norm())
        torch.testing.assert_close(turned.detach(), rotate(plain.detach()))


@pytest.mark.parametrize("gap", [1, 1000])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parity_with_pytorch_optimizer(gap: int, weight_decay: float) -> None:
    witness = pytest.importorskip("pytorch_optimizer", reason="witness for Conda")
    shapes = ((6, 4), (4, 6), (5, 5), (7,))
    ours, theirs = ([nn.Parameter(p.float()) for p in parameters(*shapes)] for _ in range(2))
    run(Conda(ours, lr=1e-2, weight_decay=weight_decay, gap=gap, scale=0.5), ours, 12)
    other = witness.Conda(theirs, lr=1e-2, weight_decay=weight_decay, update_proj_gap=gap, scale=0.5)
    run(other, theirs, 12)
    for a, b in zip(ours, theirs, strict=True):
        # AdamW decays vectors before their step, the witness after it: apart by lr^2 * weight_decay a step
        torch.testing.assert_close(a, b, atol=2e-5 if a.ndim == 2 else 2e-5 + 12 * 1e-4 * weight_decay, rtol=1e-5)


def test_one_step_by_hand() -> None:
    (weight,) = parameters((4, 3))
    before, gradient = weight.detach().clone(), draw(4, 3, seed=0)
    v = torch.linalg.svd(0.1 * gradient, full_matrices=False)[2].mT
    rotated = gradient @ v
    expected = before - 0.01 * (0.001**0.5 / 0.1) * ((0.1 * rotated) / ((0.001 * rotated**2).sqrt() + 1e-8)) @ v.mT
    run(Conda([weight], lr=0.01), [weight], 1)
    torch.testing.assert_close(weight.detach(), expected)


def test_basis_is_reused_between_refreshes_and_second_moment_not_rotated() -> None:
    (weight,) = parameters((4, 3))
    optimizer = Conda([weight], gap=3)
    bases = []
    for step in range(5):
        run(optimizer, [weight], 1, start=step)
        bases.append(optimizer.state[weight]["basis"].clone())
    same = [torch.equal(a, b) for a, b in pairwise(bases)]
    assert same == [True, True, False, True]
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for step, basis in enumerate(bases):
        expected = 0.999 * expected + 0.001 * (draw(4, 3, seed=100 * step) @ basis).square()
    torch.testing.assert_close(optimizer.state[weight]["second"], expected)


def test_convolutions_are_flattened() -> None:
    conv, flat = parameters((6, 2, 3, 3), (6, 18))
    with torch.no_grad():
        flat.copy_(conv.flatten(1))
    first, second = Conda([conv]), Conda([flat])
    for step in range(3):
        conv.grad = draw(6, 2, 3, 3, seed=step)
        flat.grad = conv.grad.flatten(1)
        first.step()
        second.step()
    assert torch.equal(conv.flatten(1), flat)


def test_bfloat16_weights_keep_float32_state() -> None:
    weight = nn.Parameter(draw(4, 3).bfloat16())
    optimizer = Conda([weight], lr=0.1, gap=1)
    run(optimizer, [weight], 2)
    assert weight.dtype == torch.bfloat16
    assert {optimizer.state[weight][name].dtype for name in ("momentum", "second", "basis")} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_state_dict_resumes_the_trajectory(dtype: torch.dtype) -> None:
    ours = [nn.Parameter(p.detach().to(dtype)) for p in parameters((4, 3), (5,))]
    optimizer = Conda(ours, lr=0.01, gap=4)
    run(optimizer, ours, 3)
    again = [nn.Parameter(p.detach().clone()) for p in ours]
    second = Conda(again, lr=0.5)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, ours, 4, start=3)
    run(second, again, 4, start=3)
    for a, b in zip(ours, again, strict=True):
        assert torch.equal(a, b)


def test_for_model_leaves_embeddings_and_vectors_to_adamw() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    rotated, others = Conda.for_model(model).param_groups
    assert [id(p) for p in rotated["params"]] == [id(model[1].weight), id(model[3].weight)]
    assert not others["rotate"]
    assert len(others["params"]) == 5
    again = Conda.for_model(model, roles={"3.weight": "embedding"})
    assert len(again.param_groups[0]["params"]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gap": 0}, "gap is 0"),
        ({"gap": 1.5}, "gap is 1.5"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"basis": "random"}, "basis is 'random'"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conda(parameters((3, 2)), **settings)


def test_sparse_and_complex_gradients() -> None:
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        Conda(table.parameters()).step()
    weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(TypeError, match="complex"):
        Conda([weight]).step()


def test_trains_on_the_bench() -> None:
    data = open_dataset("breast-cancer").prepare(0)
    trained = fit("conda(lr=0.002)", data, 1, training=Training(epochs=5))
    assert isinstance(trained.optimizer, Conda)
    assert accuracy(trained.model, data.test) > 0.9


def test_example() -> None:
    assert doctest.testmod(conda).failed == 0


def test_vectors_of_half_precision_keep_float32_state_over_a_restart() -> None:
    ours = [nn.Parameter(p.detach().bfloat16()) for p in parameters((4, 3), (5,))]
    optimizer = Conda(ours, lr=0.01, gap=4)
    run(optimizer, ours, 2)
    again = [nn.Parameter(p.detach().clone()) for p in ours]
    second = Conda(again)
    second.load_state_dict(optimizer.state_dict())
    assert {second.state[again[1]][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert torch.equal(second.state[again[1]]["exp_avg_sq"], optimizer.state[ours[1]]["exp_avg_sq"])


def test_gradients_that_are_not_finite_make_weights_that_are_not() -> None:
    ours = parameters((4, 3), (3, 4))
    optimizer = Conda(ours)
    for parameter in ours:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    assert all(parameter.isnan().all() for parameter in ours)


def test_a_closure_is_called_with_gradients_and_its_loss_given_back() -> None:
    closure_is_called_with_gradients_and_its_loss_given_back(lambda weight: Conda([weight]))
