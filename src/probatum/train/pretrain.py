"""Pretraining: the baseline network trained once on other data, before a study adapts it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from probatum.recipe import Training
from probatum.rooms.arena import Work
from probatum.rooms.task import task
from probatum.train.adapt import state_of
from probatum.train.assemble import assemble, budget_for
from probatum.train.loop import outputs, train
from probatum.train.rng import generator_for, seeded

MOST_STEPS = 3000
"""Updates of pretraining unless the user gives another number."""

SOURCE_FRACTIONS = (0.8, 0.1, 0.1)
"""Training, validation and test rows of the source data."""

SEED = 0


def source_training(training: Training, rows: int, steps: int | None) -> Training:
    """The training of the source: the modality's own, at most `MOST_STEPS` updates, or as many as the user says."""
    usual = budget_for(replace(training, steps=None), rows).steps
    return replace(training, steps=min(usual, MOST_STEPS) if steps is None else steps)


def pretrain(work: Work) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a recipe's network on the source data and return its state dict and how good it is on the test rows.

    Args:
        work: the recipe on a split of the source (`rooms.arena.alone`).

    Returns:
        The state on the CPU, and `accuracy`, or `rmse` in standard deviations of the target.
    """
    parts, training, data = assemble(work), work.recipe.training, work.data
    with seeded(work.seed, "pretraining"):
        train(
            parts.run,
            parts.methods,
            generator_for(work.seed, "pretraining order"),
            schedule=training.schedule,
            select=training.select,
            progress=work.progress,
        )
    model = work.engine.home(parts.run.model)
    found = task(data.spec.task).errors(outputs(model, data.test.x), data.test.y)
    score = {"rmse": found["rmse"]} if "rmse" in found else {"accuracy": 1 - found["error"]}
    return state_of(model), score
