"""Errors of classes by which weights are chosen where another measure than accuracy or log-loss decides: one less the measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def balanced_error(output: Tensor, target: Tensor) -> float:
    """1 - recall averaged over the classes seen; output (n, classes) logits, target (n,)."""
    seen, _, hits = _counts(output, target)
    return 1 - float((hits[seen > 0] / seen[seen > 0]).mean())


def macro_f1_error(output: Tensor, target: Tensor) -> float:
    """1 - F1 averaged over the classes seen or predicted; arguments as above."""
    seen, predicted, hits = _counts(output, target)
    both = seen + predicted
    return 1 - float((2 * hits[both > 0] / both[both > 0]).mean())


def auroc_error(output: Tensor, target: Tensor) -> float:
    """1 - area under the ROC curve, one-vs-rest average over the classes that some rows are of and some are not.

    Ties count half. 0.5 where there is no such class. Arguments as above.
    """
    log_p = output.double().log_softmax(dim=1)
    n, classes = log_p.shape
    seen = target.bincount(minlength=classes)
    scored = [k for k in ([1] if classes == 2 else range(classes)) if 0 < int(seen[k]) < n]
    areas = [_area(log_p[:, k] - log_p[:, 0] if classes == 2 else log_p[:, k], target == k) for k in scored]
    return 1 - sum(areas) / len(areas) if areas else 0.5


def _counts(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of each class, rows for which it was answered, and rows for which it was so rightly; float64 (classes,)."""
    guess, classes = output.argmax(dim=1), output.shape[1]
    columns = (target, guess, target[guess == target])
    seen, predicted, hits = (column.bincount(minlength=classes).double() for column in columns)
    return seen, predicted, hits


def _area(score: Tensor, positive: Tensor) -> float:
    """The chance that a positive row scores higher than a negative one, by mid-ranks (Mann & Whitney 1947)."""
    _, place, ties = torch.unique(score, return_inverse=True, return_counts=True)
    rank = (ties.cumsum(0) - (ties - 1) / 2)[place]
    ones = int(positive.sum())
    return (float(rank[positive].sum()) - ones * (ones + 1) / 2) / (ones * (len(score) - ones))


FURTHER: dict[str, tuple[str, Callable[[Tensor, Tensor], float]]] = {
    "balanced-accuracy": ("balanced_error", balanced_error),
    "macro-f1": ("macro_f1_error", macro_f1_error),
    "auroc": ("auroc_error", auroc_error),
}
"""Measure -> name and function of its error."""
