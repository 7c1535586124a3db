"""The memorising ReLU network and interpolants of smallest norm."""

from __future__ import annotations

import pytest
import torch

from probatum.techniques.probe.randomization_tests.interpolation import kernel_interpolant, memorise, minimum_norm

pytestmark = pytest.mark.fast


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_memory_fits_any_labels_with_2n_plus_d_parameters() -> None:
    x = torch.randn(200, 30, generator=stream())
    y = torch.randint(10, (200,), generator=stream(1))
    memory = memorise(x, y, stream(2))
    assert sum(part.numel() for part in memory) == 2 * 200 + 30
    torch.testing.assert_close(memory(x), y.double(), atol=1e-6, rtol=0)
    z = (x.double() @ memory.a).sort().values
    b = memory.b
    assert bool((b < z).all())
    assert bool((b[1:] > z[:-1]).all())  # b_1 < z_1 < b_2 < z_2 ...
    by_loop = sum(w * max(float(x[7].double() @ memory.a) - float(k), 0.0) for w, k in zip(memory.w, b, strict=True))
    assert float(by_loop) == pytest.approx(float(y[7]), abs=1e-6)


def test_equal_rows() -> None:
    x = torch.randn(5, 3, generator=stream())
    doubled = torch.cat([x, x[1:2]])
    same = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 1.0])
    torch.testing.assert_close(memorise(doubled, same, stream(1))(doubled), same.double(), atol=1e-8, rtol=0)
    same[5] = 9.0
    with pytest.raises(ValueError, match=r"rows (1 and 5|5 and 1) are equal but have values"):
        memorise(doubled, same, stream(1))


def test_minimum_norm_is_the_smallest_among_interpolants() -> None:
    x, y = (
        torch.randn(20, 50, dtype=torch.float64, generator=stream()),
        torch.randn(20, 2, generator=stream(1)).double(),
    )
    w = minimum_norm(x, y)
    torch.testing.assert_close(x @ w, y)
    null = torch.eye(50, dtype=torch.float64) - torch.linalg.pinv(x) @ x
    for seed in range(20):
        other = w + null @ torch.randn(50, 2, dtype=torch.float64, generator=stream(seed))
        torch.testing.assert_close(x @ other, y)
        assert float(other.norm()) > float(w.norm())
    torch.testing.assert_close(w, torch.linalg.pinv(x) @ y)


def test_kernel_form() -> None:
    x = torch.randn(15, 2, dtype=torch.float64, generator=stream())
    y = torch.randn(15, dtype=torch.float64, generator=stream(1))
    kernel = torch.exp(-2 * torch.cdist(x, x).square())
    torch.testing.assert_close(kernel @ kernel_interpolant(kernel, y), y, atol=1e-6, rtol=0)
    x[3] = x[4]
    with pytest.raises(ValueError, match="misses y"):
        kernel_interpolant(torch.exp(-torch.cdist(x, x).square()), y)


def test_a_value_that_is_never_reached_from_below_is_missed_too() -> None:
    with pytest.raises(ValueError, match="misses y"):
        kernel_interpolant(torch.tensor([[0.0]]).double(), torch.tensor([3.0]).double())
