"""Temperature scaling: the one number that makes logits fit held-out targets best."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.numerics.tensors.targets import class_targets

RANGE = (1e-2, 1e2)
"""Temperatures outside this range are not looked at; separable data would otherwise ask for temperature 0."""
LOOK = 6
"""Steps after which the ends of the range are looked at."""


def fit_temperature(logits: Tensor, target: Tensor, *, tolerance: float = 1e-10, max_steps: int = 100) -> float:
    """The temperature T that minimises the mean log-loss of softmax(logits / T), by Newton's method in float64.

    The log-loss is convex in s = 1 / T, so the root of its slope is bracketed and every Newton step that would leave
    the bracket is replaced by a bisection (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: (n, classes).
        target: (n,) int64.
        tolerance: relative error of s at which to stop.
        max_steps: most updates.

    Returns:
        T in [0.01, 100]; an end of the range where the log-loss still falls there.

    Raises:
        ValueError: shapes that do not fit, no rows, or logits that are not finite.
    """
    target = class_targets(logits, target, least=1)
    if not len(logits):
        raise ValueError(f"logits have shape {tuple(logits.shape)}; a temperature is fitted to one row at least")
    z = logits.detach().double()
    if not all(torch.isfinite(end) for end in z.aminmax()):
        raise ValueError("logits hold values that are not finite; look at the rows that produce them")
    depth = (
        z - z.amax(dim=1, keepdim=True)
    ).T.contiguous()  # (classes, n): no exponential overflows, sums run side by side
    own = float(depth.gather(0, target[None]).mean())
    low, high, s = 1 / RANGE[1], 1 / RANGE[0], 1.0
    for step in range(max_steps):
        slope, curvature = _slope(depth, own, s)
        if step == LOOK or slope == 0:  # on data that are fitted without an error Newton's steps never end
            if _slope(depth, own, 1 / RANGE[1])[0] >= 0:
                return RANGE[1]
            if _slope(depth, own, 1 / RANGE[0])[0] <= 0:
                return RANGE[0]
        if slope == 0:
            return 1 / s
        low, high = (low, s) if slope > 0 else (s, high)
        new = s - slope / curvature if curvature > 0 else low
        if low < new < high:
            if abs(new - s) <= 0.01 * tolerance**0.5 * s:  # what is left is of the order of this step's square
                return 1 / new
        else:
            new = min(max((low * high) ** 0.5, s / 3), 3 * s)  # the overshoot of a first step is seldom large
            if high - low <= tolerance * s:
                return 1 / new
        s = new
    return 1 / s


def _slope(depth: Tensor, own: float, s: float) -> tuple[float, float]:
    """First and second derivative of the mean log-loss with respect to the inverse temperature s.

    Args:
        depth: (classes, n) logits below the largest of their row.
        own: the mean of those that belong to the targets.
        s: above 0.
    """
    weight = (depth * s).exp_()
    total = weight.sum(dim=0)
    mean = weight.mul_(depth).sum(dim=0) / total
    square = weight.mul_(depth).sum(dim=0) / total
    return float(mean.mean()) - own, float((square - mean.square()).mean())
