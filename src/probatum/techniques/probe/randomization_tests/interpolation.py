"""Functions that take given values at given points: the small ReLU network, and interpolants of smallest norm.

Zhang et al. 2017, arXiv:1611.03530, theorem 1 and section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """c(x) = sum_j w_j max(<a, x> - b_j, 0): a (d,), b (n,), w (n,), float64; 2n + d parameters."""

    a: Tensor
    b: Tensor
    w: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() @ self.a[:, None] - self.b).relu() @ self.w


def memorise(x: Tensor, y: Tensor, generator: torch.Generator) -> Memory:
    """The two-layer ReLU network of theorem 1 that takes any values y (n,) at n distinct points x (n, d).

    Raises:
        ValueError: equal rows with different values; naming two of them.
    """
    points, values = x.double(), y.double()
    a = torch.randn(x.shape[1], dtype=torch.float64, generator=generator)
    z, order = (points @ a).sort()
    same = (z.diff() == 0).nonzero().squeeze(1)
    for i in same.tolist():
        first, second = int(order[i]), int(order[i + 1])
        if values[first] != values[second]:
            raise ValueError(
                f"rows {first} and {second} are equal but have values {float(y[first])} and {float(y[second])}; "
                "no function fits both: remove one"
            )
    keep = torch.ones(len(z), dtype=torch.bool)
    keep[same + 1] = False
    z, values = z[keep], values[order][keep]
    # A kink just behind the point before it damps the slopes' alternation, so that the triangular system stays tame.
    b = torch.cat([z[:1] - 1, z[:-1] + 0.1 * z.diff()])
    matrix = (z[:, None] - b).relu()
    w = torch.linalg.solve_triangular(matrix, values[:, None], upper=False).squeeze(1)
    return Memory(a, b, w)


def minimum_norm(x: Tensor, y: Tensor) -> Tensor:
    """The interpolant of smallest norm: w = X^T (X X^T)^-1 y; x (n, d) with n <= d, y (n, ...) -> (d, ...), float64.

    Raises:
        ValueError: rows that are linearly dependent with values that no w fits.
    """
    return x.double().T @ kernel_interpolant(x.double() @ x.double().T, y)


def kernel_interpolant(kernel: Tensor, y: Tensor) -> Tensor:
    """alpha with K alpha = y: kernel (n, n) positive semi-definite, y (n, ...) -> (n, ...), float64.

    Raises:
        ValueError: a kernel that is singular on these values, e.g. equal rows with different ones.
    """
    k, values = kernel.double(), y.double()
    alpha = torch.linalg.lstsq(k, values if values.ndim > 1 else values[:, None], driver="gelsd").solution
    alpha = alpha if values.ndim > 1 else alpha.squeeze(1)
    worst = float((k @ alpha - values).abs().max())
    if worst > 1e-6 * max(1.0, float(values.abs().max())):
        raise ValueError(f"K alpha misses y by {worst:.2g}; rows are equal or dependent: remove them or add a ridge")
    return alpha
