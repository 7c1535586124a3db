"""What solving, factorising and Fourier-transforming cost: the leading terms of the textbooks.

Golub and Van Loan, Matrix Computations, 4th edition: each addition and each multiplication of real numbers is one
operation. Iterative methods (eigenvalues, singular values) are taken at the textbook's usual number of passes, so that
sizes alone decide. Backward passes are made of products and solutions of their own, which count as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

Call = dict[str, Any]


def _stack(x: Tensor) -> int:
    """Matrices in it, fourfold where they are complex."""
    return math.prod(x.shape[:-2]) * (4 if x.is_complex() else 1)


def cholesky(call: Call) -> int:
    return _stack(call["self"]) * call["self"].shape[-1] ** 3 // 3


def cholesky_solve(call: Call) -> int:
    """Two triangular systems for each right-hand side."""
    return 2 * _stack(call["result"]) * call["result"].shape[-2] ** 2 * call["result"].shape[-1]


def cholesky_inverse(call: Call) -> int:
    return _stack(call["self"]) * 2 * call["self"].shape[-1] ** 3 // 3


def triangular(call: Call) -> int:
    """One triangular system for each right-hand side, which stand on the right or, with `left` off, below."""
    solution = call["result"][0] if isinstance(call["result"], tuple | list) else call["result"]
    n = call["A" if "B" not in call else "self"].shape[-1]
    return _stack(solution) * n * math.prod(solution.shape[-2:])


def lu(call: Call) -> int:
    x = call["A"] if "A" in call else call["self"]
    m, n = sorted(x.shape[-2:], reverse=True)
    return _stack(x) * (3 * m * n * n - n**3) // 3


def lu_solve(call: Call) -> int:
    return 2 * _stack(call["B"]) * call["LU"].shape[-1] * math.prod(call["B"].shape[-2:])


def solve(call: Call) -> int:
    a, result = call["A"], call["result"][0]
    columns = result.numel() // max(1, math.prod(a.shape[:-1]))
    n = a.shape[-1]
    return _stack(a) * (2 * n**3 // 3 + 2 * n * n * columns)


def inverse(call: Call) -> int:
    return 2 * _stack(call["A"]) * call["A"].shape[-1] ** 3


def qr(call: Call) -> int:
    """Householder's; as much again for the vectors, unless only the triangle is asked for."""
    m, n = sorted(call["A"].shape[-2:], reverse=True)
    triangle = 2 * n * n * (3 * m - n) // 3
    return _stack(call["A"]) * triangle * (1 if call.get("mode", "reduced") == "r" else 2)


def least_squares(call: Call) -> int:
    a, b = call["self"], call["b"]
    m, n = sorted(a.shape[-2:], reverse=True)
    columns = b.shape[-1] if b.dim() == a.dim() else 1
    return _stack(a) * (2 * n * n * (3 * m - n) // 3 + (4 * m * n - n * n) * columns)


def symmetric_eigen(call: Call) -> int:
    n = call["A"].shape[-1]
    return _stack(call["A"]) * (9 * n**3 if call.get("compute_v", True) else 4 * n**3 // 3)


def eigen(call: Call) -> int:
    return 25 * _stack(call["self"]) * call["self"].shape[-1] ** 3


def eigenvalues(call: Call) -> int:
    return 10 * _stack(call["self"]) * call["self"].shape[-1] ** 3


def singular(call: Call) -> int:
    """Golub and Reinsch's."""
    m, n = sorted(call["A"].shape[-2:], reverse=True)
    if not call.get("compute_uv", True):
        each = 4 * n * n * (3 * m - n) // 3
    elif call.get("full_matrices", False):
        each = 4 * m * m * n + 8 * m * n * n + 9 * n**3
    else:
        each = 14 * m * n * n + 8 * n**3
    return _stack(call["A"]) * each


def fourier(call: Call) -> int:
    """5 n log2 n for a transform of n complex numbers, half of that between real and complex ones."""
    x, y = call["self"], call["result"]
    full = x if x.numel() > y.numel() else y
    length = math.prod(full.shape[d] for d in call["dim"])
    share = 1.0 if x.is_complex() and y.is_complex() else 0.5
    return round(5 * share * full.numel() * math.log2(max(1, length)))


FORMULAS: dict[str, Callable[[Call], int]] = {
    "_fft_c2c": fourier,
    "_fft_c2r": fourier,
    "_fft_r2c": fourier,
    "_linalg_det": lu,
    "_linalg_eigh": symmetric_eigen,
    "_linalg_eigvals": eigenvalues,
    "_linalg_slogdet": lu,
    "_linalg_solve_ex": solve,
    "_linalg_svd": singular,
    "cholesky": cholesky,
    "cholesky_inverse": cholesky_inverse,
    "cholesky_solve": cholesky_solve,
    "linalg_cholesky_ex": cholesky,
    "linalg_eig": eigen,
    "linalg_inv_ex": inverse,
    "linalg_ldl_factor_ex": cholesky,
    "linalg_lstsq": least_squares,
    "linalg_lu_factor_ex": lu,
    "linalg_lu": lu,
    "linalg_lu_solve": lu_solve,
    "linalg_qr": qr,
    "linalg_solve_triangular": triangular,
    "triangular_solve": triangular,
}
