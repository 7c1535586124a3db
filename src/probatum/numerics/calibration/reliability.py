"""Binned and cumulative calibration errors of confidences and of whether the answers were right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Bins(NamedTuple):
    """The bins that hold any row: edges, numbers of rows, mean confidence and share that is right."""

    low: Array
    high: Array
    rows: Array
    confidence: Array
    accuracy: Array


def equal_width(confidence: Array, right: Array, bins: int) -> Bins:
    """Sort confidences (n,) in [0, 1] into bins (low, high] of one width; 0 goes to the first."""
    return _binned(confidence, right, np.linspace(0, 1, _at_least_one(bins) + 1))


def equal_mass(confidence: Array, right: Array, bins: int) -> Bins:
    """The same with bins of about equal numbers of rows; equal confidences stay together."""
    # bins by value, not by rank: the order of rows cannot matter
    inner = np.quantile(confidence, np.linspace(0, 1, _at_least_one(bins) + 1)[1:-1], method="inverted_cdf")
    return _binned(confidence, right, np.unique([0.0, *inner, 1.0]))


def mean_gap(bins: Bins) -> float:
    """Expected calibration error: mean over rows of abs(accuracy - confidence) of the row's bin."""
    return float((bins.rows * abs(bins.accuracy - bins.confidence)).sum() / bins.rows.sum())


def largest_gap(bins: Bins) -> float:
    """Maximum calibration error: the largest abs(accuracy - confidence) of a bin."""
    return float(abs(bins.accuracy - bins.confidence).max())


def debiased_square(bins: Bins) -> float:
    """Kumar et al.'s debiased squared calibration error (arXiv:1909.10155, definition 5.1); may fall below 0.

    Each bin's squared gap is lowered by a (1 - a) / (count - 1), the sampling variance of its accuracy a. Bins of one
    row have no such estimate and are left out.
    """
    enough = bins.rows > 1
    count, accuracy = bins.rows[enough], bins.accuracy[enough]
    terms = (bins.confidence[enough] - accuracy) ** 2 - accuracy * (1 - accuracy) / (count - 1)
    return float((count * terms).sum() / max(count.sum(), 1))


def plain_square(bins: Bins) -> float:
    """The squared calibration error of the bins as they are, biased upwards."""
    return float((bins.rows * (bins.confidence - bins.accuracy) ** 2).sum() / bins.rows.sum())


def ks_error(confidence: Array, right: Array) -> float:
    """Largest gap between the running sums of confidence and of right answers, in order of confidence, over n.

    Gupta et al. 2021 (arXiv:2006.12800): needs no bins. Rows of one confidence count as one step.
    """
    order = np.argsort(confidence, kind="stable")
    sure, hits = confidence[order], right[order]
    sums = np.cumsum(sure - hits)
    ends = np.append(sure[1:] != sure[:-1], True)
    return float(abs(sums[ends]).max() / len(sure))


def _binned(confidence: Array, right: Array, edges: Array) -> Bins:
    """Sort rows into bins (low, high]; 0 goes to the first."""
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)
    count = np.bincount(place, minlength=len(edges) - 1)
    full = count > 0
    sums = [np.bincount(place, weights=values, minlength=len(edges) - 1)[full] for values in (confidence, right)]
    count, (sure, hits) = count[full], sums
    return Bins(edges[:-1][full], edges[1:][full], count, sure / count, hits / count)


def _at_least_one(bins: int) -> int:
    if bins < 1:
        raise ValueError(f"bins is {bins}; use 1 or more")
    return bins
