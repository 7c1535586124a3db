"""Linear regression with known noise and a Gaussian prior, whose posterior is known."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE, PRECISION = 0.5, 2.0


def regression() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, targets, and mean and covariance of the closed posterior."""
    draws, noise = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    x = torch.randn(40, 3, generator=draws, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64) + NOISE * torch.randn(
        40, generator=noise, dtype=torch.float64
    )
    covariance = torch.linalg.inv(x.T @ x / NOISE**2 + PRECISION * torch.eye(3, dtype=torch.float64))
    return x, y, covariance @ x.T @ y / NOISE**2, covariance
