"""Temperature scaling: the one number that makes logits fit held-out targets best."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.numerics.tensors.targets import class_targets

RANGE = (1e-2, 1e2)
"""Temperatures outside this range are not looked at; separable data would otherwise ask for temperature 0."""


def fit_temperature(logits: Tensor, target: Tensor, *, tolerance: float = 1e-10, max_steps: int = 100) -> float:
    """The temperature T that minimises the mean log-loss of softmax(logits / T), by Newton's method in float64.

    The log-loss is convex in s = 1 / T, so the root of its slope is bracketed and every Newton step that would leave
    the bracket is replaced by a bisection (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: (n, classes).
        target: (n,) int64.
        tolerance: relative change of s at which to stop.
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
    if not torch.isfinite(z).all():
        raise ValueError("logits hold values that are not finite; look at the rows that produce them")
    own = z.gather(1, target[:, None]).squeeze(1)  # (n,)
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    if _slope(z, own, low)[0] >= 0:
        return RANGE[1]
    if _slope(z, own, high)[0] <= 0:
        return RANGE[0]
    s = 1.0
    for _ in range(max_steps):
        slope, curvature = _slope(z, own, s)
        if slope > 0:
            high = s
        else:
            low = s
        step = s - slope / curvature if curvature > 0 else low
        new = step if low < step < high else (low * high) ** 0.5
        if abs(new - s) <= tolerance * s:
            return 1 / new
        s = new
    return 1 / s


def _slope(z: Tensor, own: Tensor, s: float) -> tuple[float, float]:
    """First and second derivative of the mean log-loss with respect to the inverse temperature s."""
    p = (s * z).softmax(dim=1)
    expected = (p * z).sum(dim=1)  # (n,)
    variance = (p * (z - expected[:, None]).square()).sum(dim=1)
    return float((expected - own).mean()), float(variance.mean())
