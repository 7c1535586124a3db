"""Checks of confidence: does it mean what it says, and does it find the model's own errors."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import norm

from probatum.auditing.case import Case
from probatum.auditing.finding import FAULT, PASS, Finding, not_measurable, percent
from probatum.measure.calibration import diagram, error_interval, gap, if_calibrated
from probatum.measure.selective import augrc, coverage_at, error_auroc, risk_coverage
from probatum.numerics.calibration.reliability import debiased_square, equal_mass
from probatum.numerics.calibration.temperature import fit_temperature

FEW = 50
FEW_ERRORS = 10
POINTS = 100


def calibration(case: Case) -> Finding:
    """Debiased calibration error with interval, direction, and the temperature that would mend it.

    A fault is material (debiased error at least the limit) and no chance finding: the mean gap of confidence and accuracy,
    or the error over bins against labels drawn from the confidences, at half the level each.
    """
    if case.task != "classes":
        return not_measurable("calibration", "the model gives values without probabilities")
    n, limits = len(case.rows), case.limits
    if n < FEW:
        return not_measurable("calibration", f"{n} rows are too few; {FEW} or more are needed")
    sure, right = case.confidence, case.right
    bins = max(1, min(15, n // 20))
    rng = case.rng("calibration")
    error, low, high = error_interval(sure, right, rng, bins)
    p_bins = if_calibrated(sure, right, rng, draws=999)
    over = float(np.mean(sure - right))
    # under calibration each answer is right with its own confidence
    spread = math.sqrt(float(np.sum(sure * (1 - sure)))) / n
    p_mean = float(2 * norm.sf(abs(over) / spread)) if spread > 0 else float(over == 0)
    about_over = 1.96 * float(np.std(sure - right)) / math.sqrt(n)
    temperature = fit_temperature(torch.from_numpy(np.log(np.maximum(case.output, 1e-12))), case.rows.part.y)
    bad = error >= limits.calibration and min(p_bins, p_mean) < limits.level / 2
    clear = p_mean < limits.level / 2 and abs(over) >= limits.calibration / 2
    direction = "overconfident" if over > 0 else "underconfident"
    word = direction if clear else "miscalibrated"
    if bad:
        told = (
            f"Confidence is {abs(over):.3f} {'above' if over > 0 else 'below'} accuracy on average"
            if clear
            else "Gaps of both signs"
        )
        about = f"{told}; dividing log-probabilities by {temperature:.2f} would fit these rows best."
    else:
        about = f"Fitted temperature {temperature:.2f}; confidence less accuracy {over:+.3f} ± {about_over:.3f}."
    return Finding(
        "calibration",
        FAULT if bad else PASS,
        f"calibration error {error:.3f} [{low:.3f}, {high:.3f}]",
        f"error ≥ {limits.calibration:g} and chance below {limits.level:g}",
        about,
        (word,) if bad else (),
        {
            "error": error,
            "interval": [low, high],
            "ece": gap(sure, right),
            "p": min(1.0, 2 * min(p_bins, p_mean)),
            "confidence-less-accuracy": over,
            "temperature": temperature,
            "reliability": diagram(sure, right),
            "squared-error": debiased_square(equal_mass(sure, right, bins)),
        },
    )


def selection(case: Case) -> Finding:
    """Does the model know when it errs: AUROC of confidence for right answers, AUGRC against chance, coverage at low risk."""
    if case.task != "classes":
        return not_measurable("error detection", "the model gives values without confidence")
    wrong = case.right == 0
    errors, hits = int(wrong.sum()), int((~wrong).sum())
    if min(errors, hits) < FEW_ERRORS:
        return not_measurable(
            "error detection", f"{errors} errors and {hits} right answers; {FEW_ERRORS} of each are needed"
        )
    area = error_auroc(case.confidence, wrong)
    low, high = auroc_interval(area, hits, errors)
    risk = augrc(case.confidence, wrong)
    chance = float(wrong.mean()) / 2
    half = float(wrong.mean()) / 2
    covered = coverage_at(case.confidence, wrong, half)
    bad = high < case.limits.error_auroc
    curve = risk_coverage(case.confidence, wrong)
    at = np.unique(np.linspace(0, len(curve.coverage) - 1, min(POINTS, len(curve.coverage))).round().astype(int))
    return Finding(
        "error detection",
        FAULT if bad else PASS,
        f"error AUROC {area:.3f} [{low:.3f}, {high:.3f}]",
        f"upper end < {case.limits.error_auroc:g}",
        f"AUGRC {risk:.4f} (chance {chance:.4f}); answering the surest {percent(covered)} of rows halves the error rate.",
        ("errors-unnoticed",) if bad else (),
        {
            "error-auroc": area,
            "interval": [low, high],
            "augrc": risk,
            "augrc-chance": chance,
            "coverage-at-half-risk": covered,
            "curve": [[float(c), float(r)] for c, r in zip(curve.coverage[at], curve.risk[at], strict=True)],
        },
    )


def auroc_interval(area: float, n: int, m: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of an area under the ROC curve of n against m rows (Hanley and McNeil 1982)."""
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / (n * m)
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt(max(variance, 0.0))
    return max(0.0, area - half), min(1.0, area + half)
