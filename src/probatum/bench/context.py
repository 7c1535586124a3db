"""One context a study: the plan, the data, the network that is tried on, and every trial that comes of them.

It goes to other processes and machines as it is; nothing here knows of stores or processes.
"""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from probatum.arenas.predict.stacks import Choice
from probatum.bench.many_classes import compact
from probatum.bench.packed_rows import UnitRows, gather, pack
from probatum.bench.plain import plain, printable
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.records import PUT_OFF
from probatum.bench.splits import Splits
from probatum.bench.store import Trial
from probatum.errors import InputError
from probatum.files import no_room
from probatum.recipe import Arm
from probatum.rooms.arena import ModelFactory, Outcome, TrainingFailed, Work, arena
from probatum.spec import Data
from probatum.train.adapt import Adapted

Progress = Callable[[int, int], None]
"""Called as (step, steps) now and then."""
MOST_WORDS = 1000
"""Characters of what went wrong that are kept."""
LEAST_SECONDS, TIMES = 900.0, 100
"""What a trial may take where nothing is said: the longer of so many seconds, and so many times the baseline's."""


FORETOLD_SECONDS = 1.0
"""Seconds of a trial that foretell the rest; the first ones may go into loading."""


LONGER = 2.0
"""How much longer than it has taken a trial is taken to be of which no steps are known."""


class TimeUp(BaseException):
    """A trial has taken longer than it may; no technique catches it by catching every `Exception`."""


class PutOff(BaseException):
    """A trial would take longer than it is allowed to where others wait; `seconds` are what it would take in all.

    Args:
        seconds: these.
        passed: whether no steps foretold them: it has taken so many.
    """

    def __init__(self, seconds: float, *, passed: bool = False) -> None:
        words = "has taken" if passed else "would take"
        super().__init__(f"a trial {words} {seconds:.0f} s, so that the others come first")
        self.seconds = LONGER * seconds if passed else seconds


@dataclass
class Limit:
    """How long a trial may take.

    Attributes:
        given: seconds, by the user's word; None = generously more than the baseline takes.
        baseline: seconds of its longest trial so far; 0 = none has ended.
    """

    given: float | None = None
    baseline: float = 0.0

    def seen(self, trial: Trial, baseline: str) -> None:
        """A trial has ended, or was stored."""
        if trial.arm == baseline and trial.status == "ok" and trial.kind != "timing":
            self.baseline = max(self.baseline, float(trial.timing.get("seconds", 0.0)))

    def seconds(self) -> float | None:
        """None = nothing is known yet by which a limit could be set."""
        if self.given is not None:
            return self.given
        return max(LEAST_SECONDS, TIMES * self.baseline) if self.baseline else None


@dataclass(frozen=True)
class Job:
    """One trial to be run: its key, its plan, who plays, on which seed, and how it is stacked with its group's others.

    Attributes:
        allowance: seconds above which it is put off as soon as its first steps foretell them.
    """

    key: str
    plan: dict[str, Any]
    arm: Arm
    builtin: str
    seed: int
    kind: str
    stacking: Choice | None = None
    allowance: float = math.inf


@dataclass
class Context:
    """What all trials of a study need.

    Attributes:
        plan: the study.
        splits: its data, encoded once a seed.
        factory: builds the user's own network; None = the built-in one.
        stack: whether seeds of an arm are trained as one computation (`grouping.STACK`).
        most_threads: torch threads that a stack may have where it is the only thing that runs.
        key: the study's key; "" = worked out when it is first asked for.
        limit: how long a trial may take.
    """

    plan: StudyPlan
    splits: Splits
    factory: ModelFactory | None = None
    stack: str = "auto"
    most_threads: int = 1
    key: str = ""
    limit: Limit = field(default_factory=Limit)

    def data(self, seed: int) -> Data:
        """The split of one seed."""
        return self.splits.data(seed)

    def work(self, arm: Arm, builtin: str, seed: int, progress: Progress | None = None) -> Work:
        """Everything the arena needs for one trial."""
        factory = self.factory.playing(builtin) if isinstance(self.factory, Adapted) else self.factory
        return Work(arm, builtin, self.plan, self.data(seed), seed, factory, progress)

    def baseline(self, seed: int = 0) -> Work:
        """The baseline's trial of one seed."""
        name = arena(self.plan.arena).BASELINE
        return self.work(Arm(name, self.plan.base), name, seed)

    def study_key(self) -> str:
        """The study's key."""
        if not self.key:
            self.key = key_of(self.plan.describe())
        return self.key


def run_job(context: Context, job: Job, progress: Progress | None = None) -> Trial:
    """Run one trial; what goes wrong in it is part of what comes back."""
    start = time.perf_counter()
    progress = progress if math.isinf(job.allowance) else allowed(job.allowance, progress)
    with quiet(context.plan.threads):
        try:
            work = context.work(job.arm, job.builtin, job.seed, progress)
            if job.kind == "timing":
                outcome = Outcome({}, arena(context.plan.arena).timings(work))
            else:
                outcome = arena(context.plan.arena).trial(work)
            check_threads(context.plan.threads)
        except PutOff as problem:
            return put_off(context, job, problem)
        except (Exception, SystemExit, TimeUp) as problem:  # one broken arm must not take the study with it
            check_room(problem)
            return lost(context, job, *told(problem), seconds=time.perf_counter() - start)
    return ended(context, job, outcome, seconds=time.perf_counter() - start)


def allowed(seconds: float, progress: Progress | None = None) -> Progress:
    """A listener to steps that raises `PutOff` where all of them would take longer than so many seconds from now on."""
    begun = time.perf_counter()

    def heard(step: int, steps: int) -> None:
        passed = time.perf_counter() - begun
        if step and passed >= FORETOLD_SECONDS and passed * steps > seconds * step:
            raise PutOff(passed * steps / step)
        if progress is not None:
            progress(step, steps)

    return heard


def ended(context: Context, job: Job, outcome: Outcome, *, seconds: float) -> Trial:
    """The trial that a job became by going well; a failed one where it leaves what cannot be kept."""
    record: dict[str, Any] = {}
    if job.kind != "timing":
        record = {"measures": outcome.measures, "digest": outcome.digest, "details": compact(outcome.details)}
        if outcome.swapped:
            record["swapped"] = outcome.swapped
    timing = {"measures": outcome.timing, "seconds": seconds}
    try:
        record, timing = plain(record), plain(timing)
    except TypeError as problem:
        return lost(context, job, "failed", str(problem), seconds=seconds)
    return replace(_trial(context, job, "ok", record, timing), rows=_rows(context, job, outcome))


def _rows(context: Context, job: Job, outcome: Outcome) -> bytes:
    """What is kept of the rows that were tested; b"" where the arena gives none, or the data do not say which they are."""
    tested = _gathered(context, job, outcome.rows, "test")
    if tested is None:
        return b""
    return pack(tested, _gathered(context, job, outcome.swapped_rows, "valid"))


def _gathered(context: Context, job: Job, rows: Mapping[str, Any], part: str) -> UnitRows | None:
    units = context.splits.units(job.seed, part) if rows else None
    if units is None or any(len(values) != len(units[0]) for values in rows.values()):
        return None
    return gather(rows, *units)


def lost(context: Context, job: Job, status: str, reason: str, *, seconds: float) -> Trial:
    """The trial that a job became by not going well: `status` is failed or not applicable."""
    return _trial(context, job, status, {"reason": printable(reason)}, {"seconds": seconds})


def put_off(context: Context, job: Job, problem: PutOff) -> Trial:
    """What stands for a job that was put off."""
    return _trial(context, job, PUT_OFF, {"reason": str(problem)}, {"seconds": problem.seconds})


def check_room(problem: BaseException) -> None:
    """InputError where a trial failed because the disk is full: run again when there is room, it need not fail."""
    if said := no_room(problem):
        raise InputError(
            f"there is no room left for what a trial writes ({said}); what has ended is stored, and the same command goes on when "
            "there is"
        ) from problem


def check_threads(threads: int) -> None:
    """TrainingFailed where a trial has changed how many threads torch uses, which `quiet` would put back unseen."""
    if torch.get_num_threads() != threads:
        raise TrainingFailed(
            f"it changed what belongs to all trials: torch's number of threads, {threads} to {torch.get_num_threads()}"
        )


def told(problem: BaseException) -> tuple[str, str]:
    """The status and the reason that an exception raised in a trial stands for."""
    if isinstance(problem, TrainingFailed | TimeUp):
        return "failed", str(problem)
    if isinstance(problem, SystemExit):
        return "failed", f"it wanted to end the program (SystemExit: {problem})"
    if isinstance(problem, InputError):
        return "not applicable", str(problem)
    where = traceback.extract_tb(problem.__traceback__, limit=-1)[-1]
    words = " ".join(str(problem).split())
    words = words if len(words) <= MOST_WORDS else words[:MOST_WORDS] + " ..."
    return "failed", f"{type(problem).__name__}: {words} ({where.name}, line {where.lineno})"


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """A fixed number of threads (torch's and those of BLAS) and no library warnings on the terminal; all put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings(), threadpool_limits(threads):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)


def _trial(context: Context, job: Job, status: str, record: dict[str, Any], timing: dict[str, Any]) -> Trial:
    return Trial(job.key, context.study_key(), job.arm.name, job.seed, job.kind, status, job.plan, record, timing)
