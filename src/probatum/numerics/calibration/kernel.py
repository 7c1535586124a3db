"""Calibration error by kernel densities on the simplex: consistent, differentiable, without bins.

Popordanoska, Sayer and Blaschko 2022, "A Consistent and Differentiable Lp Canonical Calibration Error Estimator",
arXiv:2210.07810: E[y | score] is estimated by a ratio of kernel sums that leaves the row itself out, with a Beta kernel
for one score and a Dirichlet kernel for whole vectors of probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BANDWIDTHS = (*(10 ** (-3 + k / 2) for k in range(5)), *(k / 10 for k in range(2, 11)))
"""Candidates among which leave-one-out likelihood chooses: 0.001 to 0.1 in half decades, then 0.2 to 1."""
SMALLEST = 1e-6
"""Scores are kept this far from 0 and 1 (1e-6: also exact enough in float32)."""


def log_kernel(scores: Tensor, bandwidth: float) -> Tensor:
    """log k(s_i; s_j) of all pairs: the density at row i of the kernel that sits at row j.

    Args:
        scores: (n,) in [0, 1], Beta kernels of parameters s_j / h + 1 and (1 - s_j) / h + 1; or (n, K) rows that sum to
            1, Dirichlet kernels of parameters z_j / h + 1.
        bandwidth: h above 0.

    Returns:
        (n, n).
    """
    if not (bandwidth > 0 and math.isfinite(bandwidth)):
        raise ValueError(f"bandwidth is {bandwidth}; use a finite number above 0")
    points = torch.stack([scores, 1 - scores], dim=1) if scores.ndim == 1 else scores
    points = points.clamp(SMALLEST, 1 - SMALLEST)
    alpha = points / bandwidth + 1
    constant = torch.lgamma(alpha.sum(dim=1)) - torch.lgamma(alpha).sum(dim=1)  # (n,), of the kernels
    return points.log() @ (alpha - 1).T + constant


def conditional_mean(scores: Tensor, target: Tensor, bandwidth: float, log_weight: Tensor | None = None) -> Tensor:
    """Leave-one-out estimate of E[target | score] at every row.

    Args:
        scores: (n,) or (n, K), as in `log_kernel`.
        target: (n,) or (n, m), at least 0.
        bandwidth: h above 0.
        log_weight: what `log_kernel` gave for these, to save it.

    Returns:
        shaped like `target`.
    """
    pairs = log_kernel(scores, bandwidth) if log_weight is None else log_weight
    itself = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    weight = pairs.masked_fill(itself, -math.inf).softmax(dim=1)  # a ratio of sums is a softmax: no overflow, no log 0
    return weight @ target.to(weight.dtype)


def best_bandwidth(scores: Tensor, candidates: Sequence[float] = BANDWIDTHS) -> float:
    """The candidate under which the scores are likeliest when every row is left out of its own density."""
    fixed = scores.detach().double()
    found = []
    for bandwidth in candidates:
        pairs = log_kernel(fixed, bandwidth)
        pairs.fill_diagonal_(-math.inf)
        found.append(float(torch.logsumexp(pairs, dim=1).mean()))
    return float(candidates[max(range(len(found)), key=found.__getitem__)])


def kernel_calibration_error(scores: Tensor, target: Tensor, bandwidth: float | None = None, power: int = 1) -> Tensor:
    """mean_i |E[y | s_i] - s_i|^p, differentiable in the scores.

    Args:
        scores: (n,) probabilities of one event, or (n, K) rows of probabilities (canonical calibration).
        target: (n,) outcomes in [0, 1] (0/1, or a graded one such as an overlap); or (n,) int64 classes or (n, K)
            one-hot rows where scores are (n, K).
        bandwidth: of the kernels; None = chosen by `best_bandwidth`, without gradient.
        power: p, 1 or more.

    Returns:
        a scalar; of (n, K) scores the p-norms' p-th power, summed over classes.

    Raises:
        ValueError: fewer than 2 rows, scores outside [0, 1] or of unfit shape, a power below 1, a bandwidth not above 0.
    """
    _check(scores, target, power)
    if scores.ndim == 2 and target.ndim == 1:
        target = torch.nn.functional.one_hot(target.long(), scores.shape[1]).to(scores.dtype)
    bandwidth = best_bandwidth(scores) if bandwidth is None else bandwidth
    gap = (conditional_mean(scores, target, bandwidth) - scores).abs() ** power
    return gap.mean() if gap.ndim == 1 else gap.sum(dim=1).mean()


def _check(scores: Tensor, target: Tensor, power: int) -> None:
    if scores.ndim not in (1, 2) or len(scores) < 2 or len(target) != len(scores):
        raise ValueError(
            f"scores {tuple(scores.shape)} and target {tuple(target.shape)}; give two rows or more, as many of both"
        )
    low, high = float(scores.detach().min()), float(scores.detach().max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"scores span {low:.4g} to {high:.4g}; give probabilities in [0, 1] (softmax or sigmoid first)"
        )
    if scores.ndim == 2 and float((scores.detach().sum(dim=1) - 1).abs().max()) > 0.01:
        raise ValueError("rows of scores do not sum to 1; apply softmax first")
    if power < 1:
        raise ValueError(f"power is {power}; use 1 or more")
