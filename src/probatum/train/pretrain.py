"""Pretraining: the baseline network trained once on other data, before a study adapts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from probatum.recipe import Recipe, Training
from probatum.spec import Data
from probatum.train.adapt import state_of
from probatum.train.assemble import ModelFactory, assemble, budget_for
from probatum.train.engine import PLAIN, Engine
from probatum.train.loop import errors, outputs, train
from probatum.train.rng import seeded, stream

MOST_STEPS = 3000
"""Updates of pretraining unless the user gives another number."""

FRACTIONS = (0.8, 0.1, 0.1)
"""Training, validation and test rows of the source data."""

SEED = 0


def source_training(training: Training, rows: int, steps: int | None) -> Training:
    """The training of the source: the modality's own, at most `MOST_STEPS` updates, or as many as the user says."""
    usual = budget_for(replace(training, steps=None), rows).steps
    return replace(training, steps=min(usual, MOST_STEPS) if steps is None else steps)


def pretrain(
    data: Data,
    recipe: Recipe,
    factory: ModelFactory | None = None,
    *,
    seed: int = SEED,
    engine: Engine = PLAIN,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train the recipe's network on the source data and return its state dict and how good it is on the test rows.

    Args:
        data: a split of the source.
        recipe: training and, where it is one of the catalogue, the model.
        factory: builds the user's own network; None = the built-in one.
        seed: of weights and order.
        engine: where it is trained.
        progress: called as (step, steps).

    Returns:
        The state on the CPU, and `accuracy`, or `rmse` in standard deviations of the target.
    """
    parts = assemble(recipe, data, seed, factory=factory, engine=engine)
    training = recipe.training
    with seeded(seed, "pretraining"):
        train(
            parts.run,
            parts.methods,
            stream(seed, "pretraining order"),
            schedule=training.schedule,
            clip=training.clip,
            select=training.select,
            progress=progress,
        )
    model = engine.home(parts.run.model)
    found = errors(outputs(model, data.test.x), data.test, data.spec.task)
    score = {"rmse": found["valid_rmse"]} if "valid_rmse" in found else {"accuracy": 1 - found["valid_error"]}
    return state_of(model), score
