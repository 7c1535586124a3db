"""What every learner promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from probatum.arenas.predict.fit import no_rows
from probatum.checks.subject import NotThisOneError, Subject, demand
from probatum.rooms.task import task as task_of
from probatum.spec import Budget, Data


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Tensor:
    """Predictions for the validation rows."""
    data = subject.data()
    return fitted(subject, data, settings).predict(data.valid)


def check_predicts(subject: Subject) -> None:
    """Finite predictions of the right shape for every task, better than knowing nothing; the test rows are not read."""
    for modality, task in subject.pairs():
        data = subject.data(modality=modality, task=task)
        output = fitted_once(subject, modality, task).predict(data.valid)
        where = f"{modality}, {task}"
        demand(
            output.shape == (len(data.valid), *task_of(task).shape(data.spec)), f"{where}: shape {tuple(output.shape)}"
        )
        demand(bool(torch.isfinite(output).all()), f"{where}: predictions are not finite")
        if task == "reals":
            error = (output - data.valid.y).square().mean().item()
            demand(error < data.valid.y.var().item(), f"{where}: worse than predicting the mean")
            continue
        output = output.exp() if task == "next-token" else output  # these are logarithms of probabilities
        sums = output.sum(dim=-1)
        demand(torch.allclose(sums, torch.ones_like(sums), atol=1e-4), f"{where}: rows do not sum to 1")
        accuracy = (output.argmax(dim=-1) == data.valid.y).float().mean().item()
        known = 0.4 if task == "classes" else 0.1
        demand(accuracy > known, f"{where}: accuracy {accuracy:.2f}, where knowing nothing gives {0.8 * known:.2f}")


def check_samples_are_what_is_predicted(subject: Subject) -> None:
    """Predictors with `samples`: finite draws (S, n, outputs) whose mean is the prediction; probabilities sum to 1; real
    targets come with a positive noise."""
    seen = False
    for modality, task in subject.pairs():
        data = subject.data(modality=modality, task=task)
        predictor = fitted_once(subject, modality, task)
        if not callable(getattr(predictor, "samples", None)) or task == "next-token":
            continue
        seen, where = True, f"{modality}, {task}"
        draws, output = predictor.samples(data.valid), predictor.predict(data.valid)
        demand(draws.ndim == 3 and draws.shape[1:] == output.shape, f"{where}: samples of shape {tuple(draws.shape)}")
        demand(bool(torch.isfinite(draws).all()), f"{where}: samples are not finite")
        gap = float((draws.mean(dim=0) - output).abs().max())
        demand(gap <= 1e-5, f"{where}: the mean of the samples is off what is predicted by {gap:.1e}")
        if task == "classes":
            sums = draws.sum(dim=2)
            demand(torch.allclose(sums, torch.ones_like(sums), atol=1e-4), f"{where}: draws do not sum to 1")
            continue
        noise = getattr(predictor, "noise", None)
        noise = noise(data.valid) if callable(noise) else noise
        demand(noise is not None, f"{where}: samples of real targets need `noise`, see contracts/learner.py")
        spread = torch.as_tensor(noise)
        demand(bool((spread > 0).all()), f"{where}: noise is not positive")
        demand(
            torch.broadcast_shapes(spread.shape, draws.shape) == draws.shape, f"{where}: noise {tuple(spread.shape)}"
        )
    if not seen:
        raise NotThisOneError("its predictors have no samples")


@cache
def fitted_once(subject: Subject, modality: str, task: str) -> Any:
    """The predictor of a learner at its tiny settings, which the checks share."""
    return fitted(subject, subject.data(modality=modality, task=task))


def fitted(subject: Subject, data: Data, settings: Mapping[str, Any] | None = None) -> Any:
    """The predictor of the learner at its tiny settings or these; it is given no test rows."""
    hidden = replace(data, test=no_rows(data.test))
    return subject.call(data, settings, data=hidden, budget=Budget(12, 16, 4))
