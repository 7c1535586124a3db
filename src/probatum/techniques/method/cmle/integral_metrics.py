"""Distances between two samples that networks can be trained to make small: MMD and entropic transport."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from probatum.numerics.tensors.precision import computed_wide

LOOK = 10
"""Rounds of Sinkhorn's between two looks at how far the plan's marginals are off."""
NEAR, FAR = 1e-6, 1e-3
"""Shares of what they ought to be by which marginals may be off: rounds stop at the first, the second is told."""


@computed_wide
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) squared distances of rows (n, d) and (m, d), by inner products of centred rows: memory is n m, not n m d."""
    centre = torch.cat([a, b]).detach().mean(dim=0)
    a, b = a - centre, b - centre
    return (a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None] - 2 * a @ b.T).clamp(min=0)


@computed_wide
def linear_mmd(a: Tensor, b: Tensor) -> Tensor:
    """|mean a - mean b|^2 of samples (n, d) and (m, d)."""
    return (a.mean(dim=0) - b.mean(dim=0)).square().sum()


@computed_wide
def rbf_mmd(a: Tensor, b: Tensor, scale: float | None = None) -> Tensor:
    """Unbiased estimate of the squared MMD under exp(-|u - v|^2 / (2 scale^2)) (Gretton et al. 2012, equation 3).

    Args:
        a: (n, d), n >= 2.
        b: (m, d), m >= 2.
        scale: of the kernel; None = the median distance of the joint sample, without a gradient; where most of its rows are
            equal, so that the median is rounding noise, the root of the mean squared distance.

    Raises:
        ValueError: a sample of one row, or a scale that is not positive.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"samples have {len(a)} and {len(b)} rows; the unbiased estimate needs 2 or more of each")
    joint = torch.cat([a, b])
    own = torch.eye(len(joint), dtype=torch.bool, device=joint.device)
    squared = squared_distances(joint, joint).masked_fill(own, 0.0)
    if scale is None:
        upper = torch.triu_indices(len(joint), len(joint), offset=1)
        width = _typical(squared.detach()[upper[0], upper[1]], joint.detach())
    elif scale > 0:
        width = squared.new_tensor(float(scale) ** 2)
    else:
        raise ValueError(f"scale is {scale}; it must be above 0")
    kernel = torch.exp(-squared / (2 * width))
    n, m = len(a), len(b)
    own_a = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    own_b = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return own_a + own_b - 2 * kernel[:n, n:].mean()


def _typical(squared: Tensor, rows: Tensor) -> Tensor:
    """The median of squared distances, their mean where the median is no more than rounding, 1 where all are."""
    noise = 32 * torch.finfo(rows.dtype).eps * (rows - rows.mean(dim=0)).square().sum(dim=1).amax()
    for width in (squared.median(), squared.mean()):
        if bool(width > noise):
            return width
    return squared.new_ones(())


@computed_wide
def transport_cost(a: Tensor, b: Tensor, reg: float = 0.1, rounds: int = 1000) -> Tensor:
    """<P, C> of the entropic transport plan P between uniform samples, C the squared distances; Sinkhorn in logarithms.

    The gradient is that with P held fixed, which by the envelope theorem is the gradient of what P minimises,
    <P, C> + reg mean(C) sum P log P. So it is in CFRNet (Shalit et al. 2017), whose release also takes reg by the mean cost.

    Args:
        a: (n, d).
        b: (m, d).
        reg: of the entropy, in units of the mean of C, > 0; so the cost of samples twice as wide is four times as high.
        rounds: updates of both potentials at most; a plan that has not converged by then brings a warning.

    Raises:
        ValueError: for reg not positive, or fewer than one round.
    """
    if not reg > 0 or rounds < 1:
        raise ValueError(f"reg is {reg} and rounds {rounds}; they must be above 0 and at least 1")
    cost = squared_distances(a, b)
    return (_plan(cost.detach().double(), reg, rounds).to(cost) * cost).sum()


def _plan(cost: Tensor, reg: float, rounds: int) -> Tensor:
    """Sinkhorn's plan (n, m) for a cost in float64 between uniform weights; its columns are exact."""
    n, m = cost.shape
    scores = -cost / (reg * cost.mean()).clamp_min(torch.finfo(cost.dtype).tiny)
    f, g, off = cost.new_zeros(n), cost.new_zeros(m), math.inf
    for turn in range(rounds):
        before, f = f, -math.log(n) - torch.logsumexp(scores + g[None], dim=1)
        if turn % LOOK == LOOK - 1 or turn == rounds - 1:
            off = float((before - f).exp().sub(1).abs().max())  # of the rows, before they were mended
            if off < NEAR:
                break
        g = -math.log(m) - torch.logsumexp(scores + f[:, None], dim=0)
    if off >= FAR:
        warnings.warn(
            f"after {rounds} rounds the transport plan's marginals are off by {off:.1e} of their size; raise reg or rounds",
            stacklevel=3,
        )
    return torch.exp(scores + f[:, None] + g[None])
