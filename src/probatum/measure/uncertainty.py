"""What uncertainty of several draws is worth: it finds errors, and intervals of real targets hold what they promise."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from probatum.measure.base import Measure
from probatum.measure.row_values import auroc
from probatum.measure.selective import error_auroc
from probatum.numerics.posterior.predictive import ClassPredictive, RealPredictive

_CLASSES, _REALS = ("classes",), ("reals",)
LEVEL = 0.95

Found = tuple[dict[str, float], dict[str, float], dict[str, np.ndarray]]
"""Measures, what is told beside them, and the measures' values of the rows (`probatum.measure.row_values`)."""

MEASURES = (
    Measure(
        "error-auroc-entropy",
        "selection",
        True,
        0.01,
        tasks=_CLASSES,
        about="chance that a wrong answer has more predictive entropy than a right one",
    ),
    Measure("nll", "calibration", False, 0.02, unit="nats", tasks=_REALS, about="mean of -log density, standardised"),
    Measure(
        "coverage-gap-95",
        "calibration",
        False,
        0.02,
        tasks=_REALS,
        about="distance from 95 % of the share of targets inside the predicted 95 % interval",
    ),
    Measure(
        "interval-width-95",
        "calibration",
        False,
        math.log(1.05),
        kind="ratio",
        tasks=_REALS,
        about="mean width of the predicted 95 % interval, standardised",
    ),
)


def class_uncertainty(found: ClassPredictive, y: Tensor) -> Found:
    """Measures that every arm has, what only several draws tell, and the measures' values of the rows.

    The latter: `error-auroc-epistemic` (mutual information finds errors), `epistemic-share` of the total entropy, and mean
    `total-entropy`, `aleatoric-entropy`, `epistemic-entropy` in nats. AUROCs need right and wrong answers.

    Args:
        found: draws of n rows; one draw for arms that have no others.
        y: (n,) class codes.
    """
    wrong = (found.log_probabilities.argmax(dim=1) != y).numpy()
    mixed = 0 < wrong.sum() < len(wrong)
    measures = {"error-auroc-entropy": error_auroc(_sure(found.total), wrong)} if mixed else {}
    rows = {"error-auroc-entropy": auroc(_sure(found.total), ~wrong)} if mixed else {}
    if len(found.log_p) < 2:
        return measures, {}, rows
    total, epistemic = float(found.total.mean()), float(found.epistemic.mean())
    told = {
        "draws": float(len(found.log_p)),
        "total-entropy": total,
        "aleatoric-entropy": float(found.aleatoric.mean()),
        "epistemic-entropy": epistemic,
        "epistemic-share": epistemic / max(total, 1e-12),
    }
    if mixed:
        told["error-auroc-epistemic"] = error_auroc(_sure(found.epistemic), wrong)
    return measures, told, rows


def real_uncertainty(found: RealPredictive, y: Tensor) -> Found:
    """`nll`, `coverage-gap-95` and `interval-width-95`; beside them `coverage-95`, and of several draws the shares; and the
    values of the rows.

    Args:
        found: draws of n rows on the standardised scale.
        y: (n, d) standardised targets.
    """
    low, high = found.interval(LEVEL)
    inside, density, width = ((y >= low) & (y <= high)).double(), found.log_density(y).double(), (high - low).double()
    coverage = float(inside.mean())
    measures = {
        "nll": -float(density.mean()),
        "coverage-gap-95": abs(coverage - LEVEL),
        "interval-width-95": float(width.mean()),
    }
    rows = {
        "nll": -density.mean(dim=1).numpy(),
        "coverage-gap-95": (-1.0 if coverage < LEVEL else 1.0) * (inside.mean(dim=1).numpy() - LEVEL),
        "interval-width-95": width.mean(dim=1).numpy(),
    }
    told = {"coverage-95": coverage}
    if len(found.means) > 1:
        epistemic, total = float(found.epistemic.mean()), float(found.total.mean())
        told |= {
            "draws": float(len(found.means)),
            "epistemic-variance": epistemic,
            "epistemic-share": epistemic / total,
        }
    return measures, told, rows


def _sure(uncertainty: Tensor) -> np.ndarray:
    return -uncertainty.double().numpy()
