"""What arena predict asks of predictions for the test rows, for classes and for reals."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probatum.data.corrupt import corruptions
from probatum.data.lazy.few import first_rows
from probatum.measure import calibration, conformal, quality, robustness, row_values, selective
from probatum.rooms.arena import TrainingFailed, Work
from probatum.rooms.task import Looked, check_shape
from probatum.spec import Data
from probatum.tasks.uncertainty import uncertainty
from probatum.train.rng import generator_for

FEW = 2000
"""Rows on which intervals are set, and that are corrupted."""


class Seen(NamedTuple):
    """Measures, and of those that have them the values of the rows."""

    measures: dict[str, float]
    rows: dict[str, np.ndarray]


def look_at_classes(work: Work, fitted: Any) -> Looked:
    """Probabilities (n, classes) of the test rows: quality, calibration, selection, sets, uncertainty, robustness."""
    output, found = _predicted(work, fitted)
    test = work.data.test
    found |= calibration.calibration(output, test.y) | selective.selection(output, test.y)
    seen = Seen(found, row_values.of_classes(output, test.y))
    details = {
        "reliability": calibration.reliability(output, test.y),
        "per_class": quality.per_class(output, test.y),
    }
    return _besides(work, fitted, output, seen, details)


def look_at_reals(work: Work, fitted: Any) -> Looked:
    """Values (n, outputs) of the test rows: quality, intervals, uncertainty, robustness."""
    output, found = _predicted(work, fitted)
    rows = row_values.of_reals(output, work.data.test.y, target_scale(work.data))
    return _besides(work, fitted, output, Seen(found, rows), {})


def _predicted(work: Work, fitted: Any) -> tuple[Tensor, dict[str, float]]:
    spec, test = work.data.spec, work.data.test
    with torch.no_grad():
        output = fitted.predict(test)
    check_shape(output, len(test), spec, work.arm.name)
    if not torch.isfinite(output).all():
        raise TrainingFailed("predictions on the test rows are not finite")
    return output, quality.quality(output, test.y, spec.task, spec.outputs, scale=target_scale(work.data))


def _besides(work: Work, fitted: Any, output: Tensor, seen: Seen, details: dict[str, Any]) -> Looked:
    held = _conformal(work, fitted, output, details)
    drawn = fitted.learner if fitted.calibrator is None else None  # calibrated probabilities have no draws
    with torch.no_grad():
        measured, told, of_measured = uncertainty(work, drawn, output, fitted.predict)
    details["effects"] = told
    spoilt = _robustness(work, fitted)
    return Looked(
        output,
        {**seen.measures, **held.measures, **measured, **spoilt.measures},
        details,
        {**seen.rows, **held.rows, **of_measured, **spoilt.rows},
    )


def target_scale(data: Data) -> Tensor | None:
    """Standard deviations the real targets were divided by, None for other tasks."""
    return torch.as_tensor(data.pipeline.target.std) if data.spec.task == "reals" else None


def _conformal(work: Work, fitted: Any, output: Tensor, details: dict[str, Any]) -> Seen:
    """Size of the sets or width of the intervals that hold 90 % of the truth, by validation rows; coverage to details."""
    spec, valid, test = work.data.spec, first_rows(work.data.valid, FEW), work.data.test
    with torch.no_grad():
        known = fitted.predict(valid)
    if not torch.isfinite(known).all():
        return Seen({}, {})
    scale = target_scale(work.data)
    found, details["conformal"], rows = conformal.conformal(
        known, valid.y, output, test.y, spec.task, None if scale is None else scale.numpy()
    )
    return Seen(found, rows)


def _robustness(work: Work, fitted: Any) -> Seen:
    """Nothing for learners and references: they may read more than the encoded tensor, which is what is corrupted."""
    from dataclasses import replace

    spec = work.data.spec
    kinds = corruptions(spec)
    if fitted.model is None or not kinds:
        return Seen({}, {})
    part = first_rows(work.data.test, FEW)
    generator = generator_for(work.seed, "corruptions")
    found, few = robustness.robustness(
        lambda x: fitted.predict(replace(part, x=x)), part.x, part.y, spec, kinds, generator
    )
    rest = np.full(len(work.data.test) - len(part), np.nan)
    return Seen(found, {name: np.concatenate([values, rest]) for name, values in few.items()})
