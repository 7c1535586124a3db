"""The second half of a trial: validation rows, tested by the weights that test rows chose (`probatum.arenas.predict.swap`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from probatum.arenas.predict.fit import Predictor, calibrate
from probatum.arenas.predict.swap import Swap
from probatum.numerics.tensors.draws import random_state_kept
from probatum.rooms.arena import Outcome, Work
from probatum.rooms.task import rows_of, task
from probatum.train.loop import snapshot


def swapped(work: Work, fitted: Predictor, swap: Swap, outcome: Outcome) -> Outcome:
    """The outcome with what the validation rows say besides; why they say nothing is told in its details."""
    if not work.terms.swap:
        return outcome
    why_not = swap.why_not()
    if not why_not:
        try:
            outcome.swapped, outcome.swapped_rows = _tested(work, fitted, swap)
        except Exception as problem:  # the trial itself went well
            why_not = f"{type(problem).__name__}: {problem}"[:300]
    if why_not:
        outcome.details["not_swapped"] = why_not
    return outcome


def _tested(work: Work, fitted: Predictor, swap: Swap) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measures of the validation rows that have values of rows, and these."""
    other = replace(work, data=replace(work.data, valid=work.data.test, test=work.data.valid), progress=None)
    with random_state_kept(), _weights(work, fitted.model, swap.state):
        again = calibrate(replace(fitted, calibrator=None, temperature=1.0), other)
        rows = task(work.data.spec.task).tested_rows(other, again)
    counted = {name: values[~np.isnan(values)] for name, values in rows.items()}
    measures = {name: float(values.mean()) for name, values in counted.items() if len(values)}
    return measures, rows_of(rows, measures, len(other.data.test))


@contextmanager
def _weights(work: Work, model: nn.Module | None, state: dict[str, Any] | None) -> Iterator[None]:
    """A block in which the network has these weights, None = its own."""
    if model is None:
        yield
        return
    work.engine.network(model)
    before = None if state is None else snapshot(model)
    try:
        if state is not None:
            model.load_state_dict(state)
        yield
    finally:
        if before is not None:
            model.load_state_dict(before)
        work.engine.home(model)
