"""Selective prediction: what is gained when the model may stay silent on the rows it is least sure of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from probatum.measure.base import Measure
from probatum.measure.outside import auroc
from probatum.measure.quality import checked

_CLASSES = ("classes",)
MEASURES = (
    Measure(
        "augrc",
        "selection",
        False,
        0.002,
        tasks=_CLASSES,
        about="area under generalised risk over coverage: mean risk of undetected errors",
    ),
    Measure(
        "error-auroc",
        "selection",
        True,
        0.01,
        tasks=_CLASSES,
        about="chance that a right answer is more confident than a wrong one",
    ),
)


class Curve(NamedTuple):
    """Share of rows answered, and the share of errors among them, at every confidence that occurs, surest first."""

    coverage: np.ndarray
    risk: np.ndarray


def selection(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    """Return `augrc`, and `error-auroc` where some answers are right and some wrong; confidence is the largest p.

    Args and errors as `probatum.measure.quality.quality` for classes.
    """
    p, truth = checked(probabilities, y, probabilities.shape[-1])
    confidence, wrong = p.max(1), p.argmax(1) != truth
    found = {"augrc": augrc(confidence, wrong)}
    if 0 < wrong.sum() < len(wrong):
        found["error-auroc"] = error_auroc(confidence, wrong)
    return found


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> Curve:
    """Return the risk-coverage curve (El-Yaniv and Wiener 2010); rows of one confidence are answered together."""
    rows, errors = _steps(confidence, wrong)
    return Curve(rows / len(wrong), errors / rows)


def aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Return the mean of the risk over coverages 1/n .. 1 (Geifman and El-Yaniv 2019); ties: in random order, expected."""
    rows, errors = _steps(confidence, wrong)
    n = np.arange(1, len(wrong) + 1)
    return float((np.interp(n, np.append(0, rows), np.append(0, errors)) / n).mean())


def e_aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Return AURC less that of the best order of the same answers, at least 0 (Geifman et al. 2019)."""
    return aurc(confidence, wrong) - aurc(-np.asarray(wrong, dtype=np.float64), wrong)


def augrc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Return the area under P(wrong and answered) over coverage, in [0, 1/2] (Traub et al. 2024, arXiv:2407.01032).

    It equals (1 - error-AUROC) a (1 - a) + (1 - a)^2 / 2 with accuracy a; chance has (1 - a) / 2.
    """
    rows, errors = _steps(confidence, wrong)
    x, y = np.append(0, rows) / len(wrong), np.append(0, errors) / len(wrong)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())


def coverage_at(confidence: np.ndarray, wrong: np.ndarray, risk: float) -> float:
    """Return the largest share of rows that can be answered, surest first, with at most this risk; 0 if none can.

    Raises:
        ValueError: for a risk outside [0, 1].
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk is {risk}; use a share of errors in [0, 1]")
    curve = risk_coverage(confidence, wrong)
    allowed = curve.coverage[curve.risk <= risk]
    return float(allowed.max()) if len(allowed) else 0.0


def error_auroc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Return the chance that a right answer is more confident than a wrong one, ties half; both must occur."""
    wrong = np.asarray(wrong, dtype=bool)
    if not 0 < wrong.sum() < len(wrong):
        raise ValueError(f"{int(wrong.sum())} of {len(wrong)} answers are wrong; some right and some wrong are needed")
    return auroc(np.asarray(confidence)[~wrong], np.asarray(confidence)[wrong])


def _steps(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and errors at or above each confidence that occurs, surest first."""
    sure, errors = np.asarray(confidence, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    if sure.ndim != 1 or sure.shape != errors.shape or not len(sure) or not np.isfinite(sure).all():
        raise ValueError(f"confidence {sure.shape} and wrong {errors.shape}; give finite (n,) and (n,), n >= 1")
    order = np.argsort(-sure, kind="stable")
    ends = np.append(sure[order][1:] != sure[order][:-1], True)
    return np.flatnonzero(ends) + 1.0, np.cumsum(errors[order])[ends]
