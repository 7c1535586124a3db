"""What arena predict asks of predictions for the test rows, for classes and for reals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probatum.data.corrupt import corruptions
from probatum.data.lazy.few import first_rows
from probatum.measure import calibration, conformal, quality, robustness, selective
from probatum.rooms.arena import TrainingFailed, Work
from probatum.rooms.task import check_shape
from probatum.spec import Data
from probatum.tasks.uncertainty import uncertainty
from probatum.train.rng import generator_for

FEW = 2000
"""Rows on which intervals are set, and that are corrupted."""

Looked = tuple[Tensor, dict[str, float], dict[str, Any]]


def look_at_classes(work: Work, fitted: Any) -> Looked:
    """Probabilities (n, classes) of the test rows: quality, calibration, selection, sets, uncertainty, robustness."""
    output, found = _predicted(work, fitted)
    test = work.data.test
    found |= calibration.calibration(output, test.y) | selective.selection(output, test.y)
    details = {
        "reliability": calibration.reliability(output, test.y),
        "per_class": quality.per_class(output, test.y),
    }
    return _besides(work, fitted, output, found, details)


def look_at_reals(work: Work, fitted: Any) -> Looked:
    """Values (n, outputs) of the test rows: quality, intervals, uncertainty, robustness."""
    output, found = _predicted(work, fitted)
    return _besides(work, fitted, output, found, {})


def _predicted(work: Work, fitted: Any) -> tuple[Tensor, dict[str, float]]:
    spec, test = work.data.spec, work.data.test
    with torch.no_grad():
        output = fitted.predict(test)
    check_shape(output, len(test), spec, work.arm.name)
    if not torch.isfinite(output).all():
        raise TrainingFailed("predictions on the test rows are not finite")
    return output, quality.quality(output, test.y, spec.task, spec.outputs, scale=target_scale(work.data))


def _besides(work: Work, fitted: Any, output: Tensor, found: dict[str, float], details: dict[str, Any]) -> Looked:
    found |= _conformal(work, fitted, output, details)
    drawn = fitted.learner if fitted.calibrator is None else None  # calibrated probabilities have no draws
    with torch.no_grad():
        measured, told = uncertainty(work, drawn, output, fitted.predict)
    details["effects"] = told
    return output, {**found, **measured, **_robustness(work, fitted)}, details


def target_scale(data: Data) -> Tensor | None:
    """Standard deviations the real targets were divided by, None for other tasks."""
    return torch.as_tensor(data.pipeline.target.std) if data.spec.task == "reals" else None


def _conformal(work: Work, fitted: Any, output: Tensor, details: dict[str, Any]) -> dict[str, float]:
    """Size of the sets or width of the intervals that hold 90 % of the truth, by validation rows; coverage to details."""
    spec, valid, test = work.data.spec, first_rows(work.data.valid, FEW), work.data.test
    with torch.no_grad():
        known = fitted.predict(valid)
    if not torch.isfinite(known).all():
        return {}
    scale = target_scale(work.data)
    found, details["conformal"] = conformal.conformal(
        known, valid.y, output, test.y, spec.task, None if scale is None else scale.numpy()
    )
    return found


def _robustness(work: Work, fitted: Any) -> Mapping[str, float]:
    """Nothing for learners and references: they may read more than the encoded tensor, which is what is corrupted."""
    from dataclasses import replace

    spec = work.data.spec
    kinds = corruptions(spec)
    if fitted.model is None or not kinds:
        return {}
    part = first_rows(work.data.test, FEW)
    generator = generator_for(work.seed, "corruptions")
    return robustness.robustness(lambda x: fitted.predict(replace(part, x=x)), part.x, part.y, spec, kinds, generator)
