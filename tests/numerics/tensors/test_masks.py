"""Masks select by truth, not by position."""

from __future__ import annotations

import pytest
import torch

from probatum.numerics.tensors.masks import truth_values

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.int8])
def test_zeros_and_ones_are_truth_values(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=dtype)
    found = truth_values(mask)
    assert found.dtype == torch.bool
    assert found.tolist() == [[True, False, True], [False, False, True]]
    assert truth_values(mask[:0]).shape == (0, 3)


def test_anything_else_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"seen has dtype torch\.float32"):
        truth_values(torch.ones(3), "seen")
    for wrong in (2, -100):
        with pytest.raises(ValueError, match=f"mask holds {wrong}"):
            truth_values(torch.tensor([0, wrong, 1]))


def test_truth_values_pass_under_vmap() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    assert torch.equal(torch.func.vmap(truth_values)(mask), mask)
