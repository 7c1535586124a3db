"""Kernel calibration error: densities from scipy, known errors, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta, dirichlet

from probatum.numerics.calibration.kernel import (
    best_bandwidth,
    conditional_mean,
    kernel_calibration_error,
    log_kernel,
)

pytestmark = pytest.mark.fast


def uniform(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kernels_are_the_densities_they_are_named_after() -> None:
    s = uniform(5)
    h = 0.07
    found = log_kernel(s, h)
    for i in range(5):
        for j in range(5):
            a = float(s[j])
            assert float(found[i, j]) == pytest.approx(beta.logpdf(float(s[i]), a / h + 1, (1 - a) / h + 1), rel=1e-9)
    z = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], dtype=torch.float64)
    found = log_kernel(z, h)
    for i in range(2):
        for j in range(2):
            theirs = dirichlet.logpdf(z[i].numpy() / z[i].sum().item(), z[j].numpy() / h + 1)
            assert float(found[i, j]) == pytest.approx(theirs, rel=1e-9)
    two = torch.stack([s, 1 - s], dim=1)
    torch.testing.assert_close(log_kernel(two, h), log_kernel(s, h))


def test_leave_one_out_ratio_by_brute_force() -> None:
    s, y = uniform(12), uniform(12, 1).round()
    kernel = log_kernel(s, 0.1).exp()
    for i in range(12):
        others = [j for j in range(12) if j != i]
        by_hand = sum(kernel[i, j] * y[j] for j in others) / sum(kernel[i, j] for j in others)
        assert float(conditional_mean(s, y, 0.1)[i]) == pytest.approx(float(by_hand))


def test_known_errors() -> None:
    s = uniform(2000)
    assert float(kernel_calibration_error(s, s**2, 0.01)) == pytest.approx(1 / 6, abs=0.01)  # graded outcomes
    y = (uniform(2000, 1) < s**2).double()
    assert float(kernel_calibration_error(s, y, 0.01)) == pytest.approx(1 / 6, abs=0.02)
    calibrated = (uniform(2000, 2) < s).double()
    assert float(kernel_calibration_error(s, calibrated)) < 0.03
    constant = torch.full((50,), 0.7, dtype=torch.float64)
    hits = torch.zeros(50, dtype=torch.float64)
    hits[:20] = 1
    expected = 20 / 50 * abs(19 / 49 - 0.7) + 30 / 50 * abs(20 / 49 - 0.7)
    assert float(kernel_calibration_error(constant, hits, 0.1)) == pytest.approx(expected)


def test_canonical_error_of_two_classes_is_twice_that_of_one_score() -> None:
    s = uniform(100)
    y = (uniform(100, 1) < s).long()
    two = torch.stack([1 - s, s], dim=1)
    one = kernel_calibration_error(s, y.double(), 0.05)
    assert float(kernel_calibration_error(two, y, 0.05)) == pytest.approx(2 * float(one))


def test_gradients_and_extreme_scores() -> None:
    y = torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)
    s = uniform(5).mul(0.8).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: kernel_calibration_error(t, y, 0.2), (s,))
    hard = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0], requires_grad=True)
    error = kernel_calibration_error(hard, torch.zeros(5), 0.001)
    error.backward()
    assert bool(torch.isfinite(error))
    assert bool(torch.isfinite(hard.grad).all())


def test_bandwidth_is_the_likeliest() -> None:
    s = uniform(300)
    wanted = {}
    for h in (0.01, 0.1, 1.0):
        kernel = np.exp(log_kernel(s, h).numpy())
        np.fill_diagonal(kernel, 0)
        wanted[h] = np.log(kernel.sum(1)).mean()
    assert best_bandwidth(s, (0.01, 0.1, 1.0)) == max(wanted, key=wanted.get)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="two rows or more"):
        kernel_calibration_error(torch.tensor([0.5]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"span -1 to 0\.5"):
        kernel_calibration_error(torch.tensor([-1.0, 0.5]), torch.ones(2))
    with pytest.raises(ValueError, match="do not sum to 1"):
        kernel_calibration_error(torch.full((3, 2), 0.9), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="bandwidth is 0"):
        kernel_calibration_error(torch.tensor([0.4, 0.5]), torch.ones(2), 0)
    with pytest.raises(ValueError, match="power is 0"):
        kernel_calibration_error(torch.tensor([0.4, 0.5]), torch.ones(2), 0.1, 0)
