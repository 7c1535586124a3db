"""Arena `predict`: train an arm on the split's training rows, choose on validation rows, look at the test rows once."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch
from torch import Tensor, nn

from probatum.arenas.predict.fit import Predictor, fit
from probatum.arenas.predict.rehearsal import rehearse
from probatum.arenas.predict.timing import timings
from probatum.data.lazy.few import release
from probatum.measure import cost
from probatum.measure.truth import truth_measures
from probatum.rooms.arena import Outcome, Work
from probatum.rooms.task import rows_of, task
from probatum.spec import Spec
from probatum.train.adapt import Adapted
from probatum.train.loop import outputs

__all__ = ["BASELINE", "measures", "references", "rehearse", "timings", "trial"]

BASELINE = "baseline"
SCALED = "temperature scaling"
COSTS = (
    *("parameters", "nonzero-parameters", "macs", "training-passes"),
    *("step-time-ratio", "latency-ratio", "peak-memory"),
)


def references(spec: Spec) -> tuple[str, ...]:
    """Classical predictors, and temperature scaling where a calibrator has something to beat."""
    asked = task(spec.task)
    return (*asked.references(spec), *((SCALED,) if asked.CALIBRATED else ()))


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    return (*task(spec.task).measures(spec), *COSTS)


def trial(work: Work) -> Outcome:
    """Train and measure one arm on one seed."""
    start = time.perf_counter()
    fitted = fit(work)
    return measured(work, fitted, time.perf_counter() - start)


def measured(work: Work, fitted: Predictor, seconds: float) -> Outcome:
    """Look at the test rows: every measure of a trained arm; `seconds` is what its training took."""
    if fitted.model is not None:
        work.engine.network(fitted.model)
    looked = task(work.data.spec.task).measured(work, fitted)
    output, found, rows = looked.output, looked.measures, dict(looked.rows)
    details: dict[str, Any] = {"curve": fitted.curve, "effects": fitted.effects, **looked.details}
    details["effects"] = {**fitted.effects, **looked.details.get("effects", {})}
    if work.truth is not None:
        with torch.no_grad():
            true, details["truth"], of_true = truth_measures(
                fitted.predict, output, work.data.test, work.data.train, work.truth, work.data.spec.task
            )
        found, rows = found | true, rows | of_true
    if fitted.passes:
        found["training-passes"] = fitted.passes
    if fitted.model is not None:
        found |= _costs(work, fitted.model)
    release(work.data.train, work.data.valid, work.data.test)
    rows = rows_of(rows, found, len(work.data.test))
    return Outcome(found, {"training-seconds": seconds}, digest(fitted.model, output), details, rows)


def _costs(work: Work, model: nn.Module) -> dict[str, float]:
    """Size, operations and memory of a network, on the CPU."""
    work.engine.home(model)
    tuned_start = isinstance(work.factory, Adapted)  # fine-tuning: the frozen body is part of what is kept
    found = {
        "parameters": float(cost.parameters(model, frozen=tuned_start)),
        "nonzero-parameters": float(cost.nonzero(model, frozen=tuned_start)),
    }
    if isinstance(work.factory, Adapted):
        found |= work.factory.sizes(model)
    few = work.data.test.x[:64]
    found["macs"] = float(cost.macs(model, few))
    found["peak-memory"] = float(cost.peak_memory(lambda: outputs(model, few)))
    return found


def looked_at(fitted: Predictor, work: Work) -> Tensor:
    """What the digest of a trained arm is taken of."""
    return task(work.data.spec.task).looked_at(work, fitted)


def digest(model: nn.Module | None, output: Tensor) -> str:
    """Hash of a trained arm's test outputs and weights."""
    found = hashlib.sha256(output.contiguous().numpy().tobytes())
    for _, value in sorted((model.state_dict() if model is not None else {}).items()):
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
