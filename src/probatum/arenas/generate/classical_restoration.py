"""Restoration without a network: total variation, and the posterior mean under a Gaussian law of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probatum.numerics.images.restoration import Operator, conjugate_gradients


def differences(x: Tensor) -> Tensor:
    """Forward differences along every axis but rows and channels, 0 at the end: (n, c, ...) -> (axes, n, c, ...)."""
    found = []
    for axis in range(2, x.ndim):
        d = torch.zeros_like(x)
        size = x.shape[axis] - 1
        d.narrow(axis, 0, size).copy_(x.narrow(axis, 1, size) - x.narrow(axis, 0, size))
        found.append(d)
    return torch.stack(found)


def gathered(p: Tensor) -> Tensor:
    """The adjoint of `differences`: (axes, n, c, ...) -> (n, c, ...)."""
    x = torch.zeros_like(p[0])
    for axis, d in enumerate(p, start=2):
        size = x.shape[axis] - 1
        inner = d.narrow(axis, 0, size)
        x.narrow(axis, 1, size).add_(inner)
        x.narrow(axis, 0, size).sub_(inner)
    return x


def variation(x: Tensor) -> Tensor:
    """Isotropic total variation of every row: (n, c, ...) -> (n,)."""
    return differences(x).square().sum(dim=0).sqrt().flatten(1).sum(dim=1)


def total_variation(operator: Operator, b: Tensor, weight: float, *, iterations: int = 200) -> Tensor:
    """argmin over x of |A x - b|^2 / 2 + weight TV(x) by a primal-dual method (Condat 2013, Vu 2013); |A| at most 1.

    Args:
        operator: A.
        b: (n, channels, ...) what was measured.
        weight: of the isotropic total variation, at least 0.
        iterations: how many.
    """
    if not weight >= 0:
        raise ValueError(f"weight is {weight}; give a number of at least 0")
    sigma = 0.25
    tau = 1 / (0.5 + sigma * 4 * (b.ndim - 2))  # 1 / tau - sigma |D|^2 >= |A|^2 / 2, and |D|^2 <= 4 axes
    x = operator.adjoint(b)
    p = torch.zeros_like(differences(x))
    for _ in range(iterations):
        new = x - tau * (operator.adjoint(operator.apply(x) - b) + gathered(p))
        p = p + sigma * differences(2 * new - x)
        length = p.square().sum(dim=0).sqrt()
        p = p * (weight / length.clamp_min(1e-30)).clamp_max(1.0)
        x = new
    return x


@dataclass(frozen=True)
class GaussianLaw:
    """Rows as draws from one Gaussian: mean (d,) and covariance (d, d) of the flattened rows."""

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(x: Tensor) -> GaussianLaw:
        """The law of rows x (n, ...), n at least 2."""
        flat = x.flatten(1)
        if len(flat) < 2:
            raise ValueError(f"{len(flat)} rows have no covariance; give at least 2")
        return GaussianLaw(flat.mean(dim=0), torch.cov(flat.T).reshape(flat.shape[1], flat.shape[1]))

    def restore(self, operator: Operator, b: Tensor, noise: float) -> Tensor:
        """The posterior mean of x given b = A x + noise of this standard deviation (Wiener's filter), (n, ...)."""
        if not noise > 0:
            raise ValueError(f"noise is {noise}; give a standard deviation above 0")

        def spread(z: Tensor) -> Tensor:
            return (z.flatten(1) @ self.covariance).view_as(z)

        centre = self.mean.expand(len(b), -1).reshape(b.shape)

        def product(z: Tensor) -> Tensor:
            return operator.apply(spread(operator.adjoint(z))) + noise**2 * z

        weights = conjugate_gradients(product, b - operator.apply(centre))
        return centre + spread(operator.adjoint(weights))
