"""Linear inverse problems b = A x + noise: small operators, and plug-and-play solvers that take a denoiser as prior.

Rows are independent problems: every tensor is (n, ...), and an operator acts on all rows at once. No operator here
lengthens a vector, and all keep the shape of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("denoise", "inpaint", "blur")


class Operator(Protocol):
    """A linear map of rows x (n, ...) with norm at most 1; `kind` is one of KINDS."""

    @property
    def kind(self) -> str: ...

    def apply(self, x: Tensor) -> Tensor: ...

    def adjoint(self, b: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """A = I: what is left is to take the noise away."""

    kind: str = "denoise"

    def apply(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, b: Tensor) -> Tensor:
        return b


@dataclass(frozen=True)
class Mask:
    """A x = keep * x: entries where `keep` (1 or n, ...) is 0 are lost."""

    keep: Tensor
    kind: str = "inpaint"

    def apply(self, x: Tensor) -> Tensor:
        return self.keep * x

    def adjoint(self, b: Tensor) -> Tensor:
        return self.keep * b


@dataclass(frozen=True)
class Blur:
    """Every channel is convolved along each of its axes with the same taps, zeros outside.

    Attributes:
        taps: (k,) with odd k, symmetric, positive, of sum at most 1; so A is its own adjoint and no longer than 1.
    """

    taps: Tensor
    kind: str = "blur"

    def __post_init__(self) -> None:
        taps = self.taps
        fine = taps.ndim == 1 and len(taps) % 2 == 1 and torch.equal(taps, taps.flip(0)) and bool((taps >= 0).all())
        if not fine or float(taps.sum()) > 1 + 1e-6:
            raise ValueError(f"taps are {taps.tolist()}; give an odd number of them, symmetric, positive, of sum <= 1")

    def apply(self, x: Tensor) -> Tensor:
        if x.ndim not in (3, 4):
            raise ValueError(f"x has shape {tuple(x.shape)}; blur takes (n, channels, time) or (n, channels, h, w)")
        taps = self.taps.to(x)
        half = len(taps) // 2
        if x.ndim == 3:
            return F.conv1d(x.flatten(0, 1)[:, None], taps[None, None], padding=half)[:, 0].view_as(x)
        flat = x.flatten(0, 1)[:, None]
        flat = F.conv2d(flat, taps[None, None, :, None], padding=(half, 0))
        return F.conv2d(flat, taps[None, None, None, :], padding=(0, half))[:, 0].view_as(x)

    def adjoint(self, b: Tensor) -> Tensor:
        return self.apply(b)


def binomial_blur() -> Blur:
    """Blur by (1, 4, 6, 4, 1) / 16 along every axis, close to a Gaussian of standard deviation 1."""
    return Blur(torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of every row: (n, ...), (n, ...) -> (n, 1, ...), which broadcasts against rows."""
    return (a * b).flatten(1).sum(dim=1).view(-1, *[1] * (a.ndim - 1))


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, *, iterations: int = 100, tolerance: float = 1e-6
) -> Tensor:
    """Solve product(u) = b for every row (n, ...), product linear, symmetric and positive definite on each row.

    Stops where every residual is at most `tolerance` times its row of b (or after `iterations`).
    """
    u = torch.zeros_like(b)
    residual, direction = b.clone(), b.clone()
    square = dot(residual, residual)
    least = (tolerance**2 * square).clamp_min(torch.finfo(b.dtype).tiny)
    for _ in range(iterations):
        open_rows = square > least
        if not open_rows.any():
            break
        image = product(direction)
        curvature = dot(direction, image)
        step = torch.where(open_rows & (curvature > 0), square / curvature.clamp_min(torch.finfo(b.dtype).tiny), 0.0)
        u, residual = u + step * direction, residual - step * image
        new = dot(residual, residual)
        direction = (
            residual + torch.where(open_rows, new / square.clamp_min(torch.finfo(b.dtype).tiny), 0.0) * direction
        )
        square = torch.where(open_rows, new, square)
    return u


def closest(operator: Operator, b: Tensor, z: Tensor, rho: float) -> Tensor:
    """argmin over u of |A u - b|^2 / 2 + rho |u - z|^2 / 2, row by row; ValueError unless rho is above 0."""
    _check_rho(rho)
    if isinstance(operator, Identity | Mask):  # diagonal: no solver needed
        diagonal = operator.apply(torch.ones_like(z))
        return (operator.adjoint(b) + rho * z) / (diagonal.square() + rho)

    def product(u: Tensor) -> Tensor:
        return operator.adjoint(operator.apply(u)) + rho * u

    return z + conjugate_gradients(product, operator.adjoint(b) + rho * z - product(z))


class Solution(NamedTuple):
    """What a plug-and-play solver ends with.

    Attributes:
        x: (n, ...) the last output of the denoiser.
        dual: (n, ...) its last input less x; where the denoiser is the proximal operator of R and the iteration has
            come to rest, a gradient of R at x.
        moved: how far x moved in the last iteration, root mean square.
    """

    x: Tensor
    dual: Tensor
    moved: float


def admm(
    operator: Operator, b: Tensor, denoise: Callable[[Tensor], Tensor], *, rho: float = 1.0, iterations: int = 50
) -> Solution:
    """Plug-and-play ADMM: u = argmin |A u - b|^2 / 2 + rho |u - v + w|^2 / 2, v = denoise(u + w), w += u - v.

    Where `denoise` is the proximal operator of R, a point of rest is stationary for |A x - b|^2 / (2 rho) + R(x).

    Args:
        operator: A.
        b: (n, ...) what was measured.
        denoise: rows -> rows, the prior.
        rho: noise variance of b over that for which the denoiser was made, above 0.
        iterations: how many, at least 1.
    """
    _check_iterations(iterations)
    v = operator.adjoint(b)
    w = torch.zeros_like(v)
    moved = math.inf
    for _ in range(iterations):
        u = closest(operator, b, v - w, rho)
        new = denoise(u + w)
        w = w + u - new
        moved = float((new - v).square().mean().sqrt())
        v = new
    return Solution(v, w, moved)


def pgd(
    operator: Operator, b: Tensor, denoise: Callable[[Tensor], Tensor], *, rho: float = 1.0, iterations: int = 50
) -> Solution:
    """Plug-and-play proximal gradient descent: x = denoise(x - A^T (A x - b) / rho), for the same points of rest as `admm`.

    Raises:
        ValueError: rho below 1, where steps of length 1 can go too far.
    """
    _check_rho(rho)
    _check_iterations(iterations)
    if rho < 1:
        raise ValueError(
            f"rho is {rho:.4g}, but proximal gradient steps need at least 1 (noise of the data at least that "
            "of the denoiser); use ADMM"
        )
    x = operator.adjoint(b)
    moved, y = math.inf, x
    for _ in range(iterations):
        y = x - operator.adjoint(operator.apply(x) - b) / rho
        new = denoise(y)
        moved = float((new - x).square().mean().sqrt())
        x = new
    return Solution(x, y - x, moved)


def _check_rho(rho: float) -> None:
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"rho is {rho}; give a finite number above 0")


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; give at least 1")
