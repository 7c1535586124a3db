"""Step time and latency of an arm against the baseline, measured A B A B in this process, methods attached all along."""

from __future__ import annotations

from dataclasses import replace

import torch

from probatum.data.lazy.few import small
from probatum.measure import cost
from probatum.rooms.arena import Work
from probatum.rooms.task import task
from probatum.train.loop import outputs
from probatum.train.stepper import stepping


def timings(work: Work) -> dict[str, float]:
    """Step time and latency as ratios to the baseline's; learners and built-in arms have none."""
    recipe = work.recipe
    if recipe.learner is not None or work.builtin:
        return {}
    data = small(work.data, max(1024, 4 * recipe.training.batch_size))
    work = replace(work, data=task(work.data.spec.task).for_timing(data))
    x = work.engine.part(work.data.test).x[:256]
    with stepping(work, recipe) as mine, stepping(work, work.base) as base:
        step = cost.interleave(mine.step, base.step, pairs=6, warmup=2)
        latency = cost.interleave(lambda: outputs(mine.model, x), lambda: outputs(base.model, x), pairs=8, warmup=2)
    return {"step-time-ratio": median_ratio(step.log_ratios), "latency-ratio": median_ratio(latency.log_ratios)}


def median_ratio(log_ratios: tuple[float, ...]) -> float:
    """The ratio in the middle."""
    return float(torch.tensor(log_ratios, dtype=torch.float64).median().exp())
