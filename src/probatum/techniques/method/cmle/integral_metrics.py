"""Distances between two samples that networks can be trained to make small: MMD and entropic transport."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_mmd(a: Tensor, b: Tensor) -> Tensor:
    """|mean a - mean b|^2 of samples (n, d) and (m, d)."""
    return (a.mean(dim=0) - b.mean(dim=0)).square().sum()


def rbf_mmd(a: Tensor, b: Tensor, scale: float | None = None) -> Tensor:
    """Unbiased estimate of the squared MMD under exp(-|u - v|^2 / (2 scale^2)) (Gretton et al. 2012, equation 3).

    Args:
        a: (n, d), n >= 2.
        b: (m, d), m >= 2.
        scale: of the kernel; None = the median distance of the joint sample, without a gradient.

    Raises:
        ValueError: a sample of one row, or a scale that is not positive.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"samples have {len(a)} and {len(b)} rows; the unbiased estimate needs 2 or more of each")
    joint = torch.cat([a, b])
    squared = (joint[:, None] - joint[None]).square().sum(dim=2)
    if scale is None:
        upper = torch.triu_indices(len(joint), len(joint), offset=1)
        width = squared.detach()[upper[0], upper[1]].median().clamp_min(1e-12)
    elif scale > 0:
        width = squared.new_tensor(float(scale) ** 2)
    else:
        raise ValueError(f"scale is {scale}; it must be above 0")
    kernel = torch.exp(-squared / (2 * width))
    n, m = len(a), len(b)
    own_a = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    own_b = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return own_a + own_b - 2 * kernel[:n, n:].mean()


def transport_cost(a: Tensor, b: Tensor, reg: float = 0.1, rounds: int = 100) -> Tensor:
    """<P, C> of the entropic transport plan P between uniform samples, C the squared distances; Sinkhorn in logarithms.

    Args:
        a: (n, d).
        b: (m, d).
        reg: of the entropy, in units of C, > 0.
        rounds: updates of both potentials.

    Raises:
        ValueError: for reg not positive, or fewer than one round.
    """
    if not reg > 0 or rounds < 1:
        raise ValueError(f"reg is {reg} and rounds {rounds}; they must be above 0 and at least 1")
    cost = (a[:, None] - b[None]).square().sum(dim=2)
    scores = -cost / reg
    log_a = -torch.log(torch.tensor(float(len(a)), dtype=a.dtype))
    log_b = -torch.log(torch.tensor(float(len(b)), dtype=a.dtype))
    f, g = cost.new_zeros(len(a)), cost.new_zeros(len(b))
    for _ in range(rounds):
        f = log_a - torch.logsumexp(scores + g[None], dim=1)
        g = log_b - torch.logsumexp(scores + f[:, None], dim=0)
    return (torch.exp(scores + f[:, None] + g[None]) * cost).sum()
