"""The threshold of the simplex projection."""

from __future__ import annotations

import pytest
import torch

from probatum.techniques.layer.sparsemax.simplex import simplex_threshold

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("k", [None, 1, 2, 50])
def test_the_projection_sums_to_one_and_counts_its_support(k: int | None) -> None:
    z = torch.randn(30, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tau, support = simplex_threshold(z, 1, k)
    p = (z - tau).clamp(min=0)
    torch.testing.assert_close(p.sum(1), torch.ones(30, dtype=torch.float64))
    assert torch.equal((p > 0).sum(1, keepdim=True), support)


def test_along_the_first_dimension_and_with_masked_entries() -> None:
    z = torch.tensor([[0.5, float("-inf")], [0.5, 3.0], [float("-inf"), 0.0]])
    tau, support = simplex_threshold(z, 0)
    assert tau.tolist() == [[0.0, 2.0]]
    assert support.tolist() == [[2, 1]]
