"""Laplace approximations: a Gaussian at the mode whose precision is the generalised Gauss-Newton matrix plus the prior's.

After Daxberger et al. 2021, "Laplace Redux", arXiv:2106.14806. The likelihood is categorical (outputs are logits) or
Gaussian with standard deviation `noise`; the prior N(0, 1 / prior_precision). Weights are flat (P,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.nn import functional as F

Outputs = Callable[[Tensor, Tensor], Tensor]
"""(weights (P,), x (n, ...)) -> outputs (n, outputs)."""


def output_hessian(output: Tensor, noise: float | None) -> Tensor:
    """Hessian (n, K, K) of the negative log-likelihood in the outputs: diag(p) - p p^T, or the identity / noise^2."""
    if noise is not None:
        return torch.eye(output.shape[1], dtype=output.dtype).expand(len(output), -1, -1) / noise**2
    p = output.softmax(dim=1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def jacobians(outputs: Outputs, weights: Tensor, x: Tensor) -> Tensor:
    """d outputs / d weights (n, K, P)."""
    return vmap(lambda row: jacrev(lambda w: outputs(w, row[None])[0])(weights))(x)


def gauss_newton(
    outputs: Outputs, weights: Tensor, x: Tensor, noise: float | None = None, *, diagonal: bool = False, rows: int = 256
) -> Tensor:
    """Sum over rows of J^T H J: (P, P), or its diagonal (P,), for networks small enough that (rows, K, P) fits."""
    size = len(weights)
    found = weights.new_zeros(size if diagonal else (size, size))
    for part in x.split(rows):
        jacobian = jacobians(outputs, weights, part)
        hessian = output_hessian(outputs(weights, part), noise)
        half = torch.einsum("nkl,nlp->nkp", hessian, jacobian)
        found += (half * jacobian).sum(dim=(0, 1)) if diagonal else torch.einsum("nkp,nkq->pq", half, jacobian)
    return found.detach()


def last_layer_gauss_newton(features: Tensor, output: Tensor, noise: float | None = None, rows: int = 256) -> Tensor:
    """The same for the weights (K, D) and biases (K,) of a last linear layer, from its inputs (n, D): (K (D + 1), K (D + 1)).

    Flat weights are [W row by row, b].
    """
    classes, width = output.shape[1], features.shape[1]
    found = features.new_zeros(classes, width + 1, classes, width + 1)
    for some, out in zip(features.split(rows), output.split(rows), strict=True):
        inputs = torch.cat([some, torch.ones_like(some[:, :1])], dim=1)
        found += torch.einsum("nkl,nd,ne->kdle", output_hessian(out, noise), inputs, inputs)
    size = classes * (width + 1)
    order = torch.arange(size).reshape(classes, width + 1)
    flat = torch.cat([order[:, :width].flatten(), order[:, width]])
    return found.reshape(size, size)[flat][:, flat].detach()


@dataclass(frozen=True)
class Laplace:
    """N(mode, (curvature + prior_precision I)^-1).

    Attributes:
        mode: (P,).
        curvature: (P, P), or a diagonal (P,).
        prior_precision: > 0.
        log_likelihood: at the mode, of all training rows; for the evidence.
    """

    mode: Tensor
    curvature: Tensor
    prior_precision: float = 1.0
    log_likelihood: float = math.nan

    def __post_init__(self) -> None:
        if not self.prior_precision > 0:
            raise ValueError(f"prior_precision is {self.prior_precision}; it must be positive")

    def covariance(self) -> Tensor:
        """(P, P), or its diagonal (P,)."""
        if self.curvature.ndim == 1:
            return 1 / (self.curvature + self.prior_precision)
        return torch.cholesky_inverse(self._root())

    def draw(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Weights (count, P); the covariance is multiplied by `temperature`."""
        noise = torch.randn(count, len(self.mode), generator=generator, dtype=self.mode.dtype)
        return self.spread(math.sqrt(temperature) * noise)

    def spread(self, noise: Tensor) -> Tensor:
        """mode + L noise with L L^T the covariance: standard normal noise (count, P) -> weights (count, P)."""
        if self.curvature.ndim == 1:
            return self.mode + noise * self.covariance().sqrt()
        return self.mode + torch.linalg.solve_triangular(self._root().T, noise.T, upper=True).T

    def log_evidence(self) -> float:
        """log p(data) by Laplace's integral, up to what does not hang on the prior."""
        size = len(self.mode)
        if self.curvature.ndim == 1:
            logdet = float((self.curvature + self.prior_precision).log().sum())
        else:
            logdet = float(2 * self._root().diagonal().log().sum())
        prior = 0.5 * size * math.log(self.prior_precision) - 0.5 * self.prior_precision * float(
            self.mode.square().sum()
        )
        return self.log_likelihood + prior - 0.5 * logdet

    def linearised_variance(self, jacobian: Tensor) -> Tensor:
        """Covariance (n, K, K) of the outputs of the network made linear at the mode, from J (n, K, P)."""
        if self.curvature.ndim == 1:
            return torch.einsum("nkp,p,nlp->nkl", jacobian, self.covariance(), jacobian)
        flat = jacobian.flatten(0, 1).T
        half = torch.linalg.solve_triangular(self._root(), flat, upper=False).T.reshape(jacobian.shape)
        return half @ half.transpose(1, 2)

    def _root(self) -> Tensor:
        eye = torch.eye(len(self.mode), dtype=self.mode.dtype)
        return torch.linalg.cholesky(self.curvature + self.prior_precision * eye)


def fit_prior_precision(
    make: Callable[[float], Laplace], low: float = 1e-4, high: float = 1e4, count: int = 33
) -> Laplace:
    """The approximation with the largest evidence on a logarithmic grid of prior precisions."""
    grid = torch.logspace(math.log10(low), math.log10(high), count).tolist()
    return max((make(value) for value in grid), key=Laplace.log_evidence)


def probit_probabilities(mean: Tensor, variance: Tensor) -> Tensor:
    """Mean softmax (n, K) of Gaussian logits by the extended probit approximation; variance (n, K) of each logit."""
    return F.softmax(mean / (1 + math.pi / 8 * variance).sqrt(), dim=1)
