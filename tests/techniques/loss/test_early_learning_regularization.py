"""Early-learning regularization against its closed forms (arXiv:2007.00151)."""

from __future__ import annotations

import copy
import doctest
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.loss import early_learning_regularization
from probatum.techniques.loss.early_learning_regularization import (
    EarlyLearningRegularization,
    clamped_softmax,
    moved_average,
    regularizer,
)

pytestmark = pytest.mark.fast

N, CLASSES = 12, 5


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(N, CLASSES, dtype=torch.float64, generator=generator)
    return output, torch.randint(CLASSES, (N,), generator=generator), torch.randperm(40, generator=generator)[:N]


def made(lam: float = 3.0, beta: float = 0.7) -> EarlyLearningRegularization:
    return EarlyLearningRegularization(40, CLASSES, lam, beta).double()


def test_gradient_equals_the_closed_form() -> None:
    loss = made()
    for seed in range(3):
        output, target, _ = batch(seed)
        index = torch.arange(N)
        output.requires_grad_()
        loss(output, target, index).backward()
        p, t = output.detach().softmax(1), loss.average[index]
        inner = (p * t).sum(1, keepdim=True)
        pairs = torch.einsum("nk,nkc->nc", p, t[:, :, None] - t[:, None, :])  # sum_k (t_k - t_c) p_k
        expected = (p - F.one_hot(target, CLASSES)) + 3.0 * p / (1 - inner) * pairs
        torch.testing.assert_close(output.grad, expected / N, atol=1e-6, rtol=0)


def test_gradcheck_with_fixed_averages() -> None:
    output, target, index = batch()
    loss = made()
    loss(output, target, index)
    loss.eval()
    output.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target, index), (output,))
    assert torch.autograd.gradcheck(lambda z: regularizer(clamped_softmax(z), loss.average[index]), (output,))


def test_no_weight_is_cross_entropy_bit_for_bit() -> None:
    output, target, index = batch()
    loss = made(lam=0.0)
    assert torch.equal(loss(output, target, index), F.cross_entropy(output, target))
    assert torch.equal(loss(output, target), F.cross_entropy(output, target))


def test_constant_predictions_give_the_geometric_average() -> None:
    output, target, index = batch()
    loss = made(beta=0.9)
    for visits in range(1, 120):
        loss(output, target, index)
        if visits in (1, 2, 10, 119):
            p = clamped_softmax(output)
            expected = p / p.sum(1, keepdim=True) * (1 - 0.9**visits)
            torch.testing.assert_close(loss.average[index], expected)
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[index] = False
    assert torch.equal(loss.average[untouched], torch.zeros(28, CLASSES, dtype=torch.float64))


def test_averages_stay_in_the_simplex() -> None:
    loss, index = made(beta=0.5), torch.arange(N)
    for seed in range(60):
        output, target, _ = batch(seed)
        loss(20 * output, target, index)
    average = loss.average[index]
    torch.testing.assert_close(average.sum(1), torch.ones(N, dtype=torch.float64))
    assert float(average.min()) >= 0


def test_extreme_logits_stay_finite() -> None:
    output = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = EarlyLearningRegularization(2, 2, lam=7.0, beta=0.0)
    for _ in range(3):
        value = loss(output, torch.tensor([0, 0]), torch.arange(2))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()


def test_no_gradient_through_the_average_and_no_update_in_evaluation() -> None:
    output, target, index = batch()
    output.requires_grad_()
    assert not moved_average(torch.zeros(N, CLASSES), clamped_softmax(output), 0.7).requires_grad
    loss = made()
    loss(output, target, index)
    before = loss.average.clone()
    loss.eval()
    loss(output, target, index)
    assert torch.equal(loss.average, before)


def test_averages_travel_with_the_state_dict() -> None:
    output, target, index = batch()
    first = made()
    first(output, target, index)
    second = made()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    again = batch(5)[0]
    assert torch.equal(first(again, target, index), second(again, target, index))
    assert torch.equal(first.average, second.average)


def test_soft_targets() -> None:
    output, target, index = batch()
    hard, soft = made()(output, target, index), made()(output, F.one_hot(target, CLASSES).double(), index)
    torch.testing.assert_close(hard, soft)


def test_misuse_tells_how_to_wrap_the_dataset() -> None:
    output, target, index = batch()
    loss = made()
    with pytest.raises(ValueError, match=r"index is missing.*wrap the dataset"):
        loss(output, target)
    with pytest.raises(IndexError, match=r"index 40 is outside 0 \.\. 39 .*wrap the dataset"):
        loss(output, target, torch.where(index == index[0], 40, index))
    with pytest.raises(IndexError, match="index -1 is outside"):
        loss(output, target, torch.full_like(index, -1))
    with pytest.raises(ValueError, match=r"index has shape \(3,\) for 12 examples"):
        loss(output, target, index[:3])
    with pytest.raises(TypeError, match=r"torch\.float64"):
        loss(output, target, index.double())
    with pytest.raises(ValueError, match="num_classes=5"):
        loss(output[:, :4], target.clamp(max=3), index)


@pytest.mark.parametrize(("name", "value"), [("lam", -1.0), ("beta", 1.0), ("beta", -0.1)])
def test_settings_outside_their_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        EarlyLearningRegularization(3, 2, **{name: value})


def test_on_the_bench() -> None:
    data, training = open_dataset("breast-cancer").prepare(0), Training(epochs=2)
    plain = fit(None, data, 1, training=training).model.state_dict()
    neutral = fit("early-learning-regularization(lam=0.0)", data, 1, training=training).model.state_dict()
    assert all(torch.equal(plain[name], neutral[name]) for name in plain)
    run = fit("early-learning-regularization", data, 1, training=training)
    assert run.loss.average.shape == (len(data.train), 2)
    torch.testing.assert_close(run.loss.average.sum(1), torch.full((len(data.train),), 1 - 0.7**2))


def test_example() -> None:
    assert doctest.testmod(early_learning_regularization).failed == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_holds_predictions_as_float32_does(dtype: torch.dtype) -> None:
    logits, target, index = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([1]), torch.tensor([0])
    found = []
    for kind in (torch.float32, dtype):
        loss = EarlyLearningRegularization(1, 3, lam=3.0)
        for _ in range(30):
            output = logits.to(kind, copy=True).requires_grad_()
            loss(output, target, index).backward()
        found.append(output.grad.float())
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=4e-3)  # the rounding of the gradient itself
    assert float((found[0] - (logits.softmax(1) - torch.eye(3)[1])).abs().max()) > 0.1  # more than cross-entropy's
    assert loss.bfloat16().average.dtype == torch.float32


def test_rows_without_a_label_are_left_out() -> None:
    output, target, index = batch()
    target = target.clone()
    target[::3] = -100
    kept = target != -100
    one, other = made(), made()
    torch.testing.assert_close(one(output, target, index), other(output[kept], target[kept], index[kept]))
    assert torch.equal(one.average, other.average)


def test_probabilities_and_logarithms_stay_off_their_ends() -> None:
    p = clamped_softmax(torch.tensor([[200.0, -200.0], [0.0, 0.0]], dtype=torch.float64))
    assert p.tolist() == [[1 - 1e-4, 1e-4], [0.5, 0.5]]
    sure = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert regularizer(sure, sure).tolist() == pytest.approx([math.log(1e-6)])
    assert regularizer(sure, 0.25 * sure).tolist() == pytest.approx([math.log(0.75)])


def test_one_index_outside_and_a_batch_without_labels() -> None:
    output, target, _ = batch()
    loss, index = made(), torch.arange(N)
    index[4] = -1
    with pytest.raises(IndexError, match="index -1 is outside"):
        loss(output, target, index)
    loss(output, torch.full_like(target, -100), torch.arange(N))
    assert not loss.average.any()


def test_a_step_by_hand() -> None:
    loss = EarlyLearningRegularization(3, 2, lam=2.0, beta=0.8)
    output = torch.tensor([[math.log(3), 0.0]])  # p = 3/4, 1/4
    for visits, held in ((1, 0.2), (2, 0.36)):  # t = held p, <p, t> = held 10/16
        value = loss(output, torch.tensor([1]), torch.tensor([2]))
        assert float(value) == pytest.approx(math.log(4) + 2 * math.log(1 - held * 10 / 16), rel=1e-5), visits
    torch.testing.assert_close(loss.average, torch.tensor([[0, 0], [0, 0], [0.27, 0.09]]))
    loss.eval()
    assert float(loss(output, torch.tensor([1]), torch.tensor([2]))) == pytest.approx(float(value))
    fresh = loss(output, torch.tensor([1]), torch.tensor([0]))
    assert float(fresh) == pytest.approx(math.log(4))
