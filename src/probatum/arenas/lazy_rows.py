"""What arenas do otherwise where the data are streamed from disk: small tensors for timing, refusals before long work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from probatum.data.lazy.memory import told
from probatum.data.lazy.rows import HeldRows, LazyRows, TooLarge
from probatum.errors import InputError
from probatum.rooms.arena import Work, arena
from probatum.spec import Data, Part
from probatum.train.run import TrainingFailed

ROWS = 256


def is_streamed(part: Part) -> bool:
    """Whether x of this part stays on disk."""
    return not isinstance(part.x, Tensor)


def release(*parts: Part) -> None:
    """End what reads ahead for streamed parts, and free what they hold."""
    for part in parts:
        if isinstance(part.x, LazyRows):
            part.x.close()


def first_rows(part: Part, most: int) -> Part:
    """The first rows of a part; their x is a tensor."""
    if len(part) <= most and not is_streamed(part):
        return part
    return Part(part.x[:most], part.y[:most], part.rows[:most], part.text[:most] if part.text else None)


def drawn_rows(part: Part, most: int, seed: int) -> Part:
    """At most so many rows of a part, drawn by the seed, in the order of the part; their x is a tensor."""
    if len(part) <= most:
        return first_rows(part, most)
    chosen = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return Part(part.x[chosen], part.y[chosen], part.rows[chosen])


def small(data: Data, rows: int) -> Data:
    """Streamed data cut to a few rows in memory, for timing: a step costs the same, and no reading is timed."""
    if not is_streamed(data.train):
        return data
    train, valid, test = (first_rows(part, rows) for part in (data.train, data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test)


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
    try:
        arena(where).trial(replace(work, arm=arm, base=base, data=data, tune=0, equal_compute=False, progress=None))
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
