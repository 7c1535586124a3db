"""What each test row adds to a measure: values whose mean is the measure.

A measure that is a mean over rows has its own terms: -log p of a row, its squared distance. Any other measure T of the n rows
has T + IF of the row, where IF is the empirical influence function: the derivative of T as the row's share of the weight grows
from 1/n (Hampel 1974). These average 0, and their variance over n is the variance of T over samples of rows like these, to
first order. With them two predictors are compared row by row, and rows that two trials share are known to be the same. For areas under
ROC curves this is the method of DeLong et al. (1988).

Values are float64 (n,), in the unit and the direction of the measure, in the order of the rows. Edges of bins are held where they are:
a row that crosses an edge moves little, since of neighbouring bins those two differ in sign whose gaps are about 0. Where an
absolute value or a root has no slope, see `gap` and `root_of_noisy`.

All is closed-form and O(n log n). A jackknife over groups of rows is not used: it gives one number for a whole group, and
whoever takes rows for the units would find the variance too small by the number of rows in a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from probatum.measure.quality import checked, log_odds_of
from probatum.numerics.calibration.reliability import Bins, debiased_square, equal_mass, equal_width

Array = np.ndarray
Values = dict[str, Array]

_NETWORK = "it is counted of the network, not of rows"
_TIMED = "it is timed, not measured of rows"
_OUTSIDE = "rows from outside count in it as well as test rows"
_SHIFTED = "its shifted rows are not all test rows"
WITHOUT: Mapping[str, str] = {
    "parameters": _NETWORK,
    "trainable-parameters": _NETWORK,
    "stored-parameters": _NETWORK,
    "nonzero-parameters": _NETWORK,
    "macs": _NETWORK,
    "peak-memory": _NETWORK,
    "training-passes": "it is counted of the training, not of rows",
    "step-time-ratio": _TIMED,
    "latency-ratio": _TIMED,
    "ood-auroc": _OUTSIDE,
    "ood-fpr95": _OUTSIDE,
    "memorised": "it is of training rows",
}
"""Measures of arena predict that never have values of test rows, and why."""

SOMETIMES_WITHOUT: Mapping[str, str] = {
    "shifted-accuracy": _SHIFTED,
    "shifted-rmse": _SHIFTED,
    "worst-group-accuracy": _SHIFTED,
}
"""Measures that have none in some worlds, and why they have none there."""


# -- parts of measures -------------------------------------------------------------------------------------------------------


def auroc(score: Array, positive: Array) -> Array:
    """Values of the chance that a positive row scores higher than a negative one, ties counted half.

    A positive row's is the share of negative rows below it, a negative row's the share of positive rows above it, both laid out
    from the mean by the inverse of their class's share (DeLong et al. 1988).

    Args:
        score: (n,) finite.
        positive: (n,) bool; both must occur.
    """
    below, under = _below(score, positive)
    n, ones = len(score), int(positive.sum())
    place = np.where(positive, (below - under) / (n - ones), 1 - under / ones)
    area = place[positive].mean()
    return area + (place - area) * np.where(positive, n / ones, n / (n - ones))


def root_mean_square(error: Array) -> Array:
    """Values of the root mean squared error (n, d), averaged over the d columns: (n,); a column without error has 0."""
    square = error**2
    mean = square.mean(axis=0)
    root = np.sqrt(mean)
    return (root + (square - mean) / np.where(root > 0, 2 * root, 1)).mean(axis=1)


def gap(bins: Bins, confidence: Array, right: Array) -> Array:
    """Values of the mean over rows of abs(accuracy - confidence) of the row's bin; confidence and right are (n,).

    A row's is right - confidence, or the opposite where its bin is overconfident. A bin without any gap counts as
    underconfident: its rows then vary more than the gap does, which errs on the safe side.
    """
    place, off = _places(bins, confidence), right - confidence
    return np.where(np.bincount(place, weights=off, minlength=len(bins.rows)) < 0, -1.0, 1.0)[place] * off


def debiased_root(bins: Bins, confidence: Array, right: Array) -> Array:
    """Values of the root of the debiased squared calibration error (`debiased_square`), 0 where that is negative."""
    count = np.where(bins.rows > 1, bins.rows, 2).astype(np.float64)  # rows alone in a bin have no weight below
    accuracy, off = bins.accuracy, bins.confidence - bins.accuracy
    spread = accuracy * (1 - accuracy)
    # derivatives of count * (off^2 - spread / (count - 1)) by the bin's count, sum of confidences and sum of right answers
    by_count = -(off**2) - accuracy**2 / (count - 1) + count * spread / (count - 1) ** 2
    by_right = -2 * off - (1 - 2 * accuracy) / (count - 1)
    place, square = _places(bins, confidence), debiased_square(bins)
    slope = by_count[place] + 2 * off[place] * confidence + by_right[place] * right - square
    enough = bins.rows > 1
    influence = np.where(enough[place], slope, 0.0) * len(place) / max(bins.rows[enough].sum(), 1)
    return root_of_noisy(square, influence - influence.mean())


def root_of_noisy(square: float, influence: Array) -> Array:
    """Values of sqrt(max(square, 0)) from the influence (n,) of the rows on the square.

    The root is steepest at 0 and flat below it, which noise crosses. So the slope is that of the line between the ends of one
    standard error on both sides of the square, or of 0 where it is negative; far from 0 that is the derivative.
    """
    error, above = influence.std() / math.sqrt(len(influence)), max(square, 0.0)
    rise = math.sqrt(above + error) - math.sqrt(max(above - error, 0.0))
    return math.sqrt(above) + influence * (rise / (2 * error) if error > 0 else 0.0)


# -- measures of a task ------------------------------------------------------------------------------------------------------


def of_classes(probabilities: Tensor, y: Tensor, bins: int = 15) -> Values:
    """Return the values of what `quality`, `calibration` and `selection` measure of classes; arguments and errors as there."""
    p, truth = checked(probabilities, y, probabilities.shape[-1])
    return _quality(p, truth) | _calibration(p, truth, bins) | _selection(p, truth)


def of_reals(output: Tensor, y: Tensor, scale: Tensor | float | None = None) -> Values:
    """Return the values of what `quality` measures of reals; arguments as there, whose checks they have passed."""
    guess, truth = (value.detach().cpu().double().numpy() for value in (output, y))
    error = (guess - truth) * (1.0 if scale is None else np.asarray(scale, dtype=np.float64))
    found = {"rmse": root_mean_square(error), "mae": abs(error).mean(axis=1)}
    if (truth != truth[0]).any(axis=0).all():
        square, spread = (guess - truth) ** 2, (truth - truth.mean(axis=0)) ** 2
        total = spread.mean(axis=0)
        share = square.mean(axis=0) / total
        found["r2"] = (1 - share + share * (spread / total - 1) - (square / total - share)).mean(axis=1)
    return found


def of_tokens(log_p: Array, confidence: Array, right: Array, characters: Array, size: Array) -> Values:
    """Return the values of windows for what `language` measures of all their tokens.

    Args:
        log_p: (n, length) natural logarithms of the probabilities of the tokens that came.
        confidence: probabilities of the likeliest tokens, same shape.
        right: whether those came, same shape.
        characters: (n,) how many characters the tokens of each window are.
        size: (n,) how many UTF-8 bytes.
    """
    loss, hit = -log_p.mean(axis=1), np.asarray(right, dtype=np.float64)
    bits = -log_p.sum(axis=1) / math.log(2)
    sure, hits = confidence.ravel(), hit.ravel()
    found = {
        "bits-per-character": _ratio(bits, characters),
        "bits-per-byte": _ratio(bits, size),
        "next-token-accuracy": hit.mean(axis=1),
        "ece": gap(equal_width(sure, hits, 15), sure, hits).reshape(hit.shape).mean(axis=1),
    }
    if loss.mean() < 700:
        found["perplexity"] = math.exp(loss.mean()) * (1 + loss - loss.mean())
    return found


def _quality(p: Array, y: Array) -> Values:
    n, guess, rows = len(y), p.argmax(1), np.arange(len(y))
    right = (guess == y).astype(np.float64)
    support, predicted = (np.bincount(codes, minlength=p.shape[1]) for codes in (y, guess))
    hits = np.bincount(y, weights=right, minlength=p.shape[1])
    both, seen = support + predicted, np.flatnonzero(support).tolist()
    recall, f1 = hits / np.maximum(support, 1), 2 * hits / np.maximum(both, 1)
    eps = np.finfo(np.float64).eps  # where scikit-learn's log_loss cuts
    off = p.copy()
    off[rows, y] -= 1
    pull = n / (both > 0).sum() * (2 * right / both[y] - f1[y] / both[y] - f1[guess] / both[guess])
    found = {
        "accuracy": right,
        "balanced-accuracy": recall[seen].mean() + (right - recall[y]) * (n / len(seen)) / support[y],
        "log-loss": -np.log(np.clip(p[rows, y], eps, 1 - eps)),
        "brier": (off**2).sum(axis=1),
        "macro-f1": f1[both > 0].mean() + pull,
    }
    scored = [k for k in ([1] if p.shape[1] == 2 else seen) if 0 < support[k] < n]
    if scored:
        found["auroc"] = np.sum([auroc(log_odds_of(p, k), y == k) for k in scored], axis=0) / len(scored)
    return found


def _calibration(p: Array, y: Array, bins: int) -> Values:
    top, right = p.max(1), (p.argmax(1) == y).astype(np.float64)
    mass, classwise = equal_mass(top, right, bins), np.zeros(len(y))
    for k in range(p.shape[1]):
        hit = (y == k).astype(np.float64)
        classwise += gap(equal_width(p[:, k], hit, bins), p[:, k], hit)
    return {
        "ece": gap(equal_width(top, right, bins), top, right),
        "ece-equal-mass": gap(mass, top, right),
        "ece-classwise": classwise / p.shape[1],
        "calibration-rms-debiased": debiased_root(mass, top, right),
    }


def _selection(p: Array, y: Array) -> Values:
    confidence, wrong = p.max(1), p.argmax(1) != y
    below, under = _below(confidence, wrong)
    # augrc is the mean over pairs of rows (i, j) of: i is wrong, and as sure as j or surer, ties half
    n = len(y)
    first, second = wrong * below / n, (wrong.sum() - under) / n
    found = {"augrc": first + second - first.mean()}
    if 0 < wrong.sum() < n:
        found["error-auroc"] = auroc(confidence, ~wrong)
    return found


def _below(score: Array, counted: Array) -> tuple[Array, Array]:
    """How many rows score lower than each row, and how many of those that are counted; ties, the row itself too, are half."""
    order = np.argsort(score)
    new = np.append(True, score[order][1:] != score[order][:-1])
    starts = np.append(np.flatnonzero(new), len(score))
    upto = np.append(0, np.cumsum(counted[order]))[starts]
    tie = np.cumsum(new) - 1
    found = np.empty((2, len(score)))
    found[:, order] = (starts[:-1] + starts[1:])[tie] / 2, (upto[:-1] + upto[1:])[tie] / 2
    return found[0], found[1]


def _places(bins: Bins, confidence: Array) -> Array:
    """The bin (low, high] of each row; 0 and what rounding put above 1 lie in the outermost ones."""
    return np.minimum(np.searchsorted(bins.high, confidence, side="left"), len(bins.high) - 1)


def _ratio(top: Array, bottom: Array) -> Array:
    """Values of sum(top) / sum(bottom), both (n,)."""
    ratio = top.sum() / bottom.sum()
    return ratio + (top - ratio * bottom) / bottom.mean()
