"""The threshold of the simplex projection."""

from __future__ import annotations

import pytest
import torch

from probatum.techniques.layer.sparsemax import simplex
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


@pytest.mark.parametrize("k", [None, 1, 2, 3])
def test_thresholds_by_hand(k: int | None) -> None:
    # support of 2: (0.9 + 0.5 - 1) / 2; of 1; of 3 with a tie, far from zero; and a score exactly at the threshold
    z = torch.tensor([[0.9, 0.5, -2.0], [3.0, 0.5, 1.9], [1000.25, 1000.25, 1000.0], [1.0, 0.0, -0.5]])
    tau, support = simplex_threshold(z.double(), 1, k)
    torch.testing.assert_close(tau[:, 0], torch.tensor([0.2, 2.0, (3000.5 - 1) / 3, 0.0]).double())
    assert support[:, 0].tolist() == [2, 1, 3, 1]


@pytest.mark.parametrize("steps", [0, 1, 24])
def test_sorting_takes_over_where_newtons_method_is_slow(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    j = torch.arange(60, dtype=torch.float64)
    slow = torch.stack([-1 + 0.9**j, -(2.0**-j), -j / 60])
    slow = slow - slow.amax(dim=1, keepdim=True)
    monkeypatch.setattr(simplex, "MOST_STEPS", steps)
    tau, support = simplex_threshold(slow, 1)
    for line, found, size in zip(slow, tau[:, 0].tolist(), support[:, 0].tolist(), strict=True):
        largest = sorted(line.tolist(), reverse=True)
        expected = [(sum(largest[:n]) - 1) / n for n in range(1, 61)]
        best = max(range(60), key=expected.__getitem__)  # the threshold is the largest of these
        assert found == pytest.approx(expected[best], abs=1e-12)
        assert size == best + 1


def test_no_lines_and_lines_of_one() -> None:
    tau, support = simplex_threshold(torch.zeros(0, 4))
    assert tau.shape == support.shape == (0, 1)
    tau, support = simplex_threshold(torch.tensor([[5.0], [-3.0]]))
    assert tau.tolist() == [[4.0], [-4.0]]
    assert support.tolist() == [[1], [1]]
    assert support.dtype == torch.int64
