"""The rehearsal of an arm of arena predict: a few steps on a few rows, and whatever is fitted after them."""

from __future__ import annotations

from dataclasses import replace

import torch

from probatum.arenas.predict.fit import check_calibrator, fit_learner, predictor, run_training
from probatum.rooms.arena import Work
from probatum.rooms.task import check_shape
from probatum.train.compute import costs


def rehearse(work: Work) -> None:
    """Train the arm for the updates of the work's baseline on the few rows that it holds, calibrate and predict.

    Raises:
        InputError: it cannot take part.
    """
    recipe = replace(work.recipe, training=replace(work.recipe.training, steps=work.base.training.steps, epochs=1))
    check_calibrator(recipe, work.data.spec.task)
    if recipe.learner is not None:
        fitted = fit_learner(work, recipe, recipe.learner)
    else:
        fitted = predictor(work, recipe, run_training(work, recipe))
        if work.terms.equal_compute:
            costs(work, recipe, recipe.training.steps or 1)
    with torch.no_grad():
        output = fitted.predict(work.data.valid)
    check_shape(output, len(work.data.valid), work.data.spec, work.arm.name)
