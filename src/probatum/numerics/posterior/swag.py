"""SWAG: a Gaussian of the weights that SGD passes through, diagonal plus low rank.

Maddox et al. 2019, "A Simple Baseline for Bayesian Uncertainty in Deep Learning", arXiv:1902.02476, algorithm 1. Several
trajectories are kept side by side: everything is (S, P).
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor


class Swag:
    """Running moments of weights and their last deviations from the mean.

    Args:
        rank: deviations kept, 0 = diagonal only.

    Example:
        >>> swag, generator = Swag(rank=3), torch.Generator().manual_seed(0)
        >>> for _ in range(10):
        ...     swag.collect(torch.randn(2, 5, generator=generator))
        >>> tuple(swag.draw(4, generator).shape)
        (2, 4, 5)
    """

    def __init__(self, rank: int = 20) -> None:
        if rank < 0 or rank == 1:
            raise ValueError(f"rank is {rank}; use 0 (diagonal) or 2 and more")
        self.rank, self.count = rank, 0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None
        self.deviations: deque[Tensor] = deque(maxlen=max(rank, 1))

    def collect(self, weights: Tensor) -> None:
        """Take in one state (S, P) of the trajectories."""
        weights = weights.detach()
        if self.mean is None or self.square is None:
            self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)
        self.mean = (self.count * self.mean + weights) / (self.count + 1)
        self.square = (self.count * self.square + weights.square()) / (self.count + 1)
        self.count += 1
        if self.rank:
            self.deviations.append(weights - self.mean)

    def variance(self) -> Tensor:
        """The diagonal part (S, P), at least 1e-30."""
        mean, square = self._moments()
        return (square - mean.square()).clamp_min(1e-30)

    def covariance(self) -> Tensor:
        """The full covariance (S, P, P) that `draw` has; for small P."""
        found = torch.diag_embed(self.variance())
        if not self.rank:
            return found
        deviations = torch.stack(list(self.deviations), dim=2)
        return 0.5 * (found + deviations @ deviations.transpose(1, 2) / (len(self.deviations) - 1))

    def draw(self, count: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
        """`count` draws of every trajectory: (S, count, P); deviations from the mean are multiplied by sqrt(scale)."""
        if not scale >= 0 or count < 1:
            raise ValueError(f"scale is {scale} and count {count}; need scale >= 0 and count >= 1")
        mean, _ = self._moments()
        shape = (len(mean), count, mean.shape[1])
        away = self.variance().sqrt()[:, None] * torch.randn(shape, generator=generator, dtype=mean.dtype)
        if self.rank:
            deviations = torch.stack(list(self.deviations), dim=1)  # (S, K, P)
            k = deviations.shape[1]
            weights = torch.randn(len(mean), count, k, generator=generator, dtype=mean.dtype)
            away = (away + weights @ deviations / math.sqrt(k - 1)) / math.sqrt(2)
        return mean[:, None] + math.sqrt(scale) * away

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.square is None or self.count < 2:
            raise ValueError(f"{self.count} states were collected; SWAG needs 2 or more")
        return self.mean, self.square
