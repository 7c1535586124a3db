"""Whether probabilities mean what they say."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from probatum.measure.base import Measure
from probatum.measure.quality import checked
from probatum.numerics.calibration import kernel as kernel_calibration
from probatum.numerics.calibration.reliability import (
    debiased_square,
    equal_mass,
    equal_width,
    ks_error,
    largest_gap,
    mean_gap,
    plain_square,
)

_CLASSES = ("classes",)
KERNEL_ROWS = 2000
"""Most rows for kernel estimates, whose cost grows with the square."""

MEASURES = (
    Measure(
        "ece",
        "calibration",
        False,
        0.01,
        tasks=("classes", "next-token"),
        about="expected calibration error, equal-width bins",
    ),
    Measure("ece-equal-mass", "calibration", False, 0.01, tasks=_CLASSES, about="the same with equal-mass bins"),
    Measure("ece-classwise", "calibration", False, 0.005, tasks=_CLASSES, about="the same per class, averaged"),
    Measure(
        "calibration-rms-debiased",
        "calibration",
        False,
        0.01,
        tasks=_CLASSES,
        about="root mean squared calibration error, without the upward bias of small bins",
    ),
)


def calibration(probabilities: Tensor, y: Tensor, bins: int = 15) -> dict[str, float]:
    """Return the calibration measures.

    `ece`, `ece-equal-mass`: mean over rows of abs(accuracy - confidence) of the row's bin, for the likeliest class (Guo
    et al. 2017, arXiv:1706.04599). `ece-classwise`: the same for the probability of each class, averaged over classes
    (Kull et al. 2019, arXiv:1910.12656). `calibration-rms-debiased`: the root of the debiased squared error of Kumar et
    al. 2019 (arXiv:1909.10155, definition 5.1), equal-mass bins, 0 where the estimate of the square is negative.

    Args:
        probabilities: (n, K).
        y: (n,) codes in 0 .. K-1.
        bins: number of bins, at least 1.

    Raises:
        ValueError: for bins below 1, or input that `probatum.measure.quality.quality` refuses.
    """
    p, truth = checked(probabilities, y, probabilities.shape[-1])
    top, right = p.max(1), (p.argmax(1) == truth).astype(np.float64)
    classwise = [mean_gap(equal_width(p[:, k], (truth == k).astype(np.float64), bins)) for k in range(p.shape[1])]
    return {
        "ece": mean_gap(equal_width(top, right, bins)),
        "ece-equal-mass": mean_gap(equal_mass(top, right, bins)),
        "ece-classwise": float(np.mean(classwise)),
        "calibration-rms-debiased": math.sqrt(max(squared_error(top, right, bins), 0.0)),
    }


def reliability(probabilities: Tensor, y: Tensor, bins: int = 15) -> dict[str, list[float]]:
    """Return the reliability diagram of the likeliest class: per non-empty equal-width bin its centre, confidence,
    accuracy and count; arguments and errors as `calibration`."""
    p, truth = checked(probabilities, y, probabilities.shape[-1])
    return diagram(p.max(1), (p.argmax(1) == truth).astype(np.float64), bins)


def gap(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Return `ece` of confidences (n,) and whether the answers were right (n,), 0 or 1."""
    return mean_gap(equal_width(confidence, right, bins))


def diagram(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> dict[str, list[float]]:
    """Return what `reliability` does of confidences (n,) and whether the answers were right (n,), 0 or 1."""
    found = equal_width(confidence, right, bins)
    return {
        "centre": ((found.low + found.high) / 2).tolist(),
        "confidence": found.confidence.tolist(),
        "accuracy": found.accuracy.tolist(),
        "count": found.rows.tolist(),
    }


def squared_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Return Kumar et al.'s debiased squared calibration error over equal-mass bins; see `debiased_square`."""
    return debiased_square(equal_mass(confidence, right, bins))


def further(probabilities: Tensor, y: Tensor, bins: int = 15) -> dict[str, float]:
    """Return calibration errors beyond `calibration`, by name; arguments and errors as there.

    `mce`, `mce-equal-mass`: the largest gap of a bin (Naeini et al. 2015). `ece-classwise-equal-mass`: class by class
    with equal-mass bins. `ks`: without bins (`ks_error`). `kernel`: of the likeliest class by Beta kernels, and
    `kernel-canonical`: of the whole vector by Dirichlet kernels (Popordanoska et al. 2022, arXiv:2210.07810), both on at
    most 2000 rows, evenly spaced.
    """
    p, truth = checked(probabilities, y, probabilities.shape[-1])
    top, right = p.max(1), (p.argmax(1) == truth).astype(np.float64)
    classwise = [mean_gap(equal_mass(p[:, k], (truth == k).astype(np.float64), bins)) for k in range(p.shape[1])]
    found = {
        "mce": largest_gap(equal_width(top, right, bins)),
        "mce-equal-mass": largest_gap(equal_mass(top, right, bins)),
        "ece-classwise-equal-mass": float(np.mean(classwise)),
        "ks": ks_error(top, right),
    }
    if len(top) > 1:
        some = np.unique(np.linspace(0, len(top) - 1, min(len(top), KERNEL_ROWS)).round().astype(int))
        kernel = kernel_calibration.kernel_calibration_error
        found["kernel"] = float(kernel(torch.from_numpy(top[some]), torch.from_numpy(right[some])))
        found["kernel-canonical"] = float(kernel(torch.from_numpy(p[some]), torch.from_numpy(truth[some])))
    return found


def error_interval(
    confidence: np.ndarray,
    right: np.ndarray,
    rng: np.random.Generator,
    bins: int = 15,
    draws: int = 500,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the debiased root mean squared calibration error and the ends of a bootstrap interval for it.

    A resample's error is biased upwards like the plain estimate of the sample it is drawn from. So the spread of the
    resamples' squares round their own mean is laid round the debiased square, and roots are taken at the end.

    Args:
        confidence: (n,) in [0, 1].
        right: (n,) 0 or 1.
        rng: source of the resamples.
        bins: equal-mass bins.
        draws: resamples, at least 20.
        level: of the interval, between 0 and 1.

    Raises:
        ValueError: for bins, draws or a level out of range.
    """
    if draws < 20 or not 0 < level < 1:
        raise ValueError(f"draws is {draws} and level {level}; use 20 draws or more and a level between 0 and 1")
    square = debiased_square(equal_mass(confidence, right, bins))
    drawn = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(0, len(confidence), len(confidence))
        drawn[i] = debiased_square(equal_mass(confidence[rows], right[rows], bins))
    low, high = np.quantile(drawn - drawn.mean(), [(1 - level) / 2, (1 + level) / 2]) + square
    return tuple(math.sqrt(max(value, 0.0)) for value in (square, low, high))  # type: ignore[return-value]


def if_calibrated(confidence: np.ndarray, right: np.ndarray, rng: np.random.Generator, draws: int = 500) -> float:
    """Return the p-value of the hypothesis that the confidences are calibrated, by consistency resampling.

    Right answers are drawn from the confidences themselves, and the plain squared error over equal-mass bins compared
    with that of the real ones (Broecker and Smith 2007; Vaicenavicius et al. 2019, arXiv:1902.06977).
    """
    bins = max(1, min(15, len(confidence) // 10))
    real = plain_square(equal_mass(confidence, right, bins))
    drawn = [
        plain_square(equal_mass(confidence, (rng.random(len(confidence)) < confidence).astype(np.float64), bins))
        for _ in range(draws)
    ]
    return float((1 + (np.asarray(drawn) >= real).sum()) / (1 + draws))
