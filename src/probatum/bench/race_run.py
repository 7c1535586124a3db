"""Run a race: stage by stage the living arms on the next seeds, until none is left or the seeds are used up."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from probatum.bench.plan import StudyPlan
from probatum.bench.race import FUTILE, Race
from probatum.bench.results import Results
from probatum.bench.statistics import FEWEST_SEEDS
from probatum.bench.store import Trial
from probatum.bench.verdict import Verdict
from probatum.recipe import Arm

Ask = Callable[[tuple[int, ...], tuple[Arm, ...], bool], list[Trial]]
"""Gives the trials of some seeds and arms beside the baseline, with the references if the third value says so."""


def race_through(plan: StudyPlan, ask: Ask) -> tuple[Trial, ...]:
    """Return the trials of the whole race; what is asked for depends on the plan and on earlier trials only.

    References are context: they take part up to the first look. The baseline runs every seed that a living arm runs.

    Args:
        plan: a study with looks.
        ask: runs trials, or looks them up.
    """
    trials: list[Trial] = []
    living, pairs, done = plan.arms, dict.fromkeys((arm.name for arm in plan.arms), 0), 0
    for index, look in enumerate(plan.race):
        trials += ask(plan.seeds[done:look], living, done == 0)
        done = look
        if look == plan.race[-1]:
            break
        found = {verdict.arm: verdict for verdict in Results(plan, tuple(trials), (), (), {}).standing()}
        kept = [arm for arm in living if arm.name in found and goes_on(plan, index, found[arm.name], pairs[arm.name])]
        living, pairs = tuple(kept), {name: verdict.n for name, verdict in found.items()}
        if not living:
            break
    return tuple(trials)


def goes_on(plan: StudyPlan, index: int, verdict: Verdict, pairs_before: int) -> bool:
    """Whether more seeds may decide an arm that had `pairs_before` pairs at the look before."""
    known = math.isfinite(verdict.error)
    race = Race(plan.race, None if known else plan.data.ratio, plan.confidence)
    could_be = verdict.n + race.cap - race.looks[index]
    if verdict.word not in ("undecided", "failed") or verdict.n == pairs_before or could_be < FEWEST_SEEDS:
        return False  # decided, or its trials bring nothing to compare
    if verdict.n < FEWEST_SEEDS:
        return True
    mean, margin, sd, shared = (np.array([value]) for value in (verdict.mean, verdict.margin, verdict.sd, 0.0))
    if known:
        shared = np.array([verdict.common * verdict.error**2])
        sd = np.sqrt(verdict.n * (verdict.error**2 - shared))
    chance = race.chance(index, mean, sd, margin, shared)
    return bool(chance[0] >= FUTILE)
