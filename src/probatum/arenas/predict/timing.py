"""Step time and latency of an arm against the baseline, measured A B A B in this process.

Steps are those of a whole training, so that techniques whose steps cost more early, late or now and then are timed at all of
it; long schedules are drawn together, in which what is done a fixed number of times weighs more. Latency is of the network
that is kept, once the training is finished.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from probatum.data.lazy.few import small
from probatum.measure import cost
from probatum.rooms.arena import Work
from probatum.rooms.task import task
from probatum.train.assemble import budget_for
from probatum.train.loop import outputs
from probatum.train.stepper import BLOCK, Stepper, stepping

LEAST, MOST = 32, 128
"""Steps of the training that is timed: the recipe's own, within these."""

ROUNDS = 2
"""Equal trainings; the faster of the same steps counts, so that a hiccup of the machine does not."""


def timings(work: Work) -> dict[str, float]:
    """Step time and latency as ratios to the baseline's; learners and built-in arms have none."""
    recipe = work.recipe
    if recipe.learner is not None or work.builtin:
        return {}
    steps = max(LEAST, min(MOST, budget_for(recipe.training, len(work.data.train)).steps)) // BLOCK * BLOCK
    data = small(work.data, max(1024, 4 * recipe.training.batch_size))
    work = replace(work, data=task(work.data.spec.task).for_timing(data))
    x = work.engine.part(work.data.test).x[:256]
    taken: list[tuple[list[float], list[float]]] = []
    latency = 1.0
    for number in range(ROUNDS):
        with stepping(work, recipe, steps) as mine, stepping(work, work.base, steps) as base:
            cost.interleave(mine.step, base.step, pairs=steps // BLOCK, warmup=0)
            taken.append((mine.seconds, base.seconds))
            if number == ROUNDS - 1:
                latency = _latency(mine, base, x)
    mine_spent, base_spent = (sum(map(min, zip(*side, strict=True))) for side in zip(*taken, strict=True))
    return {"step-time-ratio": mine_spent / base_spent, "latency-ratio": latency}


def _latency(mine: Stepper, base: Stepper, x: torch.Tensor) -> float:
    """Time of predictions by what is kept: the finished networks, without what was attached in training."""
    mine.finish()
    base.finish()
    timed = cost.interleave(lambda: outputs(mine.model, x), lambda: outputs(base.model, x), pairs=8, warmup=2)
    return median_ratio(timed.log_ratios)


def median_ratio(log_ratios: tuple[float, ...]) -> float:
    """The ratio in the middle."""
    return float(torch.tensor(log_ratios, dtype=torch.float64).median().exp())
