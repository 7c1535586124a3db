"""How well a score tells rows of the kind the model knows (inside) from rows from elsewhere (outside)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def auroc(inside: Any, outside: Any) -> float:
    """Return the chance that a row inside scores higher than a row outside, ties counted half.

    Args:
        inside: (n,) scores, higher = more like the known rows; arrays or tensors.
        outside: (m,) scores.

    Raises:
        ValueError: for empty or non-finite scores.
    """
    low, high = np.sort(_scores(outside, "outside")), _scores(inside, "inside")
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.sum() / 2 / len(low) / len(high))


def fpr_at(inside: Any, outside: Any, rate: float = 0.95) -> float:
    """Return the share of outside rows let in by the highest threshold (>=) that lets in `rate` of the inside rows.

    Raises:
        ValueError: for a rate outside (0, 1], or scores as in `auroc`.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; use a share in (0, 1]")
    known = np.sort(_scores(inside, "inside"))[::-1]
    threshold = known[math.ceil(round(rate * len(known), 9)) - 1]
    return float((_scores(outside, "outside") >= threshold).mean())


def aupr(inside: Any, outside: Any) -> float:
    """Return the average precision of finding inside rows by high scores; ties are taken together."""
    known, other = _scores(inside, "inside"), _scores(outside, "outside")
    scores, truth = np.concatenate([known, other]), np.repeat([1.0, 0.0], [len(known), len(other)])
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    ends = np.append(scores[1:] != scores[:-1], True)
    hits, taken = np.cumsum(truth)[ends], np.flatnonzero(ends) + 1
    return float((np.diff(hits, prepend=0) * hits / taken).sum() / truth.sum())


def _scores(values: Any, what: str) -> np.ndarray:
    found = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64).reshape(-1)
    if not len(found) or not np.isfinite(found).all():
        bad = int((~np.isfinite(found)).sum())
        raise ValueError(f"{what} has {len(found)} scores, {bad} not finite; give one finite score a row, one or more")
    return found
