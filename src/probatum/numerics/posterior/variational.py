"""Mean-field variational inference over flat weights: q = N(mu, softplus(rho)^2), by reparameterised gradients.

Blundell et al. 2015, "Weight Uncertainty in Neural Networks", arXiv:1505.05424. The bound per training row is
-E_q[log p(y | x, w)] + KL(q || prior) / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gaussian_kl(mean: Tensor, scale: Tensor, prior_scale: Tensor | float) -> Tensor:
    """KL(N(mean, scale^2) || N(0, prior_scale^2)), summed over all weights."""
    ratio = scale / prior_scale
    return 0.5 * (ratio.square() + (mean / prior_scale).square() - 1 - 2 * ratio.log()).sum()


def inverse_softplus(value: float) -> float:
    """r with softplus(r) = value > 0."""
    return value + math.log(-math.expm1(-value))


class MeanField(nn.Module):
    """A Gaussian with independent weights.

    Args:
        start: means (P,).
        scale: standard deviations at the start, > 0.
        prior_scale: of N(0, prior_scale^2), > 0; a number or (P,).

    Raises:
        ValueError: a scale that is not positive.
    """

    def __init__(self, start: Tensor, scale: float = 0.01, prior_scale: Tensor | float = 1.0) -> None:
        super().__init__()
        if not scale > 0 or not bool((torch.as_tensor(prior_scale) > 0).all()):
            raise ValueError(f"scale is {scale} and prior_scale {prior_scale}; both must be positive")
        self.mean = nn.Parameter(start.detach().clone())
        self.rho = nn.Parameter(torch.full_like(start, inverse_softplus(scale)))
        self.prior_scale = prior_scale

    @property
    def scale(self) -> Tensor:
        """Standard deviations (P,)."""
        return F.softplus(self.rho)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` reparameterised draws (count, P); gradients reach mean and scale."""
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + self.scale * noise

    def kl(self) -> Tensor:
        """KL to the prior."""
        return gaussian_kl(self.mean, self.scale, self.prior_scale)


def negative_elbo(
    q: MeanField,
    losses: Callable[[Tensor], Tensor],
    n_data: int,
    generator: torch.Generator,
    draws: int = 1,
    temperature: float = 1.0,
) -> Tensor:
    """The bound per training row: mean of `losses` (draws, P) -> (draws,) of mean negative log-likelihoods, + T KL / N."""
    if n_data < 1 or draws < 1 or not temperature >= 0:
        raise ValueError(f"n_data is {n_data}, draws {draws}, temperature {temperature}; need >= 1, >= 1 and >= 0")
    return losses(q.draw(draws, generator)).mean() + temperature * q.kl() / n_data
