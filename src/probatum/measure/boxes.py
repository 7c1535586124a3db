"""Detection: whether the confidence of a box is the chance that it belongs to an object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""COCO's thresholds of overlap: 0.5 to 0.95."""


def matched(overlap: np.ndarray, right_class: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """Return the share (n,) of thresholds at which a prediction counts: overlap enough and class right.

    Args:
        overlap: (n,) with the box it was matched to, 0 where there is none (see `probatum.numerics.images.boxes.match_boxes`).
        right_class: (n,) whether the class is that of its box.
        thresholds: one or more in [0, 1].
    """
    enough = np.asarray(overlap)[:, None] >= np.asarray(thresholds)[None]
    return (enough & np.asarray(right_class, dtype=bool)[:, None]).mean(axis=1)


def detection_calibration_error(
    confidence: np.ndarray, hit: np.ndarray, place: np.ndarray | None = None, bins: int | Sequence[int] = 10
) -> float:
    """Return D-ECE: mean over predictions of |precision - confidence| of their bin (Kueppers et al. 2020).

    Args:
        confidence: (n,) in [0, 1].
        hit: (n,) 0 or 1, or graded as `matched` gives.
        place: (n, d) in [0, 1]: relative position and size of the boxes, binned besides confidence; None = confidence
            alone.
        bins: equal-width bins of each of the 1 + d axes.

    Raises:
        ValueError: for values outside [0, 1], lengths that do not fit, or bins below 1.
    """
    points = np.asarray(confidence, dtype=np.float64)[:, None]
    if place is not None:
        points = np.concatenate([points, np.asarray(place, dtype=np.float64)], axis=1)
    counts = [bins] * points.shape[1] if isinstance(bins, int) else list(bins)
    if len(points) != len(hit) or not len(hit) or len(counts) != points.shape[1] or min(counts) < 1:
        raise ValueError(
            f"{len(points)} confidences, {len(hit)} hits, bins {counts} for {points.shape[1]} axes; they must fit"
        )
    if not (points.min() >= 0 and points.max() <= 1):
        raise ValueError(f"confidences and places span {points.min():.4g} to {points.max():.4g}; they lie in [0, 1]")
    place_of = [
        np.clip(np.searchsorted(np.linspace(0, 1, k + 1), points[:, j], side="left") - 1, 0, k - 1)
        for j, k in enumerate(counts)
    ]
    bin_of = np.unique(np.ravel_multi_index(place_of, counts), return_inverse=True)[1]
    gap = np.bincount(bin_of, weights=np.asarray(hit, dtype=np.float64) - points[:, 0])
    return float(np.abs(gap).sum() / len(points))
