"""What a learning curve over labels is worth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from probatum.measure.base import Measure

_CLASSES = ("classes",)
ENOUGH = 0.95
"""Share of the accuracy with all labels that `labels-to-95` waits for."""

MEASURES = (
    Measure(
        "label-auc",
        "quality",
        True,
        0.005,
        tasks=_CLASSES,
        about="mean test accuracy along the learning curve, from the first labels to the last (area over its width)",
    ),
    Measure(
        "last-label-accuracy", "quality", True, 0.01, tasks=_CLASSES, about="test accuracy when all labels are spent"
    ),
    Measure(
        "labels-to-95",
        "labels",
        False,
        math.log(1.1),
        kind="ratio",
        tasks=_CLASSES,
        about="labels until the curve first reaches 95 % of the accuracy with all labels (all that could be asked for and "
        "one round more, where it does not)",
    ),
    Measure(
        "machine-label-errors",
        "labels",
        False,
        0.01,
        tasks=_CLASSES,
        about="share of wrong ones among labels given by machine (0 where there are none)",
    ),
)


def area(labels: Sequence[int], accuracy: Sequence[float]) -> float:
    """Area under the curve by the trapezoid rule over its width; of one point, that point.

    Raises:
        ValueError: no points, lengths that differ, or numbers of labels that do not grow.
    """
    if len(labels) != len(accuracy) or not labels:
        raise ValueError(f"{len(labels)} numbers of labels and {len(accuracy)} accuracies; give as many, at least one")
    steps = [b - a for a, b in itertools.pairwise(labels)]
    if any(step <= 0 for step in steps):
        raise ValueError(f"labels are {list(labels)}; they must grow")
    if not steps:
        return float(accuracy[0])
    total = sum(step * (a + b) / 2 for step, (a, b) in zip(steps, itertools.pairwise(accuracy), strict=True))
    return total / (labels[-1] - labels[0])


def labels_to(labels: Sequence[int], accuracy: Sequence[float], target: float, never: float | None = None) -> float:
    """Labels at which the curve, joined by straight lines, first reaches `target`.

    Where it does not, `never`, or else one more step than its last: a lower bound that ends the ratio's growth, not an
    estimate. Give `never` where curves may end early, lest one that stops asking looks thrifty.
    """
    if accuracy[0] >= target:
        return float(labels[0])
    for (a, b), (low, high) in zip(itertools.pairwise(labels), itertools.pairwise(accuracy), strict=True):
        if high >= target:
            return a + (b - a) * (target - low) / (high - low)
    if never is not None:
        return float(never)
    return float(labels[-1] + (labels[-1] - labels[-2] if len(labels) > 1 else labels[-1]))
