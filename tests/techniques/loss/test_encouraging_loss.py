"""Encouraging loss against its closed forms (arXiv:2110.06537)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from probatum.techniques.loss.encouraging_loss import EncouragingLoss, bonus, encouraging_loss, log_not

pytestmark = pytest.mark.fast


def logits(n: int = 64, classes: int = 7, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    output = scale * torch.randn(n, classes, dtype=torch.float64, generator=generator)
    return output, torch.randint(classes, (n,), generator=generator)


def test_normal_bonus_is_margin_against_the_others() -> None:
    output, target = logits()
    own = output.gather(1, target[:, None]).squeeze(1)
    others = torch.stack(
        [torch.cat([row[:y], row[y + 1 :]]).logsumexp(0) for row, y in zip(output, target, strict=True)]
    )
    torch.testing.assert_close(encouraging_loss(output, target, log_end=1.0), others - own, atol=1e-10, rtol=0)


def test_normal_bonus_pushes_every_example_equally() -> None:
    output, target = logits(scale=30.0)
    output.requires_grad_()
    encouraging_loss(output, target, log_end=1.0).sum().backward()
    own = output.grad.gather(1, target[:, None])
    torch.testing.assert_close(own, -torch.ones_like(own), atol=1e-10, rtol=0)


def test_bonus_and_slope_are_continuous_at_the_log_end() -> None:
    end, step = 0.6, 1e-7
    p = torch.tensor([end - step, end + step], dtype=torch.float64, requires_grad=True)
    value = bonus(p.log(), torch.log1p(-p), end)
    (slope,) = torch.autograd.grad(value.sum(), p)
    assert abs(float(value.detach().diff())) < 1e-6
    assert slope[0].item() == pytest.approx(-1 / (1 - end), abs=1e-5)
    assert slope[1].item() == pytest.approx(-1 / (1 - end), abs=1e-12)


def test_log_end_zero_gives_minus_p() -> None:
    output, target = logits()
    p = output.softmax(1).gather(1, target[:, None]).squeeze(1)
    expected = F.cross_entropy(output, target, reduction="none") - p
    torch.testing.assert_close(encouraging_loss(output, target, log_end=0.0), expected)


def test_no_nan_where_the_unused_branch_overflows() -> None:
    output = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
    loss = EncouragingLoss(0.75)(output, torch.tensor([0, 0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(output.grad).all()


def test_log_not_matches_double_precision_subtraction() -> None:
    output, _ = logits(scale=1.0)
    torch.testing.assert_close(log_not(output), torch.log1p(-output.softmax(1)))


@pytest.mark.parametrize("log_end", [0.0, 0.5, 0.75, 1.0])
def test_gradcheck(log_end: float) -> None:
    output, target = logits(n=5, classes=3, scale=1.0)
    output.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: encouraging_loss(z, target, log_end=log_end), (output,))
    soft = F.one_hot(target, 3).double()
    assert torch.autograd.gradcheck(lambda z: encouraging_loss(z, soft, log_end=log_end, smoothing=0.1), (output,))


def test_soft_and_hard_targets_agree() -> None:
    output, target = logits()
    hard = encouraging_loss(output, target)
    torch.testing.assert_close(encouraging_loss(output, F.one_hot(target, 7).double()), hard)


def test_neutral_is_cross_entropy_bit_for_bit() -> None:
    output, target = logits()
    weight = torch.linspace(0.5, 2.0, 7, dtype=torch.float64)
    ours = EncouragingLoss(log_end=None, weight=weight, smoothing=0.1)(output, target)
    assert torch.equal(ours, F.cross_entropy(output, target, weight, label_smoothing=0.1))


def test_ignored_rows_and_class_weights() -> None:
    output, target = logits()
    kept = target != 3
    loss = EncouragingLoss(ignore_index=3)(output, target)
    torch.testing.assert_close(loss, encouraging_loss(output[kept], target[kept]).mean())
    weight = torch.arange(1.0, 8.0, dtype=torch.float64)
    torch.testing.assert_close(
        encouraging_loss(output, target, weight=weight), weight[target] * encouraging_loss(output, target)
    )


@pytest.mark.parametrize("bad", [-0.1, 1.5])
def test_log_end_outside_its_range(bad: float) -> None:
    with pytest.raises(ValueError, match=f"log_end is {bad}"):
        EncouragingLoss(bad)


def test_unbounded_form_warns() -> None:
    with pytest.warns(UserWarning, match="unbounded"):
        EncouragingLoss(1.0)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        EncouragingLoss()(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_conservative_loss_is_bounded_below() -> None:
    margins = torch.tensor([[m, 0.0] for m in (5.0, 50.0, 500.0)], dtype=torch.float64)
    losses = encouraging_loss(margins, torch.zeros(3, dtype=torch.int64), log_end=0.75)
    assert float(losses.min()) >= math.log(0.25) - 1.0 - 1e-12


def test_weights_are_normalised_as_in_cross_entropy() -> None:
    output, target = logits()
    weight = torch.linspace(0.5, 2.0, 7, dtype=torch.float64)
    loss = EncouragingLoss(weight=weight)(output, target)
    torch.testing.assert_close(EncouragingLoss(weight=10 * weight)(output, target), loss)
    by_hand = encouraging_loss(output, target, weight=weight).sum() / weight[target].sum()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(
        EncouragingLoss(weight=torch.ones_like(weight))(output, target), EncouragingLoss()(output, target)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_half_precision_has_the_gradient_of_float32_rounded(dtype: torch.dtype, smoothing: float) -> None:
    output, target = logits(classes=5)
    low = (3 * output).to(dtype).requires_grad_()
    high = low.detach().float().requires_grad_()
    loss = EncouragingLoss(smoothing=smoothing)
    ours, theirs = loss(low, target), loss(high, target)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs.to(dtype))
    torch.testing.assert_close(low.grad, high.grad.to(dtype))


@pytest.mark.parametrize("log_end", [None, 0.75])
def test_labels_in_a_column_outside_the_classes_and_other_shapes(log_end: float | None) -> None:
    output, target = logits(n=6)
    loss = EncouragingLoss(log_end=log_end)
    assert torch.equal(loss(output, target[:, None]), loss(output, target))
    with pytest.raises(ValueError, match="the label 7"):
        loss(output, torch.full((6,), 7))
    with pytest.raises(ValueError, match=r"\(6, 7\) and \(5,\)"):
        loss(output, target[:5])


def test_probabilities_that_round_to_one_keep_their_rest_and_its_gradient() -> None:
    output = torch.tensor([[40.0, 0.0, -3.0], [0.0, 60.0, 59.0], [-2.0, 1.0, 90.0]], dtype=torch.float64)
    exact = [[-40 + math.log(1 + math.exp(-3)), 0.0, 0.0], [0.0, -math.log(1 + math.e), -math.log(1 + 1 / math.e)]]
    exact.append([0.0, 0.0, 1 - 90 + math.log(1 + math.exp(-3))])
    expected = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(log_not(output), expected, rtol=1e-12, atol=1e-15)
    output = output.float().requires_grad_()
    found = log_not(output).diagonal()[[0, 2]]  # of the probabilities that are 1 in float32
    torch.testing.assert_close(found.double(), expected.diagonal()[[0, 2]], rtol=1e-6, atol=0)
    found.sum().backward()
    share = 1 / (1 + math.exp(-3))
    expected = torch.tensor([[-1.0, share, 1 - share], [0, 0, 0], [1 - share, share, -1]])
    torch.testing.assert_close(output.grad, expected)


def by_loops(row: list[float], q: list[float], log_end: float) -> float:
    """The loss of one row of logits and one target distribution, by the paper's formulas in Python's own numbers."""
    total = math.fsum(math.exp(z) for z in row)
    loss = 0.0
    for k, share in enumerate(q):
        p = math.exp(row[k]) / total
        rest = math.fsum(math.exp(z) for j, z in enumerate(row) if j != k) / total
        tangent = math.log(1 - log_end) - (p - log_end) / (1 - log_end) if log_end < 1 else 0.0
        loss += share * ((math.log(rest) if p <= log_end else tangent) - math.log(p))
    return loss


@pytest.mark.parametrize("log_end", [0.0, 0.3, 0.75, 0.95, 1.0])
def test_hard_soft_and_smoothed_targets_by_loops(log_end: float) -> None:
    output, target = logits(n=40, classes=5, scale=4.0)
    soft = torch.rand(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    soft = soft / soft.sum(1, keepdim=True)
    hard = F.one_hot(target, 5).double()
    weight = torch.tensor([0.5, 1.0, 3.0, 2.0, 0.1], dtype=torch.float64)
    for given, q, smoothing in ((target, hard, 0.0), (target, hard, 0.3), (soft, soft, 0.0), (soft, soft, 0.3)):
        spread = (1 - smoothing) * q + smoothing / 5
        expected = [by_loops(row, share, log_end) for row, share in zip(output.tolist(), spread.tolist(), strict=True)]
        found = encouraging_loss(output, given, log_end=log_end, smoothing=smoothing)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        weighted = spread * weight
        expected = [
            by_loops(row, share, log_end) for row, share in zip(output.tolist(), weighted.tolist(), strict=True)
        ]
        found = encouraging_loss(output, given, log_end=log_end, smoothing=smoothing, weight=weight)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("log_end", [0.75, 0.95])
def test_many_classes_in_float32_have_the_values_and_gradients_of_float64(log_end: float) -> None:
    output, target = logits(n=16, classes=1000, scale=6.0)
    output[:8] *= 5
    soft = torch.rand(16, 1000, generator=torch.Generator().manual_seed(1)).softmax(1)
    for given in (target, soft):
        low, high = output.float().requires_grad_(), output.clone().requires_grad_()
        ours, exact = (
            encouraging_loss(z, given.to(z) if given is soft else given, log_end=log_end) for z in (low, high)
        )
        ours.sum().backward()
        exact.sum().backward()
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(low.grad.double(), high.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("log_end", [0.5, 0.95])
def test_a_row_whose_other_classes_are_masked_moves_nothing(log_end: float) -> None:
    output = torch.tensor([[0.3, float("-inf"), float("-inf")], [0.0, 1.0, 2.0]], requires_grad=True)
    loss = encouraging_loss(output, torch.zeros(2, dtype=torch.int64), log_end=log_end)
    loss.sum().backward()
    assert float(loss.detach()[0]) == pytest.approx(math.log(1 - log_end) - 1)
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_rows_without_a_label_count_for_nothing(weight: torch.Tensor | None, smoothing: float) -> None:
    output, target = logits()
    output, ignored = output.float().requires_grad_(), target.clone()
    ignored[::3] = -100
    kept = ignored != -100
    loss = EncouragingLoss(weight=weight, smoothing=smoothing)
    torch.testing.assert_close(loss(output, ignored), loss(output[kept], ignored[kept]))
    nothing = loss(output, torch.full_like(target, -100))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert not output.grad.any()
    assert float(loss(output.detach()[:0], target[:0])) == 0


def test_class_weights_of_another_precision() -> None:
    output, target = logits(n=8)
    weight = torch.linspace(0.5, 2.0, 7)
    for log_end in (None, 0.75):
        wide = EncouragingLoss(log_end, weight=weight.double())(output, target)
        for dtype in (torch.bfloat16, torch.float16):
            found = EncouragingLoss(log_end, weight=weight)(output.to(dtype), target)
            torch.testing.assert_close(found.double(), wide, rtol=2e-2, atol=2e-2)


def test_soft_targets_cost_no_more_than_their_classes() -> None:
    classes = 30_000  # its square would be 3.6 GB a row
    output = torch.zeros(2, classes, requires_grad=True)
    for log_end in (0.75, 0.95):
        loss = encouraging_loss(output, torch.full((2, classes), 1 / classes), log_end=log_end, smoothing=0.1)
        loss.sum().backward()
        torch.testing.assert_close(loss, torch.full((2,), math.log(classes) + math.log1p(-1 / classes)))


def test_soft_targets_without_a_log_end_keep_the_rest_of_a_probability_that_rounds_to_one() -> None:
    output = torch.tensor([[40.0, 0.0, -3.0]])
    expected = math.log(1 + math.exp(-3)) - 40
    for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])):
        assert float(encouraging_loss(output, target, log_end=1.0)) == pytest.approx(expected, rel=1e-6)
