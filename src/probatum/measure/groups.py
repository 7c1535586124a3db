"""Accuracy of groups of rows: the worst, the gap, the mean, each with an interval that holds for few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Group:
    """Rows of one group: how many, how many right, and the Wilson interval of the accuracy."""

    name: str
    rows: int
    right: int
    low: float
    high: float

    @property
    def accuracy(self) -> float:
        """Share of its rows that are right."""
        return self.right / self.rows


@dataclass(frozen=True)
class Groups:
    """All groups in the order of their names, and what is told of them."""

    found: tuple[Group, ...]

    @property
    def worst(self) -> Group:
        """The group of lowest accuracy; of equals the larger one."""
        return min(self.found, key=lambda group: (group.accuracy, -group.rows))

    @property
    def mean(self) -> float:
        """Mean of the groups' accuracies, each with equal weight."""
        return sum(group.accuracy for group in self.found) / len(self.found)

    @property
    def gap(self) -> float:
        """Accuracy over all rows less that of the worst group."""
        return sum(g.right for g in self.found) / sum(g.rows for g in self.found) - self.worst.accuracy


def wilson(right: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Return the ends of Wilson's score interval (1927) for a share: right of rows, rows at least 1.

    Raises:
        ValueError: for counts or a level out of range.
    """
    from scipy.stats import norm

    if not (0 <= right <= rows and rows >= 1 and 0 < level < 1):
        raise ValueError(f"{right} of {rows} at level {level}; use 0 <= right <= rows, rows >= 1, a level in (0, 1)")
    z = float(norm.ppf((1 + level) / 2))
    share, scale = right / rows, 1 + z * z / rows
    centre = (share + z * z / (2 * rows)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    # rounding must not put the ends beside an exact 0 or 1
    return (0.0 if right == 0 else max(0.0, centre - half)), (1.0 if right == rows else min(1.0, centre + half))


def group_accuracy(right: np.ndarray, groups: Sequence[object] | np.ndarray, level: float = 0.95) -> Groups:
    """Return the accuracies of all groups.

    Args:
        right: (n,) whether each answer is right.
        groups: (n,) name or number of each row's group.
        level: of the intervals.

    Raises:
        ValueError: for no rows, or lengths that differ.
    """
    names = np.asarray([str(group) for group in groups])
    if len(names) != len(right) or not len(names):
        raise ValueError(f"{len(right)} answers for {len(names)} group names; give one of each for a row, one or more")
    found, inverse, rows = np.unique(names, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, weights=np.asarray(right, dtype=np.float64), minlength=len(found)).round().astype(int)
    return Groups(
        tuple(
            Group(str(g), int(n), int(k), *wilson(int(k), int(n), level))
            for g, n, k in zip(found, rows, hits, strict=True)
        )
    )
