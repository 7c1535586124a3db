"""Who is rehearsed where: arms with techniques from outside in a process of their own, the others here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from probatum.bench.context import Context
from probatum.bench.isolation import outsiders, watching
from probatum.bench.lazy_rehearsal import check_reads
from probatum.bench.rehearse import rehearse
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe
from probatum.train.devices import check_shared

Elsewhere = Callable[[Context, str, Arm | None], None]
"""Rehearses an arm (None = the baseline) in the process of its techniques from outside."""


def tried(context: Context, arm: Arm | None, elsewhere: Elsewhere | None = None) -> None:
    """Rehearse one arm, None = the baseline.

    Args:
        context: the study.
        arm: who.
        elsewhere: rehearses arms with techniques from outside; None = they are rehearsed here too.

    Raises:
        InputError: it cannot take part.
    """
    owner = "+".join(outsiders(context.plan.base if arm is None else arm.recipe))
    if owner and elsewhere is not None:
        elsewhere(context, owner, arm)
        return
    name, recipe = ("the baseline", context.plan.base) if arm is None else (arm.name, arm.recipe)
    _, found = watching(context, {0}, lambda: _rehearse(context, arm, name, recipe))
    if found.what:
        raise InputError(f"{name} cannot take part: {found.words()}")


def _rehearse(context: Context, arm: Arm | None, name: str, recipe: Recipe) -> None:
    plan = context.plan
    quick = replace(plan.engine, devices=1, compile=False)  # processes and compilers take longer than a step
    trying = replace(context, plan=replace(plan, engine=quick))
    work = trying.baseline() if arm is None else trying.work(arm, "", 0)
    rehearse(work, plan.arena)
    check_reads(work, plan.arena)
    check_shared(name, recipe, plan.engine)


def apart(context: Context, arm: Arm | None) -> None:
    """What the process of an arm's techniques does: rehearse it, whatever it raises.

    Raises:
        InputError: it cannot take part, or changes what belongs to all trials.
    """
    try:
        tried(context, arm)
    except InputError:
        raise
    except BaseException as problem:
        name = "the baseline" if arm is None else arm.name
        raise InputError(f"{name} does not run on these data: {type(problem).__name__}: {problem}") from problem
