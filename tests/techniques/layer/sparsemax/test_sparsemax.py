"""Sparsemax against entmax, a quadratic program and closed forms (arXiv:1602.02068)."""

from __future__ import annotations

import doctest

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.layer.sparsemax import sparsemax as module
from probatum.techniques.layer.sparsemax.simplex import simplex_threshold
from probatum.techniques.layer.sparsemax.sparsemax import (
    Sparsemax,
    SparsemaxLoss,
    apply,
    best_threshold,
    sparsemax,
    sparsemax_loss,
    uniform_over,
)

pytestmark = pytest.mark.fast


def scores(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_parity_with_entmax(dim: int, k: int | None) -> None:
    entmax = pytest.importorskip("entmax", reason="witness for sparsemax")
    z = scores(6, 5, 7)
    torch.testing.assert_close(sparsemax(z, dim, k), entmax.sparsemax(z, dim=dim), atol=1e-6, rtol=0)
    y = torch.arange(6) % 7
    theirs = entmax.sparsemax_loss(z[:, 0], y)
    torch.testing.assert_close(sparsemax_loss(z[:, 0], y), theirs.view(-1), atol=1e-6, rtol=0)


def test_it_is_the_projection_of_a_quadratic_program() -> None:
    for seed in range(3):
        z = scores(6, seed=seed).numpy()
        found = minimize(
            lambda p, z=z: ((p - z) ** 2).sum(),
            [1 / 6] * 6,
            jac=lambda p, z=z: 2 * (p - z),
            bounds=[(0, 1)] * 6,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        torch.testing.assert_close(sparsemax(torch.as_tensor(z)), torch.as_tensor(found.x), atol=1e-6, rtol=0)


def test_sums_to_one_and_ignores_a_shift() -> None:
    z = scores(50, 20)
    p = sparsemax(z)
    torch.testing.assert_close(p.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(sparsemax(z + 1e6), p, atol=1e-8, rtol=0)
    assert float((p == 0).double().mean()) > 0.5


def test_gradcheck() -> None:
    z = scores(4, 5).requires_grad_()
    for dim in (0, 1):
        assert torch.autograd.gradcheck(lambda z, dim=dim: sparsemax(z, dim), (z,))
        assert torch.autograd.gradgradcheck(lambda z, dim=dim: sparsemax(z, dim), (z,))
    q = scores(4, 5, seed=1).softmax(1)
    assert torch.autograd.gradcheck(lambda z: sparsemax_loss(z, q), (z,))
    assert torch.autograd.gradgradcheck(lambda z: sparsemax_loss(z, q), (z,))
    assert torch.autograd.gradcheck(lambda z: sparsemax_loss(z, torch.tensor([0, 1, 2, 3])), (z,))


def test_jacobian_is_that_of_the_support() -> None:
    z = torch.tensor([1.0, 0.6, 0.4, -3.0], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(sparsemax, z)
    s = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(jacobian, s.diag() - torch.outer(s, s) / 3)


def test_loss_gradient_is_p_less_q() -> None:
    z, y = scores(8, 6).requires_grad_(), torch.arange(8) % 6
    sparsemax_loss(z, y).sum().backward()
    torch.testing.assert_close(z.grad, (sparsemax(z) - nn.functional.one_hot(y, 6)).detach())


def test_loss_by_its_definition() -> None:
    z, q = scores(8, 6), uniform_over((scores(8, 6, seed=3) > -0.5).double())
    p = sparsemax(z)
    tau, _ = simplex_threshold(z, 1)
    inner = torch.where(p > 0, z**2 - tau**2, 0.0).sum(1)
    torch.testing.assert_close(sparsemax_loss(z, q), -(q * z).sum(1) + 0.5 * inner + 0.5 * q.square().sum(1))


def test_binary_loss_is_the_modified_huber_loss() -> None:
    t = torch.linspace(-3, 3, 25, dtype=torch.float64)
    loss = sparsemax_loss(torch.stack([t, torch.zeros_like(t)], dim=1), torch.zeros(25, dtype=torch.int64))
    expected = torch.where(t >= 1, 0.0, torch.where(t <= -1, -t, (t - 1) ** 2 / 4))
    torch.testing.assert_close(loss, expected)


def test_loss_is_zero_exactly_with_a_margin_of_one() -> None:
    z = torch.tensor([[1.0, 0.0, -2.0], [0.99, 0.0, -2.0], [500.0, 0.0, 0.0]])
    loss = sparsemax_loss(z, torch.zeros(3, dtype=torch.int64))
    assert loss[0] == 0
    assert loss[1] > 0
    assert loss[2] == 0


def test_masked_entries_get_exactly_nothing() -> None:
    z = scores(5, 6)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[:, 4:] = True
    masked = z.masked_fill(mask, float("-inf")).requires_grad_()
    p = sparsemax(masked, 1)
    torch.testing.assert_close(p[:, :4], sparsemax(z[:, :4], 1))
    assert torch.equal(p[:, 4:], torch.zeros(5, 2, dtype=torch.float64))
    p.square().sum().backward()
    assert torch.isfinite(masked.grad).all()
    alone = torch.tensor([[float("-inf"), -7.0]])
    assert sparsemax(alone, k=2).tolist() == [[0.0, 1.0]]
    assert torch.isfinite(sparsemax_loss(masked.detach(), torch.zeros(5, dtype=torch.int64))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_out_in_float32(dtype: torch.dtype) -> None:
    z = scores(4, 300).to(dtype).requires_grad_()
    p = sparsemax(z)
    assert p.dtype == dtype
    torch.testing.assert_close(p, sparsemax(z.float()).to(dtype))
    p.square().sum().backward()
    assert z.grad.dtype == dtype


def test_partial_sort_gives_the_same_also_where_the_support_is_larger() -> None:
    z = scores(20, 100, scale=0.05)
    assert torch.equal(sparsemax(z, k=4), sparsemax(z))
    assert torch.equal(sparsemax(10 * z, k=80), sparsemax(10 * z))


def test_label_sets_and_their_threshold() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert uniform_over(labels).tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    p = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.8, 0.0]])
    threshold = best_threshold(p, labels)
    assert 0.2 < threshold < 0.3
    assert best_threshold(torch.full((1, 3), 0.3), torch.tensor([[1, 0, 0]])) < 0.3
    with pytest.raises(ValueError, match="row 1 has no label"):
        uniform_over(torch.tensor([[1, 0], [0, 0]]))


def test_bad_scores() -> None:
    with pytest.raises(TypeError, match=r"dtype torch\.int64"):
        sparsemax(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="NaN"):
        sparsemax(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match=r"masked .* throughout"):
        sparsemax(torch.full((2, 3), float("-inf")))
    with pytest.raises(ValueError, match=r"\+inf"):
        sparsemax(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="k is 0"):
        sparsemax(torch.zeros(3), k=0)
    with pytest.raises(ValueError, match="distributions"):
        sparsemax_loss(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(n, K\)"):
        sparsemax_loss(torch.zeros(3), torch.tensor([0]))


def test_module_loss_is_the_mean() -> None:
    z, y = scores(8, 6), torch.arange(8) % 6
    torch.testing.assert_close(SparsemaxLoss()(z, y), sparsemax_loss(z, y).mean())


def test_apply_swaps_softmax_modules_and_nothing_else() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Softmax(dim=1)), nn.LogSoftmax(dim=1)).eval()
    assert apply(net) == 1
    assert isinstance(net[1][0], Sparsemax)
    assert net[1][0].dim == 1
    assert not net[1][0].training
    assert apply(nn.Linear(2, 2)) == 0
    twice = nn.Softmax(dim=1)
    assert apply(nn.Sequential(twice, nn.Linear(4, 4), twice)) == 2
    with pytest.raises(ValueError, match="dim=None"):
        apply(nn.Sequential(nn.Softmax()))
    with pytest.raises(ValueError, match="k is 0"):
        apply(net, k=0)


def test_trains_on_the_bench() -> None:
    data = open_dataset("toy-topics").prepare(0)
    run = fit("sparsemax", data, 1, training=Training(epochs=2))
    assert isinstance(run.model.attend, Sparsemax)
    assert run.curve[-1]["valid_error"] < 0.6


def test_example() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_in_half_precision_is_that_of_float32_rounded(dtype: torch.dtype) -> None:
    z = scores(3, 4000, scale=0.001)
    upstream = (100 * scores(3, 4000, seed=1)).to(dtype)
    low = z.to(dtype).requires_grad_()
    high = low.detach().float().requires_grad_()
    module.sparsemax(low).backward(upstream)
    module.sparsemax(high).backward(upstream.float())
    torch.testing.assert_close(low.grad, high.grad.to(dtype))
    loss, gold = (
        module.sparsemax_loss(low, torch.tensor([0, 1, 2])),
        module.sparsemax_loss(high, torch.tensor([0, 1, 2])),
    )
    torch.testing.assert_close(loss, gold.to(dtype))


def test_rows_without_a_label_are_left_out() -> None:
    z, target = scores(4, 5), torch.tensor([1, -100, 3, -100])
    kept = target != -100
    loss = module.sparsemax_loss(z, target)
    torch.testing.assert_close(loss[kept], module.sparsemax_loss(z[kept], target[kept]))
    assert not loss[~kept].any()
    torch.testing.assert_close(module.SparsemaxLoss()(z, target), loss[kept].mean())
    with pytest.raises(ValueError, match="the label 5"):
        module.sparsemax_loss(z, torch.tensor([0, 1, 2, 5]))


def test_one_softmax_in_two_places_and_one_by_itself() -> None:
    shared = nn.Softmax(dim=1)
    net = nn.Sequential(shared, nn.Linear(3, 3), shared)
    assert module.apply(net) == 2
    assert net[0] is net[2]
    with pytest.raises(ValueError, match="itself the Softmax"):
        module.apply(shared)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_none_single_or_strided(dtype: torch.dtype) -> None:
    z = scores(7, 6).to(dtype)
    for x in (z[:0], z[:1], z.t().contiguous().t(), z[::2]):
        low = x.detach().requires_grad_()
        sparsemax(low, 1).square().sum().backward()
        alone = [sparsemax(row.contiguous()) for row in x]
        assert torch.equal(sparsemax(x, 1), torch.stack(alone) if alone else x)
        assert low.grad.shape == x.shape
        assert torch.isfinite(low.grad).all()


def test_scores_far_from_zero_are_projected_as_those_around_it() -> None:
    z = (scores(20, 30).float() * 64).round() / 64  # so that the offset takes no digits away
    torch.testing.assert_close(sparsemax(z + 1e4), sparsemax(z), rtol=0, atol=1e-6)
    torch.testing.assert_close(sparsemax_loss(z + 1e4, torch.arange(20)), sparsemax_loss(z, torch.arange(20)))
    constant = torch.full((3, 8), 1e4)
    assert torch.equal(sparsemax(constant), torch.full((3, 8), 0.125))


def test_the_result_may_be_changed_in_place_before_the_backward_pass() -> None:
    z = scores(4, 5).requires_grad_()
    (expected,) = torch.autograd.grad((2 * sparsemax(z)).square().sum(), z)
    (found,) = torch.autograd.grad(sparsemax(z).mul_(2).square().sum(), z)
    torch.testing.assert_close(found, expected)


def test_thresholds_by_hand() -> None:
    p = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.8, 0.0]], dtype=torch.float64)
    assert best_threshold(p, torch.tensor([[1, 0, 1], [0, 1, 0]])) == pytest.approx(0.25)  # between 0.3 and 0.2
    assert best_threshold(p, torch.tensor([[0, 0, 0], [0, 1, 0]])) == pytest.approx(0.7)
    assert best_threshold(p, torch.ones(2, 3)) == pytest.approx(0.0)
    # of tied scores all or none are taken: 2 hits of 4 (F1 2/3) beat 1 of 1 (F1 1/2) though one alone would be better
    tied = torch.tensor([[0.9, 0.4, 0.4, 0.4]], dtype=torch.float64)
    assert best_threshold(tied, torch.tensor([[1, 1, 1, 0]])) == pytest.approx(0.2)


def test_settings_reach_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int | None]] = []
    monkeypatch.setattr(
        module, "threshold_below", lambda z, dim, k: seen.append((dim, k)) or simplex_threshold(z, dim, k)
    )
    net = nn.Sequential(nn.Softmax(dim=0), nn.Softmax(dim=-1))
    assert apply(net, k=2) == 2
    net(scores(3, 4))
    sparsemax(scores(3, 4), 1, 3)
    sparsemax_loss(scores(3, 4), torch.tensor([0, 1, 2]))
    assert seen == [(0, 2), (-1, 2), (1, 3), (1, None)]
    with pytest.raises(ValueError, match="k is 0"):
        Sparsemax(k=0)(scores(3))


def test_distributions_are_taken_within_rounding_only() -> None:
    z = scores(2, 3)
    q = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    plain = sparsemax_loss(z, q)
    torch.testing.assert_close(sparsemax_loss(z, q * 1.0005), plain, rtol=1e-2, atol=1e-2)
    for bad in (q * 1.002, q * 0.998, q + torch.tensor([-0.3, 0.3, 0.0])):
        with pytest.raises(ValueError, match="distributions"):
            sparsemax_loss(z, bad)
    whole = torch.tensor([[0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(sparsemax_loss(z, whole), sparsemax_loss(z, torch.tensor([1, 2])))
    torch.testing.assert_close(SparsemaxLoss()(z, whole), sparsemax_loss(z, torch.tensor([1, 2])).mean())
    torch.testing.assert_close(SparsemaxLoss()(z, q), plain.mean())
    assert sparsemax_loss(z[:, :1], torch.tensor([[0], [0]])).tolist() == [0.0, 0.0]


def test_a_loss_by_hand() -> None:
    z = torch.tensor([[0.8, 0.4, -1.0]], dtype=torch.float64, requires_grad=True)  # p = 0.7, 0.3, 0 and tau = 0.1
    for target, expected in ((0, 0.045), (1, 0.445), (2, 1.845)):
        loss = sparsemax_loss(z, torch.tensor([target]))  # (0.64 - 0.01 + 0.16 - 0.01) / 2 + 1 / 2 - z_y
        assert float(loss.detach()) == pytest.approx((0.64 + 0.16 - 0.02) / 2 + 0.5 - [0.8, 0.4, -1.0][target])
        assert float(loss.detach()) == pytest.approx(expected + 0.045)
    loss = sparsemax_loss(z, torch.tensor([[0.5, 0.5, 0.0]]))
    (3 * loss).sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([[0.6, -0.6, 0.0]], dtype=torch.float64))


def test_one_masked_line_among_others_and_one_class() -> None:
    z = torch.tensor([[0.0, 1.0], [float("-inf"), float("-inf")]])
    with pytest.raises(ValueError, match="masked"):
        sparsemax(z)
    assert sparsemax_loss(torch.zeros(2, 1), torch.tensor([-100, 0])).tolist() == [0.0, 0.0]
