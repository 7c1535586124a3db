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
