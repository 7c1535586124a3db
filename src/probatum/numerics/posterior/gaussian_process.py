"""Gaussian processes and Bayesian linear regression in closed form, exact and sparse (Rasmussen and Williams 2006).

Everything is solved by Cholesky factors in float64; the observation noise is kept apart from the variance of the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, d), (m, d) -> (n, m)."""


FEW = 16
"""Rows whose kernel matrix is computed for its diagonal; below 25 torch takes distances without cancellation."""


@dataclass(frozen=True, eq=False)
class rbf:  # noqa: N801 (used as a function is; a class, so that what holds it can be pickled)
    """The kernel scale^2 exp(-|x - z|^2 / 2), inputs divided by `length` (a number or (d,))."""

    length: Tensor | float = 1.0
    scale: Tensor | float = 1.0

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """(n, d), (m, d) -> (n, m)."""
        return self.scale**2 * (-0.5 * torch.cdist(x / self.length, z / self.length).square()).exp()


@dataclass(frozen=True, eq=False)
class linear:  # noqa: N801
    """The kernel scale^2 x.z + bias^2."""

    scale: float = 1.0
    bias: float = 0.0

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """(n, d), (m, d) -> (n, m)."""
        return self.scale**2 * x @ z.T + self.bias**2


def prior_variance(kernel: Kernel, x: Tensor) -> Tensor:
    """The kernel of every row with itself: (n, d) -> (n,), some rows at a time."""
    blocks = [kernel(rows, rows).diagonal() for rows in x.split(FEW)] if len(x) else []
    return torch.cat(blocks) if blocks else x.new_zeros(0)


def targets_of(x: Tensor, y: Tensor) -> Tensor:
    """Targets (n, k) in float64, of (n, k) or (n,); ValueError for another number of rows."""
    y = y.double()
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != len(x):
        raise ValueError(
            f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}; expected one row of targets a row"
        )
    return y


def cholesky(matrix: Tensor, jitter: float = 1e-10) -> Tensor:
    """Lower factor of a symmetric matrix, in float64, with the least jitter of 0, 1e-10, ..., 1e-4 times the mean diagonal.

    Raises:
        ValueError: a matrix that is not finite or not positive semi-definite, with its least eigenvalue.
    """
    found = matrix.double()
    if not bool(found.isfinite().all()):
        raise ValueError("the covariance holds values that are not finite; look at inputs and kernel")
    size = float(found.diagonal().mean().detach().abs()) or 1.0
    eye = torch.eye(len(found), dtype=found.dtype)
    for power in (None, *range(7)):
        added = 0.0 if power is None else jitter * 10**power * size
        root, failed = torch.linalg.cholesky_ex(found + added * eye)
        if not bool(failed):
            return root
    least = float(torch.linalg.eigvalsh(found.detach())[0])
    raise ValueError(
        f"the kernel matrix is not positive semi-definite (least eigenvalue {least:.3g}); use a valid kernel such as rbf"
    )


@dataclass(frozen=True)
class GaussianProcess:
    """A Gaussian process given data; its mean before is 0.

    Attributes:
        kernel: of the function.
        noise: standard deviation of the observations, > 0.
        x: (n, d).
        root: lower factor of K + noise^2 I.
        weights: (K + noise^2 I)^-1 y, (n, k).
        log_evidence: log p(y | x) (k,).
    """

    kernel: Kernel
    noise: float
    x: Tensor
    root: Tensor
    weights: Tensor
    log_evidence: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """Mean of the function (m, k)."""
        return self.kernel(x.double(), self.x) @ self.weights

    def variance(self, x: Tensor) -> Tensor:
        """Variance (m,) of the function, without the observation noise."""
        x = x.double()
        half = torch.linalg.solve_triangular(self.root, self.kernel(self.x, x), upper=False)
        return (prior_variance(self.kernel, x) - half.square().sum(dim=0)).clamp_min(0.0)

    def covariance(self, x: Tensor) -> Tensor:
        """Covariance (m, m) of the function."""
        x = x.double()
        half = torch.linalg.solve_triangular(self.root, self.kernel(self.x, x), upper=False)
        return self.kernel(x, x) - half.T @ half

    def draw(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Functions at x: (count, m, k)."""
        root = cholesky(self.covariance(x))
        noise = torch.randn(count, len(x), self.weights.shape[1], generator=generator, dtype=torch.float64)
        return self.mean(x) + root @ noise


def gaussian_process(x: Tensor, y: Tensor, kernel: Kernel, noise: float) -> GaussianProcess:
    """Condition on rows x (n, d) and targets y (n, k) or (n,).

    Example:
        >>> x = torch.linspace(0, 6, 12)[:, None]
        >>> found = gaussian_process(x, x.sin(), rbf(1.0), 0.01)
        >>> bool((found.mean(x) - x.sin()).abs().max() < 0.01), bool(found.variance(x + 50).max() > 0.99)
        (True, True)
    """
    if not noise > 0:
        raise ValueError(f"noise is {noise}; a standard deviation must be positive")
    x, y = x.double(), targets_of(x, y)
    n = len(x)
    root = cholesky(kernel(x, x) + noise**2 * torch.eye(n, dtype=x.dtype))
    weights = torch.cholesky_solve(y, root)
    evidence = -0.5 * (y * weights).sum(dim=0) - root.diagonal().log().sum() - 0.5 * n * math.log(2 * math.pi)
    return GaussianProcess(kernel, noise, x, root, weights, evidence)


def fit_rbf(
    x: Tensor, y: Tensor, steps: int = 60, *, separate: bool = False, least_noise: float = 1e-3
) -> tuple[Tensor, float, float]:
    """Length (d,) or (1,), scale and noise with the largest evidence, by L-BFGS from the median distance.

    Args:
        x: (n, d).
        y: (n, k) or (n,), about unit variance.
        steps: of L-BFGS at most.
        separate: one length an input.
        least_noise: noise is kept above it.
    """
    x, y = x.double(), targets_of(x, y)
    distance = float(torch.pdist(x[:300]).median().clamp_min(1e-3)) if len(x) > 2 else 1.0
    logs = torch.zeros((x.shape[1] if separate else 1) + 2, dtype=torch.float64)
    logs[:-2], logs[-1] = math.log(distance), math.log(0.3)
    logs.requires_grad_(True)
    optimizer = torch.optim.LBFGS([logs], max_iter=steps, line_search_fn="strong_wolfe")
    span = 7.0

    def parts() -> tuple[Tensor, Tensor, Tensor]:
        kept = logs.clamp(-span, span)
        return kept[:-2].exp(), kept[-2].exp(), least_noise + kept[-1].exp()

    def closure() -> Tensor:
        optimizer.zero_grad()
        length, scale, noise = parts()
        kernel = rbf(length, scale)(x, x) + noise**2 * torch.eye(len(x), dtype=x.dtype)
        root = cholesky(kernel)
        half = torch.linalg.solve_triangular(root, y, upper=False)
        loss = (0.5 * half.square().sum() + y.shape[1] * root.diagonal().log().sum()) / y.numel()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    with torch.no_grad():
        length, scale, noise = parts()
    return length.detach(), float(scale), float(noise)


@dataclass(frozen=True)
class LinearPosterior:
    """Gaussian posterior of weights.

    Attributes:
        mean: (d, k).
        root: lower factor of the precision (d, d).
        log_evidence: log p(y | x), (k,).
    """

    mean: Tensor
    root: Tensor
    log_evidence: Tensor

    def variance(self, x: Tensor) -> Tensor:
        """Variance (m,) of x w, without noise."""
        return torch.linalg.solve_triangular(self.root, x.double().T, upper=False).square().sum(dim=0)

    def covariance(self) -> Tensor:
        """(d, d)."""
        return torch.cholesky_inverse(self.root)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Weights (count, d, k)."""
        noise = torch.randn(count, *self.mean.shape, generator=generator, dtype=torch.float64)
        return self.mean + torch.linalg.solve_triangular(self.root.T, noise, upper=True)


def bayesian_linear(x: Tensor, y: Tensor, noise: float, prior: float = 1.0) -> LinearPosterior:
    """Bayesian linear regression: precision X^T X / noise^2 + I / prior^2, mean of it times X^T y / noise^2.

    Args:
        x: features (n, d).
        y: targets (n, k).
        noise, prior: standard deviations of observations and of weights, > 0.
    """
    if not noise > 0 or not prior > 0:
        raise ValueError(f"noise is {noise} and prior {prior}; standard deviations must be positive")
    x, y = x.double(), targets_of(x, y)
    n, d = x.shape
    root = cholesky(x.T @ x / noise**2 + torch.eye(d, dtype=x.dtype) / prior**2)
    mean = torch.cholesky_solve(x.T @ y / noise**2, root)
    fit = (y - x @ mean).square().sum(dim=0) / noise**2 + mean.square().sum(dim=0) / prior**2
    logdet = 2 * root.diagonal().log().sum() + 2 * d * math.log(prior) + 2 * n * math.log(noise)
    return LinearPosterior(mean, root, -0.5 * (fit + logdet + n * math.log(2 * math.pi)))


def fourier_features(
    inputs: int, count: int, length: Tensor | float, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """x (n, inputs) -> (n, count) whose products approach the unit RBF kernel (Rahimi and Recht 2007)."""
    if count < 1:
        raise ValueError(f"count is {count}; use 1 or more features")
    frequency = torch.randn(inputs, count, generator=generator, dtype=torch.float64) / torch.as_tensor(length).reshape(
        -1, 1
    )
    phase = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    return partial(_waves, frequency, phase)


def _waves(frequency: Tensor, phase: Tensor, x: Tensor) -> Tensor:
    return math.sqrt(2 / len(phase)) * torch.cos(x.double() @ frequency + phase)


@dataclass(frozen=True)
class SparseProcess:
    """A process seen through inducing points (see `sparse_process`)."""

    kernel: Kernel
    inducing: Tensor
    prior_root: Tensor
    root: Tensor
    weights: Tensor
    fitc: bool

    def mean(self, x: Tensor) -> Tensor:
        """(m, k)."""
        return self.kernel(x.double(), self.inducing) @ self.weights

    def variance(self, x: Tensor) -> Tensor:
        """Variance (m,) of the function; of SoR it falls to 0 far from the inducing points."""
        cross = self.kernel(self.inducing, x.double())
        left = torch.linalg.solve_triangular(self.root, cross, upper=False).square().sum(dim=0)
        if not self.fitc:
            return left
        prior = prior_variance(self.kernel, x.double())
        known = torch.linalg.solve_triangular(self.prior_root, cross, upper=False).square().sum(dim=0)
        return (prior - known + left).clamp_min(0.0)


def sparse_process(
    x: Tensor, y: Tensor, inducing: Tensor, kernel: Kernel, noise: float, *, fitc: bool = True
) -> SparseProcess:
    """Subset of regressors, or FITC, which adds each row's own left-out variance (Quinonero-Candela and Rasmussen 2005)."""
    x, y, inducing = x.double(), targets_of(x, y), inducing.double()
    prior = kernel(inducing, inducing)
    prior_root = cholesky(prior)
    cross = kernel(inducing, x)
    half = torch.linalg.solve_triangular(prior_root, cross, upper=False)
    own = noise**2 * torch.ones(len(x), dtype=x.dtype)
    if fitc:
        own = own + (prior_variance(kernel, x) - half.square().sum(dim=0)).clamp_min(0.0)
    root = cholesky(prior + (cross / own) @ cross.T)
    weights = torch.cholesky_solve((cross / own) @ y, root)
    return SparseProcess(kernel, inducing, prior_root, root, weights, fitc)


def greedy_information(covariance: Tensor, noise: float, count: int) -> list[int]:
    """Points chosen one by one for the most information about the function: at least 1 - 1/e of the best set's."""
    covariance, chosen = covariance.double().clone(), []
    for _ in range(count):
        gain = covariance.diagonal().clone()
        gain[chosen] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        column = covariance[:, best] / math.sqrt(float(covariance[best, best]) + noise**2)
        covariance = covariance - column[:, None] * column[None, :]
    return chosen
