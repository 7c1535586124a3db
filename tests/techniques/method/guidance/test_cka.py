"""Linear CKA: its invariances, and the feature form as a second way to it."""

from __future__ import annotations

import pytest
import torch

from probatum.techniques.method.guidance.cka import cka_matrix, linear_cka

pytestmark = pytest.mark.fast


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_equals_the_feature_form() -> None:
    x, y = features(0, 20, 5), features(1, 20, 30)
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    expected = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    torch.testing.assert_close(linear_cka(x, y), expected)


def test_invariances() -> None:
    x, y = features(0, 16, 6), features(1, 16, 6)
    rotation, _ = torch.linalg.qr(features(2, 6, 6))
    torch.testing.assert_close(linear_cka(x, x), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(linear_cka(x @ rotation * 3, y + 7), linear_cka(x, y))
    assert not torch.isclose(linear_cka(x @ features(3, 6, 6), y), linear_cka(x, y)), "a general map does change it"
    assert torch.autograd.gradcheck(lambda v: linear_cka(v, y), (x.clone().requires_grad_(),))


def test_maps_are_flattened() -> None:
    x = features(0, 10, 2, 3, 3)
    torch.testing.assert_close(linear_cka(x, x.flatten(1)), torch.ones((), dtype=torch.float64))


def test_matrix_of_layers() -> None:
    first, second = [features(i, 12, 3 + i) for i in range(3)], [features(9 + i, 12, 4) for i in range(2)]
    found = cka_matrix(first, second)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found[2, 1], linear_cka(first[2], second[1]))


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e30])
def test_no_scale_overflows_or_vanishes_in_float32(scale: float) -> None:
    x, y = features(0, 16, 6), features(1, 16, 6)
    found = linear_cka((x * scale).float(), y.float())
    torch.testing.assert_close(found, linear_cka(x, y).float())
    torch.testing.assert_close(linear_cka(y.float(), (x * scale).float()), found)


def test_a_power_of_two_changes_no_bit_of_value_or_gradient() -> None:
    x, y = features(0, 16, 6).float(), features(1, 16, 6).float()
    ours, theirs = x.clone().requires_grad_(), (8 * x).requires_grad_()
    first, second = linear_cka(ours, y), linear_cka(theirs, y)
    first.backward()
    second.backward()
    assert torch.equal(first, second)
    assert torch.equal(ours.grad, 8 * theirs.grad)
    rows, others = x - x.mean(dim=0), y - y.mean(dim=0)
    a, b = rows @ rows.T, others @ others.T
    assert torch.equal(first.detach(), (a * b).sum() / (a.norm() * b.norm()))


def test_offsets_cost_no_digits_and_constant_columns_say_nothing() -> None:
    x, y = features(0, 16, 6), features(1, 16, 6)
    raised = (x + 1e4).float()  # the rounding of x itself is left
    torch.testing.assert_close(linear_cka(raised, y.float()), linear_cka(raised.double(), y).float(), rtol=1e-6, atol=0)
    with_constant = torch.cat([x, torch.full((16, 1), 0.3)], dim=1).float()
    small = torch.cat([x * 1e-6, torch.full((16, 3), 1e3 + 0.1)], dim=1).float()
    torch.testing.assert_close(linear_cka(with_constant, y.float()), linear_cka(x.float(), y.float()))
    torch.testing.assert_close(linear_cka(small, y.float()), linear_cka(x.float(), y.float()))


@pytest.mark.parametrize("value", [0.3, 1e4 + 0.1, -7.7])
def test_equal_rows_have_no_variance_wherever_they_lie(value: float) -> None:
    with pytest.raises(ValueError, match="without variance"):
        linear_cka(torch.full((9, 3), value), torch.randn(9, 2))


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (features(0, 7, 2), features(0, 7, 2), "7 rows is too small"),
        (features(0, 9, 2), features(0, 8, 2), "9 and 8"),
        (torch.ones(9, 2), torch.randn(9, 2), "without variance"),
    ],
)
def test_misuse(a: torch.Tensor, b: torch.Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        linear_cka(a, b)
