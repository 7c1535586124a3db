"""Split conformal prediction: sets and intervals that hold the truth at a stated rate, whatever the model.

Calibration rows must be like the test rows and must not have trained the model; coverage then is at least 1 - alpha on
average over draws of both. All functions take numpy arrays and are deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from probatum.measure.base import Measure
from probatum.measure.quality import checked

MEASURES = (
    Measure(
        "set-size-90",
        "selection",
        False,
        0.02,
        tasks=("classes",),
        about="mean number of classes that hold the truth in 90 % of rows (conformal, calibrated on validation rows)",
    ),
    Measure(
        "interval-width-90",
        "selection",
        False,
        math.log(1.02),
        "ratio",
        "target's",
        ("reals",),
        "width of the interval that holds the truth in 90 % of rows (conformal, calibrated on validation rows)",
    ),
)
Score = Callable[[np.ndarray], np.ndarray]


def threshold(scores: np.ndarray, alpha: float) -> float:
    """Return the ceil((n + 1)(1 - alpha))-th smallest of the calibration scores (n,); infinity where n is too small."""
    _check_alpha(alpha)
    place = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else math.inf


def lac(p: np.ndarray) -> np.ndarray:
    """Return the scores 1 - p of all classes (n, K): smallest sets on average (Sadinle et al. 2019)."""
    return 1 - p


def aps(p: np.ndarray) -> np.ndarray:
    """Return the probability of a class and all likelier ones (n, K): adaptive sets (Romano et al. 2020), unrandomised."""
    order = np.argsort(-p, axis=1, kind="stable")
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.cumsum(np.take_along_axis(p, order, axis=1), axis=1), axis=1)
    return found


def raps(p: np.ndarray, weight: float = 0.01, free: int = 1) -> np.ndarray:
    """Return `aps` plus a fee of `weight` for every rank beyond `free` (Angelopoulos et al. 2021)."""
    if weight < 0 or free < 0:
        raise ValueError(f"weight is {weight} and free {free}; use numbers of at least 0")
    ranks = np.argsort(np.argsort(-p, axis=1, kind="stable"), axis=1) + 1
    return aps(p) + weight * np.maximum(ranks - free, 0)


def sets(
    calibration: np.ndarray,
    y: np.ndarray,
    test: np.ndarray,
    alpha: float = 0.1,
    score: Score = lac,
    *,
    by_class: bool = False,
    keep_top: bool = True,
) -> np.ndarray:
    """Return which classes are in the set of each test row (m, K), bool.

    Args:
        calibration: probabilities (n, K) of calibration rows.
        y: (n,) their classes.
        test: probabilities (m, K).
        alpha: rate of sets that may miss the truth, in (0, 1).
        score: probabilities -> scores (n, K), such as `lac`, `aps`, `raps`.
        by_class: a threshold for every class (Mondrian; coverage then holds in each class); a class without enough
            calibration rows is in every set.
        keep_top: put the likeliest class into every set, so that none is empty.
    """
    of_truth = score(calibration)[np.arange(len(y)), y]
    if by_class:
        limit = np.array([threshold(of_truth[y == k], alpha) for k in range(test.shape[1])])
    else:
        limit = np.full(test.shape[1], threshold(of_truth, alpha))
    inside = score(test) <= limit
    if keep_top:
        inside[np.arange(len(test)), test.argmax(1)] = True
    return inside


def set_coverage(inside: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return `coverage`, mean `size`, and `worst-class` coverage among the classes that occur."""
    hit = inside[np.arange(len(y)), y]
    by_class = [float(hit[y == k].mean()) for k in np.unique(y)]
    return {"coverage": float(hit.mean()), "size": float(inside.sum(1).mean()), "worst-class": min(by_class)}


def residual_interval(
    calibration: np.ndarray, y: np.ndarray, test: np.ndarray, alpha: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (m,) of intervals of one width round predictions (Lei et al. 2018); calibration and y (n,)."""
    width = threshold(np.abs(y - calibration), alpha)
    return test - width, test + width


def quantile_interval(
    calibration: tuple[np.ndarray, np.ndarray],
    y: np.ndarray,
    test: tuple[np.ndarray, np.ndarray],
    alpha: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (m,) of conformalised quantile intervals (Romano et al. 2019) from (low, high) predictions."""
    moved = threshold(np.maximum(calibration[0] - y, y - calibration[1]), alpha)
    return test[0] - moved, test[1] + moved


def interval_coverage(low: np.ndarray, high: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return `coverage` and mean `width`."""
    return {"coverage": float(((low <= y) & (y <= high)).mean()), "width": float((high - low).mean())}


def conformal(
    valid: Tensor, valid_y: Tensor, test: Tensor, test_y: Tensor, task: str, scale: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, float], dict[str, np.ndarray]]:
    """Return the measure of `MEASURES` that fits the task, what goes with it (`coverage-90`), and the measure of each test row.

    Args:
        valid: outputs on validation rows: probabilities (n, K), or standardised values (n, outputs).
        valid_y: their targets.
        test: outputs on test rows.
        test_y: their targets.
        task: classes or reals.
        scale: reals: standard deviations of the targets, by which widths return to original units.
    """
    if task == "classes":
        p, y = checked(valid, valid_y, valid.shape[-1])
        q, truth = checked(test, test_y, test.shape[-1])
        inside = sets(p, y, q)
        found = set_coverage(inside, truth)
        sizes = inside.sum(1).astype(np.float64)
        return {"set-size-90": found["size"]}, {"coverage-90": found["coverage"]}, {"set-size-90": sizes}
    arrays = (value.detach().cpu().double().numpy() for value in (valid, valid_y, test, test_y))
    of_valid, y, of_test, truth = arrays
    unit = np.ones(truth.shape[1]) if scale is None else np.broadcast_to(np.asarray(scale), truth.shape[1:])
    told = []
    for k in range(truth.shape[1]):
        low, high = residual_interval(of_valid[:, k], y[:, k], of_test[:, k])
        told.append(interval_coverage(low, high, truth[:, k]))
    width = float(np.mean([found["width"] * s for found, s in zip(told, unit, strict=True)]))
    covered = {"coverage-90": float(np.mean([found["coverage"] for found in told]))}
    if not (math.isfinite(width) and width > 0):
        return {}, covered, {}
    # all intervals of a trial are of one width: what varies it are the validation rows
    return {"interval-width-90": width}, covered, {"interval-width-90": np.full(len(truth), width)}


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; use a rate of misses between 0 and 1, such as 0.1")
