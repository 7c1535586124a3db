"""The rehearsal: an arm on a few rows, before any long work."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from probatum import catalogue, inject, slots
from probatum.errors import InputError
from probatum.recipe import Recipe, Use
from probatum.rooms.arena import TrainingFailed, Work, arena
from probatum.spec import Data, Part
from probatum.train.assemble import budget_for

ROWS = 48
LEARNER_ROWS = 160
"""Rows for learners, which choose among their settings on parts of them."""
STEPS = 2
MORE_ROWS, MORE_STEPS = 2048, 64
"""Where it fails on those, it is tried with so many: calibrators need rows, and averages of weights need steps."""


def rehearse(work: Work, where: str) -> None:
    """Try the work's arm, of the arena called `where`, for a few steps on a few rows; InputError where it cannot take part.

    Settings are checked against the technique's own signature first, so that a misspelt one is named as such.
    """
    for use in work.recipe.uses():
        entry = catalogue.entry(use.id)
        fixed = slots.fixed(catalogue.place(use.id).slot)
        inject.check_settings(use.id, getattr(entry, "for_model", entry), use.settings, fixed)
    rows = ROWS if work.recipe.learner is None else LEARNER_ROWS
    try:
        _try_on(rows, STEPS, replace(work, arm=replace(work.arm, recipe=_small(work.recipe))), where)
    except InputError:
        _try_on(MORE_ROWS, MORE_STEPS, work, where)
    _try_settings(work, where)


def try_all(work: Work, where: str) -> None:
    """Run a whole trial of the work's arm, measures included, but of one step on a few rows."""
    few = replace(_few(work.data, ROWS), test=_rows(work.data.test, work.data, ROWS))
    training = replace(work.base.training, steps=1, epochs=1)
    base = replace(work.base, training=training)
    arm = replace(work.arm, recipe=replace(work.arm.recipe, training=training))
    arena(where).trial(replace(work, arm=arm, data=few, progress=None).on(base=base, tune=0, equal_compute=False))


def _try_settings(work: Work, where: str) -> None:
    """In arenas whose techniques take whole trainings: InputError where one refuses a setting that the user has set.

    They are tried with what is asked, or less of it, on a few rows, which other settings may find too few.
    """
    play = getattr(arena(where), "play", None)
    if play is None or work.builtin or not work.recipe.uses():
        return
    use = work.player
    tiny = catalogue.card(use.id).tiny
    few = replace(work, data=_few(work.data, ROWS), progress=None)
    less = {name: _at_most(value, tiny.get(name)) for name, value in use.settings.items()}
    recipe = work.recipe.placed(Use(use.id, {**tiny, **less}), catalogue.place(use.id).slot)
    try:
        play(replace(few, arm=replace(work.arm, recipe=recipe)))
    except Exception as problem:  # of which only what names a setting is the user's
        if any(re.search(rf"\b{name}\b", str(problem)) for name in use.settings):
            raise InputError(f"{work.arm.name}: {problem}") from problem


def _at_most(value: Any, tiny: Any) -> Any:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (value, tiny))
    return min(value, tiny) if numbers else value


def _small(recipe: Recipe) -> Recipe:
    """The recipe with its techniques that the loop does not train at their cards' tiny settings, but for what the user set."""
    for use in recipe.uses():
        slot = catalogue.place(use.id).slot
        if not slots.contract(slot).TRAINED:
            recipe = recipe.placed(Use(use.id, {**catalogue.card(use.id).tiny, **use.settings}), slot)
    return recipe


def _try_on(rows: int, steps: int, work: Work, where: str) -> None:
    budget = budget_for(work.base.training, len(work.data.train))
    training = replace(work.base.training, steps=min(steps, budget.steps), epochs=1)
    few = replace(work, data=_few(work.data, rows), progress=None)
    try:
        arena(where).rehearse(few.on(tune=0, base=replace(work.base, training=training)))
    except TrainingFailed:
        return  # a failure in training is a result of the trial, not a mistake of the user's
    except InputError:
        raise
    except Exception as problem:  # whatever a technique of the user's raises
        line = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise InputError(f"{work.arm.name} does not run on these data: {type(problem).__name__}: {line}") from problem


def _few(data: Data, rows: int) -> Data:
    return replace(data, train=_rows(data.train, data, rows), valid=_rows(data.valid, data, rows))


def _rows(part: Part, data: Data, rows: int) -> Part:
    """A few rows with as many classes as fit."""
    pick = torch.arange(min(rows, len(part)))
    if data.spec.task == "classes":
        firsts = torch.stack([(part.y == c).int().argmax() for c in range(data.spec.outputs)])
        pick = torch.cat([firsts, pick])[: max(rows, data.spec.outputs)].unique()
    return Part(part.x[pick], part.y[pick], part.rows[pick], tuple(part.text[i] for i in pick) if part.text else None)
