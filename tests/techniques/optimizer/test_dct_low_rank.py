"""DCT-AdamW against scipy's transforms, AdamW, brute force and a dense rewriting of itself (arXiv:2505.17967)."""

from __future__ import annotations

import doctest
import itertools
import pickle

import pytest
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor, nn

from closures import closure_is_called_with_gradients_and_its_loss_given_back
from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.optimizer import dct_low_rank
from probatum.techniques.optimizer.dct_low_rank import (
    DctLowRank,
    basis_matrix,
    best_columns,
    carried,
    fast_dct,
    quantised,
    restored,
)

pytestmark = pytest.mark.fast

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def basis(n: int, kind: str = "dct") -> Tensor:
    return basis_matrix(kind, n, torch.float64, CPU)


def run(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        for i, parameter in enumerate(parameters):
            parameter.grad = draw(*parameter.shape, seed=100 * step + i).to(parameter.dtype)
        optimizer.step()


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=7 + i)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(("kind", "n"), [("dct", 1), ("dct", 7), ("dct", 16), ("random", 9), ("hadamard", 16)])
def test_bases_are_orthonormal_and_shared(kind: str, n: int) -> None:
    q = basis(n, kind)
    torch.testing.assert_close(q.mT @ q, torch.eye(n, dtype=torch.float64))
    assert basis(n, kind) is q
    assert not torch.equal(basis_matrix("random", 9, torch.float64, CPU, 1), basis(9, "random"))


@pytest.mark.parametrize("n", [1, 2, 5, 8, 33])
def test_both_paths_are_scipys_dct(n: int) -> None:
    x = draw(6, n)
    expected = torch.from_numpy(scipy.fft.dct(x.numpy(), norm="ortho", axis=1))
    torch.testing.assert_close(x @ basis(n), expected)
    torch.testing.assert_close(fast_dct(x), expected)


def test_hadamard_is_scipys() -> None:
    torch.testing.assert_close(basis(8, "hadamard"), torch.from_numpy(scipy.linalg.hadamard(8) / 8**0.5))


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("kind", ["dct", "random"])
def test_l2_columns_leave_the_least_error_of_all_subsets(rank: int, kind: str) -> None:
    gradient, q = draw(10, 8, seed=rank), basis(8, kind)

    def error(columns: list[int]) -> float:
        kept = q[:, columns]
        return float(torch.linalg.matrix_norm(gradient - gradient @ kept @ kept.mT))

    best = min((list(columns) for columns in itertools.combinations(range(8), rank)), key=error)
    assert best_columns(gradient @ q, rank).tolist() == best


def test_l1_and_l2_scores_rank_differently() -> None:
    coefficients = torch.tensor([[3.0, 2.0], [0.0, 2.0]])
    assert best_columns(coefficients, 1, "l2").tolist() == [0]
    assert best_columns(coefficients, 1, "l1").tolist() == [1]


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("kind", ["dct", "random"])
def test_full_rank_is_adamw_in_the_rotated_space(shape: tuple[int, int], kind: str) -> None:
    q, tall = basis(min(shape), kind), shape[0] >= shape[1]

    def turned(x: Tensor) -> Tensor:
        return x @ q if tall else q.mT @ x

    (ours,) = parameters(shape)
    theirs = nn.Parameter(turned(ours.detach().clone()))
    first = DctLowRank([ours], lr=0.05, weight_decay=0.1, rank=min(shape), basis=kind)
    second = torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.1)
    for step in range(10):
        ours.grad = draw(*shape, seed=step)
        theirs.grad = turned(ours.grad)
        first.step()
        second.step()
    torch.testing.assert_close(turned(ours.detach()), theirs.detach())


def test_vectors_long_matrices_and_chosen_groups_take_adamw() -> None:
    shapes = ((5,), (9, 3), (4, 4))
    ours, theirs = parameters(*shapes), parameters(*shapes)
    groups = [{"params": ours[:2]}, {"params": ours[2:], "low_rank": False}]
    run(DctLowRank(groups, lr=0.01, weight_decay=0.1, limit=8), ours, 8)
    run(torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1), theirs, 8)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
@pytest.mark.parametrize("gap", [1, 3])
@pytest.mark.parametrize("feedback", ["none", "full"])
@pytest.mark.parametrize("rotate", [True, False])
def test_equals_a_dense_rewriting(shape: tuple[int, int], gap: int, feedback: str, rotate: bool) -> None:
    """The algorithm once more, in plain matrices with an explicit r x r rotation Q_before^T Q_after."""
    (weight,) = parameters(shape)
    w, q, tall, r = weight.detach().clone(), basis(4), shape[0] >= shape[1], 2
    optimizer = DctLowRank([weight], lr=0.1, weight_decay=0.1, rank=r, gap=gap, rotate=rotate, feedback=feedback)
    error, m, v = torch.zeros(7, 4, dtype=torch.float64), torch.zeros(7, r).double(), torch.zeros(7, r).double()
    kept, changes = q[:, :0], 0
    for t in range(1, 9):
        g = draw(*shape, seed=100 * (t - 1))
        a = (g if tall else g.mT) + (error if feedback == "full" else 0)
        if t == 1 or t % gap == 0:
            norms = (a @ q).square().sum(dim=0)
            chosen = sorted(norms.argsort(descending=True)[:r].tolist())
            after = q[:, chosen]
            if t > 1 and rotate:
                turn = kept.mT @ after
                m, v = m @ turn, (v @ turn).abs()
                changes += not torch.allclose(turn, torch.eye(r).double())
            kept = after
        low = a @ kept
        error = a - low @ kept.mT
        m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low * low
        u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8) @ kept.mT
        w = w * (1 - 0.01) - 0.1 * (u if tall else u.mT)
        run(optimizer, [weight], 1, start=t - 1)
        torch.testing.assert_close(weight.detach(), w)
    assert changes > 0 or not rotate
    if feedback == "full":
        torch.testing.assert_close(optimizer.state[weight]["error"], error)


def test_carrying_moves_kept_columns_and_zeroes_new_ones() -> None:
    moment = torch.tensor([[1.0, 2.0, 3.0]])
    assert carried(moment, torch.tensor([0, 2, 5]), torch.tensor([2, 3, 5])).tolist() == [[2.0, 0.0, 3.0]]


def test_paths_train_alike() -> None:
    ours, theirs = parameters((6, 9), (9, 6)), parameters((6, 9), (9, 6))
    run(DctLowRank(ours, rank=0.5), ours, 10)
    run(DctLowRank(theirs, rank=0.5, path="fft"), theirs, 10)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [6, 7])
def test_quantised_rows_are_within_half_a_step(bits: int, columns: int) -> None:
    x = draw(5, columns)
    x[2] = 1.5  # a constant row
    codes, low, step = quantised(x, bits)
    assert codes.dtype == torch.uint8
    assert codes.shape == (5, columns if bits == 8 else (columns + 1) // 2)
    gap = (restored(codes, low, step, bits, columns) - x).abs()
    assert bool((gap <= step / 2 + 1e-12).all())
    torch.testing.assert_close(step[0, 0], (x[0].max() - x[0].min()) / (2**bits - 1))


def test_feedback_gives_back_what_the_projection_drops() -> None:
    """With a constant gradient, the coefficients fed in over time have the gradient as their mean."""
    gradient = draw(6, 4)
    for feedback, bound in (("full", 0.35), ("8bit", 0.35), ("4bit", 0.5), ("none", None)):
        weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
        optimizer, total = DctLowRank([weight], rank=1, feedback=feedback), torch.zeros(6, 4, dtype=torch.float64)
        for _ in range(40):
            before = _error(optimizer, weight)
            weight.grad = gradient.clone()
            optimizer.step()
            kept = basis(4)[:, optimizer.state[weight]["columns"]]
            total += (gradient + before) @ kept @ kept.mT
        gap = float((total / 40 - gradient).abs().max())
        assert gap < bound if bound else gap > 0.5
        assert torch.equal(weight.grad, gradient)


def _error(optimizer: DctLowRank, weight: nn.Parameter) -> Tensor:
    state, feedback = optimizer.state[weight], optimizer.param_groups[0]["feedback"]
    if "error" not in state:
        return torch.zeros(6, 4, dtype=torch.float64)
    if feedback == "full":
        return state["error"]
    return restored(state["error"], state["error_low"], state["error_step"], int(feedback[0]), 4)


def test_convolutions_are_flattened() -> None:
    conv, flat = parameters((6, 2, 3, 3), (6, 18))
    with torch.no_grad():
        flat.copy_(conv.flatten(1))
    first, second = DctLowRank([conv]), DctLowRank([flat])
    for step in range(3):
        conv.grad = draw(6, 2, 3, 3, seed=step)
        flat.grad = conv.grad.flatten(1)
        first.step()
        second.step()
    assert torch.equal(conv.flatten(1), flat)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("feedback", ["none", "full", "4bit"])
def test_state_dict_resumes_the_trajectory(dtype: torch.dtype, feedback: str) -> None:
    ours = [nn.Parameter(p.detach().to(dtype)) for p in parameters((6, 4), (3, 8), (5,))]
    optimizer = DctLowRank(ours, lr=0.01, rank=2, gap=2, feedback=feedback)
    run(optimizer, ours, 3)
    again = [nn.Parameter(p.detach().clone()) for p in ours]
    second = DctLowRank(again, lr=0.5, rank=2)
    second.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    run(optimizer, ours, 4, start=3)
    run(second, again, 4, start=3)
    for a, b in zip(ours, again, strict=True):
        assert torch.equal(a, b)
    state = second.state[again[0]]
    assert (state["columns"].dtype, state["first"].dtype) == (torch.int64, torch.promote_types(dtype, torch.float32))


def test_state_is_a_share_of_adamws() -> None:
    (weight,) = parameters((64, 32))
    optimizer = DctLowRank([weight], rank=0.25)
    run(optimizer, [weight], 1)
    assert optimizer.state_bytes() == 2 * 64 * 8 * 8 + 8 * 8


def test_for_model_projects_all_matrices_but_those_named() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    low, full = DctLowRank.for_model(model, full=["0.weight"]).param_groups
    assert [id(p) for p in full["params"]] == [id(model[0].weight)]
    assert (low["low_rank"], full["low_rank"], len(low["params"])) == (True, False, 6)
    assert len(DctLowRank.for_model(model).param_groups) == 1
    with pytest.raises(ValueError, match=r"full names '1\.heavy'"):
        DctLowRank.for_model(model, full=["1.heavy"])


def test_ranks_and_bases_that_do_not_fit_name_the_parameter() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"rank is 4, above the shorter side of parameter 1\.weight of shape \(3, 8\)"):
        DctLowRank.for_model(model, rank=4)
    with pytest.raises(ValueError, match="parameter number 2 of shape"):
        DctLowRank(model.parameters(), rank=4)
    with pytest.raises(ValueError, match=r"power of two as the shorter side of parameter 1\.weight"):
        DctLowRank.for_model(model, basis="hadamard")
    DctLowRank.for_model(model, rank=4, full=["1.weight"])
    optimizer = DctLowRank([model[0].weight], rank=4)
    with pytest.raises(ValueError, match="rank is 4"):
        optimizer.add_param_group({"params": [model[1].weight]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="power of two, not 6"):
        basis(6, "hadamard")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"basis": "svd"}, "basis is 'svd'"),
        ({"score": "l3"}, "score is 'l3'"),
        ({"gap": 0}, "gap is 0"),
        ({"feedback": "2bit"}, "feedback is '2bit'"),
        ({"path": "slow"}, "path is 'slow'"),
        ({"path": "fft", "basis": "random"}, "path is 'fft' with basis 'random'"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DctLowRank(parameters((3, 2)), **settings)


def test_sparse_gradients() -> None:
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        DctLowRank(table.parameters()).step()


def test_trains_on_the_bench() -> None:
    data = open_dataset("breast-cancer").prepare(0)
    trained = fit("dct-low-rank(lr=0.005)", data, 1, training=Training(epochs=5))
    assert isinstance(trained.optimizer, DctLowRank)
    assert accuracy(trained.model, data.test) > 0.9


def test_example() -> None:
    assert doctest.testmod(dct_low_rank).failed == 0


@pytest.mark.parametrize("feedback", ["full", "8bit"])
def test_a_state_of_float32_goes_on_in_float64(feedback: str) -> None:
    ours = [nn.Parameter(p.float()) for p in parameters((6, 4), (5,))]
    optimizer = DctLowRank(ours, rank=2, feedback=feedback)
    run(optimizer, ours, 2)
    wide = [nn.Parameter(p.detach().double()) for p in ours]
    second = DctLowRank(wide, rank=2, feedback=feedback)
    second.load_state_dict(optimizer.state_dict())
    run(optimizer, ours, 1, start=2)
    run(second, wide, 1, start=2)
    for a, b in zip(ours, wide, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)


def test_a_closure_is_called_with_gradients_and_its_loss_given_back() -> None:
    closure_is_called_with_gradients_and_its_loss_given_back(lambda weight: DctLowRank([weight], rank=1))
