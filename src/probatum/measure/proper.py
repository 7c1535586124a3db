"""Proper scores, and what they are made of: the Brier score's parts, CRPS for reals, the spherical score."""

from __future__ import annotations

import numpy as np

from probatum.numerics.calibration.reliability import equal_mass, equal_width


def log_loss(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return -log p of the true class (n,), nats; p (n, K), y (n,) codes; p is kept at least 1e-300 from 0."""
    return -np.log(np.maximum(_rows(p, y)[np.arange(len(y)), y], 1e-300))


def brier(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the squared distance (n,) in [0, 2] of probabilities (n, K) to the one-hot truth."""
    return np.square(_rows(p, y) - np.eye(p.shape[1])[y]).sum(axis=1)


def spherical(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return p of the true class over the norm of p (n,), in [0, 1], higher is better (Good 1971)."""
    return _rows(p, y)[np.arange(len(y)), y] / np.linalg.norm(p, axis=1)


def brier_parts(p: np.ndarray, y: np.ndarray, bins: int = 15, *, mass: bool = False) -> dict[str, float]:
    """Return the parts of the mean Brier score: it is reliability - resolution + uncertainty + within, exactly.

    Murphy 1973, class by class and summed. `within` is what binning adds (Stephenson et al. 2008): the variance of
    probabilities within bins less twice their covariance with the truth; 0 where all of a bin are alike.

    Args:
        p: (n, K).
        y: (n,) codes.
        bins: at least 1.
        mass: bins of equal numbers of rows rather than equal width.
    """
    parts = {"reliability": 0.0, "resolution": 0.0, "uncertainty": 0.0, "within": 0.0}
    _rows(p, y)
    total = 0.0
    for k in range(p.shape[1]):
        hit, score = (y == k).astype(np.float64), p[:, k]
        found, base = (equal_mass if mass else equal_width)(score, hit, bins), hit.mean()
        weight = found.rows / len(y)
        parts["reliability"] += float((weight * (found.confidence - found.accuracy) ** 2).sum())
        parts["resolution"] += float((weight * (found.accuracy - base) ** 2).sum())
        parts["uncertainty"] += float(base * (1 - base))
        total += float(((score - hit) ** 2).mean())
    parts["within"] = total - parts["reliability"] + parts["resolution"] - parts["uncertainty"]
    return parts


def crps_gaussian(mean: np.ndarray, std: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the continuous ranked probability score (n,) of normal forecasts, in y's units (Gneiting et al. 2005).

    Raises:
        ValueError: for a standard deviation that is not above 0.
    """
    from scipy.special import ndtr

    if not (np.asarray(std) > 0).all():
        raise ValueError(f"std is as small as {np.min(std):.3g}; normal forecasts need standard deviations above 0")
    z = (y - mean) / std
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return std * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))


def crps_ensemble(draws: np.ndarray, y: np.ndarray, *, fair: bool = False) -> np.ndarray:
    """Return the CRPS (n,) of forecasts given as draws (S, n): mean |x - y| - mean |x - x'| / 2.

    Args:
        draws: (S, n).
        y: (n,).
        fair: divide pairs by S (S - 1), which is unbiased for the distribution the draws come from (Ferro 2014).

    Raises:
        ValueError: for shapes that do not fit, or one draw where `fair`.
    """
    s = len(draws)
    if draws.ndim != 2 or draws.shape[1] != len(y) or s < 1 + fair:
        raise ValueError(f"draws {draws.shape} for y {np.shape(y)}; give (S, n) and (n,), S at least {1 + fair}")
    ordered = np.sort(draws, axis=0)
    # sum over pairs of |x - x'| from the order statistics
    spread = ((2 * np.arange(1, s + 1) - s - 1)[:, None] * ordered).sum(axis=0) * 2
    return np.abs(draws - y).mean(axis=0) - spread / (2 * s * ((s - 1) if fair else s))


def _rows(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(y) or y.dtype.kind not in "iu":
        raise ValueError(f"p is {p.shape} and y {y.shape} ({y.dtype}); give (n, K) and integer codes (n,), n >= 1")
    return p
