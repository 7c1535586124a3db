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
    output, test = _predicted(work, fitted), work.data.test
    found = _quality(work, output)
    found |= calibration.calibration(output, test.y) | selective.selection(output, test.y)
    seen = Seen(found, row_values.of_classes(output, test.y))
    details = {
        "reliability": calibration.reliability(output, test.y),
        "per_class": quality.per_class(output, test.y),
    }
    return _looked(work, fitted, output, seen, details)


def look_at_reals(work: Work, fitted: Any) -> Looked:
    """Values (n, outputs) of the test rows: quality, intervals, uncertainty, robustness."""
    output = _predicted(work, fitted)
    found = _quality(work, output)
    rows = row_values.of_reals(output, work.data.test.y, target_scale(work.data))
    constant = {"constant": True} if len(output) > 1 and bool((output == output[0]).all()) else {}
    return _looked(work, fitted, output, Seen(found, rows), constant)


def rows_of_classes(work: Work, fitted: Any) -> dict[str, np.ndarray]:
    """The values of rows of `look_at_classes`, without robustness, which takes a pass for every corruption."""
    output = _predicted(work, fitted)
    return {**row_values.of_classes(output, work.data.test.y), **_besides(work, fitted, output, {}).rows}


def rows_of_reals(work: Work, fitted: Any) -> dict[str, np.ndarray]:
    """The values of rows of `look_at_reals`, without robustness."""
    output, scale = _predicted(work, fitted), target_scale(work.data)
    return {**row_values.of_reals(output, work.data.test.y, scale), **_besides(work, fitted, output, {}).rows}


def _predicted(work: Work, fitted: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = fitted.predict(work.data.test)
    check_shape(output, len(work.data.test), work.data.spec, work.arm.name)
    if not torch.isfinite(output).all():
        raise TrainingFailed("predictions on the test rows are not finite")
    return output


def _quality(work: Work, output: Tensor) -> dict[str, float]:
    spec, test = work.data.spec, work.data.test
    return quality.quality(output, test.y, spec.task, spec.outputs, scale=target_scale(work.data))


def _looked(work: Work, fitted: Any, output: Tensor, seen: Seen, details: dict[str, Any]) -> Looked:
    besides, spoilt = _besides(work, fitted, output, details), _robustness(work, fitted)
    measures = {**seen.measures, **besides.measures, **spoilt.measures}
    return Looked(output, measures, details, {**seen.rows, **besides.rows, **spoilt.rows})


def _besides(work: Work, fitted: Any, output: Tensor, details: dict[str, Any]) -> Seen:
    """Sets or intervals, and uncertainty."""
    held = _conformal(work, fitted, output, details)
    drawn = fitted.learner if fitted.calibrator is None else None  # calibrated probabilities have no draws
    with torch.no_grad():
        measured, told, of_measured = uncertainty(work, drawn, output, fitted.predict)
    details["effects"] = told
    return Seen({**held.measures, **measured}, {**held.rows, **of_measured})


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
