"""How arms are kept apart: what a group of trials changed is found and put back, and techniques from outside are told.

A technique from outside the package (a file given with ``--technique``, an entry point of another package) is run in a
process of its own, with the arms that are made with the same ones. There and everywhere `guarded` compares, before and after
a trial, what all trials share (`probatum.bench.untouched`) and the rows that it was given; a trial that changed any of it has
failed, and says what it touched.
"""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

from probatum import catalogue
from probatum.arenas.predict.stacks import Choice
from probatum.bench import grouping
from probatum.bench.context import Context, Job, Progress, PutOff, TimeUp, lost, put_off
from probatum.bench.packed_rows import unpack
from probatum.bench.records import PUT_OFF, STATUSES
from probatum.bench.store import REMARK, Trial
from probatum.bench.untouched import Touched, Untouched
from probatum.recipe import Arm, Recipe

Result = TypeVar("Result")
KEPT = 2000
"""Characters of what a technique prints that are kept."""


@dataclass(frozen=True)
class Ran:
    """What became of a group.

    Attributes:
        trials: in the group's order.
        touched: whether something was changed that is not the group's own.
        lasting: what of it could not be put back, "" = nothing: this process should run no other arm.
    """

    trials: list[Trial]
    touched: bool = False
    lasting: str = ""


def outsiders(recipe: Recipe) -> tuple[str, ...]:
    """Ids of the techniques from outside the package that a recipe is made with; () = none."""
    return tuple(sorted({use.id for use in recipe.uses() if catalogue.from_outside(use.id)}))


def all_outsiders(base: Recipe, arms: Sequence[Arm]) -> tuple[str, ...]:
    """The same of a whole study."""
    return tuple(sorted({name for recipe in (base, *(arm.recipe for arm in arms)) for name in outsiders(recipe)}))


def owner_of(group: Sequence[Job]) -> str:
    """Whose process may run a group: that of its techniques from outside; "" = any."""
    return "+".join(outsiders(group[0].arm.recipe))


def guarded(
    context: Context, group: Sequence[Job], progress: Progress | None = None, limit: float | None = None
) -> Ran:
    """Run a group; where it changed what is not its own, its trials have failed and say what it touched.

    A trial that was put off in the middle has failed by nothing that it had not put back yet.

    Args:
        context: the study.
        group: its jobs.
        progress: hears of steps.
        limit: seconds that the group may take before it has failed; None = who started this process sees to it.
    """
    trials, found = watching(context, {job.seed for job in group}, lambda: _allowed(context, group, progress, limit))
    if not found.what:
        return Ran(trials)
    failed = [
        trial
        if trial.status == PUT_OFF
        else lost(context, job, "failed", found.words(), seconds=float(trial.timing.get("seconds", 0.0)))
        for job, trial in zip(group, trials, strict=True)
    ]
    return Ran(failed, True, ", ".join(found.lasting))


def _allowed(
    context: Context, group: Sequence[Job], progress: Progress | None, limit: float | None = None
) -> list[Trial]:
    """A group that was run; a trial alone at most as long as it is allowed to where others wait."""
    allowance, most = group[0].allowance if len(group) == 1 else math.inf, math.inf if limit is None else limit
    up = PutOff(allowance, passed=True) if allowance < most else TimeUp(took_too_long(most))
    begun, seconds = time.monotonic(), min(allowance, most)
    try:
        with at_most(None if math.isinf(seconds) else seconds, up):
            return grouping.run_group(context, group, progress)
    except PutOff as problem:  # before or after the trial itself, as the next
        return [put_off(context, group[0], problem)]
    except TimeUp as problem:
        each = (time.monotonic() - begun) / len(group)
        return [lost(context, job, "failed", str(problem), seconds=each) for job in group]


def believed(context: Context, group: Sequence[Job], ran: Ran) -> Ran:
    """What another process says of a group; a trial that cannot be read, or is no trial of its job, has failed.

    What a technique does to its own process, JSON's encoder among it, is then its own loss and no study's that reads it.
    """
    if len(ran.trials) != len(group):
        ran = replace(ran, trials=[lost(context, job, "", "", seconds=0.0) for job in group])
    trials = [_believed(context, job, trial) for job, trial in zip(group, ran.trials, strict=True)]
    return replace(ran, trials=trials)


def _believed(context: Context, job: Job, trial: Trial) -> Trial:
    try:
        mine = (context.study_key(), job.key, job.arm.name, job.seed, job.kind)
        if mine != (trial.study, trial.key, trial.arm, trial.seed, trial.kind) or trial.status not in (
            *STATUSES,
            PUT_OFF,
        ):
            raise ValueError("it is no trial of this arm and seed")
        told = trial.timing if job.kind == "timing" else trial.record
        if trial.status == "ok" and not all(isinstance(value, int | float) for value in told["measures"].values()):
            raise ValueError("its measures are no numbers")
        if trial.rows:
            unpack(trial.rows)
        float(trial.timing.get("seconds", 0.0))
        return trial
    except Exception as problem:
        reason = f"what its process sent cannot be read ({type(problem).__name__}: {problem})"
        return lost(context, job, "failed", reason, seconds=0.0)


def probed(context: Context, block: list[Job]) -> Choice:
    """Whether seeds of an arm are trained as one; not, and it is told, where the probe changed what is not its own."""
    choice, found = watching(context, {job.seed for job in block}, lambda: grouping.probed(context, block))
    return Choice(False, problem=f"when they were tried as one, {found.words()}") if found.what else choice


@dataclass
class Found:
    """What was changed in a block, known when it has ended; see `probatum.bench.untouched.Touched`."""

    what: list[str] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)
    drawn: bool = False

    def words(self) -> str:
        """One sentence."""
        return Touched(tuple(self.what)).words()


@contextmanager
def watched(context: Context, seeds: Iterable[int]) -> Iterator[Found]:
    """A block that may change neither what all trials share nor the rows of these seeds; what it did is told and put back.

    A process that the block branches off ends with it, by whatever it is left: it has no part in what follows.
    """
    guard, found, own = _guard(), Found(), os.getpid()
    guard.begin()
    try:
        yield found
    finally:
        if os.getpid() != own:
            os._exit(0)
    touched = guard.look()
    found.what, found.lasting, found.drawn = list(touched.what), list(touched.lasting), touched.drawn
    for seed in sorted(seeds):
        if not context.splits.intact(seed):
            found.what.append(f"the rows of seed {seed}")
            found.drawn = False
            if not context.splits.mended(seed):
                found.lasting.append("the data, as they are held in memory")


def watching(context: Context, seeds: Collection[int], work: Callable[[], Result]) -> tuple[Result, Found]:
    """What some work comes to, and what it changed; done again where libraries that it loaded may have drawn meanwhile."""
    for _ in range(2):
        with watched(context, seeds) as found:
            result = work()
        if not found.drawn:
            break
    return result, found


@cache
def _guard() -> Untouched:
    """This process's, made before anything is run that it watches."""
    return Untouched()


def begin() -> None:
    """Take this process, in which nothing was run yet, for what it should be."""
    _guard()


@contextmanager
def at_most(seconds: float | None, problem: BaseException | None = None) -> Iterator[None]:
    """A block that is stopped where it takes longer, by `TimeUp` or what is given; only in a process's main thread.

    Args:
        seconds: None = it may take for ever.
        problem: what is raised in it.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise problem or TimeUp(took_too_long(seconds))

    before, begun = signal.signal(signal.SIGALRM, stop), time.monotonic()
    outer, again = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), 1.0)  # and again, should somebody catch it; 0 is never
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # it may ring meanwhile
            signal.signal(signal.SIGALRM, before)
        if outer:  # that of a block around this one
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - begun), 0.01), again)


def took_too_long(seconds: float) -> str:
    """The reason of a trial that was stopped."""
    words = f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:.3g} s"
    return f"it took longer than {words}; --trial-minutes gives more"


class _Counted(io.RawIOBase):
    """Takes bytes: how many characters they are, and the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.first = 0, ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1  # where processes that a technique starts may write: nowhere, in a worker

    def write(self, data: Any) -> int:
        text = bytes(data).decode("utf-8", "replace")
        self.first += text[: max(0, KEPT - len(self.first))]
        self.count += len(text)
        return len(data)


class Printed(io.TextIOWrapper):
    """Takes what is printed: its beginning is kept, the rest counted."""

    def __init__(self) -> None:
        self._counted = _Counted()
        super().__init__(self._counted, encoding="utf-8", errors="backslashreplace", write_through=True)  # type: ignore[arg-type]

    def told(self, trials: list[Trial]) -> list[Trial]:
        """The trials with a remark of what was printed since the last ones; nothing is kept any longer."""
        its = self._counted
        count, first = its.count, " ".join(its.first.split())
        its.count, its.first = 0, ""
        if not count:
            return trials
        words = f"it printed {count:,} characters" + (f", beginning {first[:60]!r}" if first else "")
        return [replace(trial, timing={REMARK: words, **trial.timing}) for trial in trials]
