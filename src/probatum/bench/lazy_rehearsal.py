"""Data on disk: whether an arm can do without ever having all rows at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from probatum.data.lazy.few import is_streamed, release, small
from probatum.data.lazy.memory import told
from probatum.data.lazy.rows import HeldRows, TooLarge
from probatum.errors import InputError
from probatum.rooms.arena import TrainingFailed, Work, arena
from probatum.spec import Part

ROWS = 256


def check_reads(work: Work, where: str) -> None:
    """Run the arm for two steps on a few rows that refuse to be read as a whole, as the streamed rows will.

    Nothing is done for data in memory. `where` is the arena's name. Raises InputError that names the arm where it, or
    the arena, asks for all rows at once; any other failure is for the rehearsal and the trial to tell.
    """
    if not is_streamed(work.data.train):
        return
    training = work.arm.recipe.training
    few = small(work.data, max(ROWS, 4 * training.batch_size))
    lazy: Any = work.data.train.x

    def held(part: Part, real: Part) -> Part:
        if not is_streamed(real):
            return part
        return replace(part, x=cast(Tensor, HeldRows(part.x, lazy.whole, training.batch_size)))

    data = replace(
        few,
        train=held(few.train, work.data.train),
        valid=held(few.valid, work.data.valid),
        test=held(few.test, work.data.test),
    )
    short = replace(training, steps=2, epochs=1)
    arm = replace(work.arm, recipe=replace(work.arm.recipe, training=short))
    base = replace(work.base, training=replace(work.base.training, steps=2, epochs=1))
    quick = replace(work, arm=arm, data=data, progress=None).on(base=base, tune=0, equal_compute=False)
    try:
        arena(where).trial(quick)
    except InputError as problem:
        if not (isinstance(problem, TooLarge) or isinstance(problem.__cause__, TooLarge)):
            return
        words = str(problem)
        raise InputError(words if work.arm.name in words else f"{work.arm.name}: {words}") from problem
    except (TrainingFailed, ValueError, TypeError, KeyError, RuntimeError, IndexError, AttributeError) as problem:
        if HeldRows.__name__ in str(problem):  # something that wants a tensor got rows on disk
            raise InputError(
                f"{work.arm.name} wants all rows as one tensor, but the data are streamed from disk ({problem}); allow "
                f"them in memory (memory= or --memory above {told(lazy.whole)}), or leave {work.arm.name} out"
            ) from problem
    finally:
        release(work.data.train, work.data.valid, work.data.test)
