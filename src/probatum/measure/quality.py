"""How good predictions are: classes from probabilities, reals in their original units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from probatum.measure.base import Measure

_CLASSES, _REALS = ("classes",), ("reals",)

MEASURES = (
    Measure("accuracy", "quality", True, 0.01, tasks=_CLASSES, about="share of rows whose likeliest class is right"),
    Measure("balanced-accuracy", "quality", True, 0.01, tasks=_CLASSES, about="recall, averaged over the classes seen"),
    Measure("log-loss", "quality", False, 0.01, unit="nats", tasks=_CLASSES, about="mean of -log p of the true class"),
    Measure(
        "brier", "quality", False, 0.005, tasks=_CLASSES, about="mean squared distance to the one-hot truth, 0 to 2"
    ),
    Measure("auroc", "quality", True, 0.005, tasks=_CLASSES, about="area under ROC; one-vs-rest average over classes"),
    Measure("macro-f1", "quality", True, 0.01, tasks=_CLASSES, about="F1, averaged over the classes seen or predicted"),
    Measure("rmse", "quality", False, math.log(1.02), "ratio", "target's", _REALS, "root mean squared error"),
    Measure("mae", "quality", False, math.log(1.02), "ratio", "target's", _REALS, "mean absolute error"),
    Measure("r2", "quality", True, 0.01, tasks=_REALS, about="share of the variance that is explained"),
)


def quality(
    output: Tensor, y: Tensor, task: str, outputs: int, scale: Tensor | float | None = None
) -> dict[str, float]:
    """Return the quality measures of predictions on a set of rows.

    Several real targets are averaged with equal weight. For auroc, classes of which the rows hold none or nothing else
    are left out of the average; without any class left, or a constant target for r2, the measure is left out.

    Args:
        output: classes: probabilities (n, outputs); reals: standardised values (n, outputs).
        y: classes: (n,) codes in 0 .. outputs-1; reals: standardised values (n, outputs).
        task: classes or reals.
        outputs: number of classes or of real targets.
        scale: reals: standard deviation of each target, (outputs,), by which rmse and mae return to original units.

    Raises:
        ValueError: for shapes that do not fit, probabilities that are none, class codes out of range, values that are
            not finite, or an unknown task.
    """
    if task == "classes":
        return _classes(*checked(output, y, outputs))
    if task == "reals":
        return _reals(output, y, outputs, scale)
    raise ValueError(f"task is {task!r}; use classes or reals")


def per_class(probabilities: Tensor, y: Tensor) -> dict[str, Any]:
    """Return lists over classes of precision, recall and support, and the confusion matrix (rows = truth), as lists.

    Precision of a class never predicted, and recall of a class never seen, are 0.

    Args:
        probabilities: (n, K).
        y: (n,) codes in 0 .. K-1.

    Raises:
        ValueError: as `quality`.
    """
    p, truth = checked(probabilities, y, probabilities.shape[-1])
    confusion = np.zeros((p.shape[1], p.shape[1]), dtype=np.int64)
    np.add.at(confusion, (truth, p.argmax(1)), 1)
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return {
        "precision": (hits / np.maximum(predicted, 1)).tolist(),
        "recall": (hits / np.maximum(support, 1)).tolist(),
        "support": support.tolist(),
        "confusion": confusion.tolist(),
    }


def checked(probabilities: Tensor, y: Tensor, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (n, outputs) as float64 rows that sum to 1, and class codes (n,); see `quality`."""
    p = probabilities.detach().cpu().double().numpy()
    truth = y.detach().cpu().numpy()
    if outputs < 2:
        raise ValueError(f"there is {outputs} class; give two columns of probabilities or more")
    if p.ndim != 2 or p.shape[1] != outputs or truth.shape != p.shape[:1] or not len(p):
        raise ValueError(
            f"probabilities {p.shape} and y {truth.shape} do not fit; give (n, {outputs}) and (n,), n >= 1"
        )
    if not np.isfinite(p).all():
        raise ValueError(f"{int((~np.isfinite(p)).any(1).sum())} of {len(p)} rows of probabilities are not finite")
    sums = p.sum(1)
    if p.min() < 0 or abs(sums - 1).max() > 0.01:
        raise ValueError(
            f"rows are no probabilities (least {p.min():.3g}, sums to {sums.max():.3g}); apply softmax first"
        )
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= outputs:
        raise ValueError(
            f"y spans {truth.min()} to {truth.max()} ({truth.dtype}); use integer codes 0 .. {outputs - 1}"
        )
    return p / sums[:, None], truth


def _classes(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    guess, labels = p.argmax(1), np.arange(p.shape[1])
    seen = np.unique(y)
    found = {
        "accuracy": metrics.accuracy_score(y, guess),
        "balanced-accuracy": metrics.recall_score(y, guess, labels=seen, average="macro"),
        "log-loss": metrics.log_loss(y, p, labels=labels),
        "brier": ((p - np.eye(len(labels))[y]) ** 2).sum(1).mean(),
        "macro-f1": metrics.f1_score(y, guess, average="macro", zero_division=0),
    }
    scored = [1] if len(labels) == 2 else seen
    areas = [metrics.roc_auc_score(y == k, log_odds_of(p, k)) for k in scored if 0 < (y == k).sum() < len(y)]
    if areas:
        found["auroc"] = np.mean(areas)
    return {name: float(value) for name, value in found.items()}


def log_odds_of(p: np.ndarray, k: int) -> np.ndarray:
    """Log-odds of a class, which keep their order where its probability is rounded to 1: the others' are not rounded to 0."""
    least = np.finfo(np.float64).tiny
    return np.log(np.maximum(p[:, k], least)) - np.log(np.maximum(np.delete(p, k, axis=1).sum(1), least))


def _reals(output: Tensor, y: Tensor, outputs: int, scale: Tensor | float | None) -> dict[str, float]:
    from sklearn import metrics

    guess, truth = (value.detach().cpu().double().numpy() for value in (output, y))
    if guess.shape != truth.shape or guess.ndim != 2 or guess.shape[1] != outputs or not len(guess):
        raise ValueError(f"output {guess.shape} and y {truth.shape} do not fit; give (n, {outputs}) for both, n >= 1")
    if not (np.isfinite(guess).all() and np.isfinite(truth).all()):
        raise ValueError(f"{int((~np.isfinite(guess)).any(1).sum())} of {len(guess)} rows of output are not finite")
    unit = np.ones(1) if scale is None else np.atleast_1d(np.asarray(scale, dtype=np.float64))
    if unit.shape not in ((1,), (outputs,)) or not (np.isfinite(unit).all() and (unit > 0).all()):
        raise ValueError(f"scale is {unit.tolist()}; give one positive number, or one for each of {outputs} targets")
    error = (guess - truth) * unit
    found = {"rmse": np.sqrt((error**2).mean(0)).mean(), "mae": abs(error).mean()}
    if (truth != truth[0]).any(0).all():
        found["r2"] = metrics.r2_score(truth, guess)
    return {name: float(value) for name, value in found.items()}
