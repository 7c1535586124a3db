"""What arena predict asks of predictors that are many networks, and of the others likewise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probatum.data.lazy.few import first_rows
from probatum.errors import InputError
from probatum.measure.outside import auroc
from probatum.measure.uncertainty import Found, class_uncertainty, real_uncertainty
from probatum.numerics.posterior.predictive import ClassPredictive, RealPredictive
from probatum.rooms.arena import Work
from probatum.rooms.task import without_answers
from probatum.spec import Part

LEAST = 1e-12
Predict = Callable[[Part], Tensor]


def uncertainty(work: Work, learner: Any, output: Tensor, predict: Predict) -> Found:
    """Measures of uncertainty on the test rows, further named numbers of predictors with several draws, and values of rows.

    A predictor without draws of its own counts as one draw; for real targets its noise is the root mean squared error on
    the validation rows.

    Args:
        work: the trial.
        learner: the predictor with `samples(part)`, or None.
        output: predictions for the test rows.
        predict: of the arm, for validation rows.
    """
    data = work.data
    samples = _samples(learner)
    if data.spec.task == "reals":
        return real_uncertainty(_reals(work, learner, output, predict), data.test.y)
    if samples is None:
        return class_uncertainty(ClassPredictive(output.clamp_min(LEAST).log()[None]), data.test.y)
    draws = _checked(samples(data.test), output, work.arm.name)
    found, told, rows = class_uncertainty(ClassPredictive(draws.clamp_min(LEAST).log()), data.test.y)
    if work.truth is not None and work.truth.outside is not None and len(draws) > 1:
        elsewhere = ClassPredictive(samples(work.truth.outside).clamp_min(LEAST).log())
        here = ClassPredictive(draws.clamp_min(LEAST).log())
        told["ood-auroc-epistemic"] = auroc(-here.epistemic, -elsewhere.epistemic)
    return found, told, rows


def _reals(work: Work, learner: Any, output: Tensor, predict: Predict) -> RealPredictive:
    samples, noise = _samples(learner), getattr(learner, "noise", None)
    if samples is None:
        valid = first_rows(work.data.valid, 2000)
        error = (predict(valid) - valid.y).square().mean(dim=0).clamp_min(LEAST)
        return RealPredictive(output[None], error.expand_as(output)[None])
    means = _checked(samples(work.data.test), output, work.arm.name)
    if noise is None:
        raise InputError(f"{work.arm.name} gives samples of real targets without their noise; see contracts/learner.py")
    spread = noise(without_answers(work.data.test)) if callable(noise) else noise
    return RealPredictive(means, torch.as_tensor(spread, dtype=means.dtype).square().expand_as(means))


def _samples(learner: Any) -> Callable[[Part], Tensor] | None:
    """The predictor's `samples`, where that is a function and not, say, a number; it is asked without answers."""
    found = getattr(learner, "samples", None)
    return (lambda part: found(without_answers(part))) if callable(found) else None


def _checked(draws: Tensor, output: Tensor, who: str) -> Tensor:
    if draws.ndim != 3 or draws.shape[1:] != output.shape:
        raise InputError(
            f"{who} gives samples of shape {tuple(draws.shape)}; (draws, {', '.join(map(str, output.shape))})"
        )
    return draws
