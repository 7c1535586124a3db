"""The rehearsal: one step of an arm on a few rows, before any long work."""

from __future__ import annotations

from dataclasses import replace

import torch

from probatum import catalogue
from probatum.card import ARENAS
from probatum.contracts import inject
from probatum.errors import InputError
from probatum.rooms.arena import Work, arena
from probatum.spec import Data, Part
from probatum.train.run import TrainingFailed

ROWS = 48


def rehearse(work: Work) -> None:
    """Train the work's arm for a step or two on a few rows; InputError where it cannot take part.

    Settings are checked against the technique's own signature first, so that a misspelt one is named as such.
    """
    from probatum.arenas.predict import arena as predict

    recipe = work.arm.recipe
    for use in recipe.uses():
        slot = catalogue.place(use.id).slot
        fixed = inject.FIXED.get(slot, ())
        entry = catalogue.entry(use.id)
        inject.check_settings(use.id, getattr(entry, "for_model", entry), use.settings, fixed)
    places = {ARENAS[catalogue.place(use.id).slot] for use in recipe.uses()} - {"predict"}
    own = getattr(arena(places.pop()), "rehearse", None) if places else None
    if recipe.learner is not None or any(ARENAS[catalogue.place(use.id).slot] != "predict" for use in recipe.uses()):
        recipe = work.base
    try:
        small = replace(work, data=_few(work.data), arm=replace(work.arm, recipe=recipe), tune=0, equal_compute=False)
        if own is not None:
            own(replace(small, arm=work.arm))
        steps = replace(recipe.training, steps=2, epochs=1)
        predict.run_training(replace(recipe, training=steps), small)
    except TrainingFailed:
        return  # a failure in training is a result of the trial, not a mistake of the user's
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, IndexError) as problem:
        line = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise InputError(f"{work.arm.name} does not run on these data: {type(problem).__name__}: {line}") from problem


def _few(data: Data) -> Data:
    return replace(data, train=_rows(data.train, data), valid=_rows(data.valid, data))


def _rows(part: Part, data: Data) -> Part:
    """A few rows with as many classes as fit."""
    pick = torch.arange(min(ROWS, len(part)))
    if data.spec.task == "classes":
        firsts = torch.stack([(part.y == c).int().argmax() for c in range(data.spec.outputs)])
        pick = torch.cat([firsts, pick])[: max(ROWS, data.spec.outputs)].unique()
    return Part(part.x[pick], part.y[pick], part.rows[pick], tuple(part.text[i] for i in pick) if part.text else None)
