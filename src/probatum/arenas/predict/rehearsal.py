"""The rehearsal of an arm of arena predict: two steps on a few rows, and whatever is fitted after them."""

from __future__ import annotations

from dataclasses import replace

import torch

from probatum.arenas.predict.fit import check_calibrator, fit_learner, predictor, run_training
from probatum.recipe import Recipe
from probatum.rooms.arena import Work
from probatum.rooms.task import check_shape
from probatum.train.compute import costs


def rehearse(work: Work) -> None:
    """Train the arm for two updates on the few rows that the work holds, calibrate and predict.

    Raises:
        InputError: it cannot take part.
    """
    recipe = short(work.recipe)
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


def short(recipe: Recipe) -> Recipe:
    """The recipe with two updates."""
    return replace(recipe, training=replace(recipe.training, steps=2, epochs=1))
