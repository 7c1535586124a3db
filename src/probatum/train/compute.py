"""Equal cost instead of equal steps: how many updates an arm may take for the arithmetic the baseline takes."""

from __future__ import annotations

from dataclasses import replace

from probatum.numerics.cost.operations import counted
from probatum.recipe import Recipe
from probatum.spec import Data
from probatum.train.assemble import ModelFactory, assemble, budget_for
from probatum.train.loop import train
from probatum.train.streams import seeded, stream


def equal_steps(base: Recipe, recipe: Recipe, data: Data, seed: int, factory: ModelFactory | None) -> int:
    """Updates after which `recipe` has used the floating-point operations of the whole baseline run, at least 1.

    Operations are counted, not timed, so that the answer is the same on every machine; work done before the first
    update (`prepare`) is charged.
    """
    base_total = budget_for(base.training, len(data.train)).steps * _per_step(base, data, seed, factory)[1]
    fixed, per_step = _per_step(recipe, data, seed, factory)
    return max(1, int((base_total - fixed) // max(per_step, 1)))


def _per_step(recipe: Recipe, data: Data, seed: int, factory: ModelFactory | None) -> tuple[float, float]:
    one, three = (_operations(recipe, data, seed, factory, steps) for steps in (1, 3))
    per_step = (three - one) / 2
    return one - per_step, per_step


def _operations(recipe: Recipe, data: Data, seed: int, factory: ModelFactory | None, steps: int) -> float:
    parts = assemble(recipe, data, seed, factory=factory)
    parts.run.budget = replace(parts.run.budget, steps=steps, steps_per_epoch=10**9)
    few = replace(parts.run, valid=replace(parts.run.valid, x=parts.run.valid.x[:1], y=parts.run.valid.y[:1]))
    with seeded(seed, "training"), counted() as operations:
        train(few, parts.methods, stream(seed, "order"), select="last")
    return float(operations.total)
