"""One trial: which it is, what it needs, and how it is run; nothing here knows of stores or processes."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits

from probatum.arenas.predict.stacks import Choice
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.store import Trial
from probatum.errors import InputError
from probatum.recipe import Arm
from probatum.rooms.arena import Outcome, Work, arena
from probatum.spec import Data
from probatum.train.adapt import Adapted
from probatum.train.assemble import ModelFactory
from probatum.train.run import TrainingFailed

Progress = Callable[[int, int], None]
"""Called as (step, steps) now and then."""


class Splits(Protocol):
    """What the bench needs of a dataset."""

    def prepare(self, seed: int, *, fractions: tuple[float, float, float]) -> Data: ...


KEPT_BYTES = 2**29
"""Bytes of encoded splits that are kept for the next arm of the same seeds."""


@dataclass(frozen=True)
class Job:
    """One trial to be run: its key, its plan, who plays, on which seed, and how it is stacked with its group's others."""

    key: str
    plan: dict[str, Any]
    arm: Arm
    builtin: str
    seed: int
    kind: str
    together: Choice | None = None


@dataclass
class Setup:
    """Everything that trials need besides their jobs; it goes to other processes and machines as it is.

    Attributes:
        plan: the study.
        dataset: its data.
        factory: builds the user's own network; None = the built-in one.
        study: the study's key; "" = worked out when it is first asked for.
        stack: whether seeds of an arm are trained as one computation (`grouping.STACK`).
        most_threads: torch threads that a stack may have where it is the only thing that runs.
    """

    plan: StudyPlan
    dataset: Splits
    factory: ModelFactory | None = None
    study: str = ""
    stack: str = "auto"
    most_threads: int = 1
    _splits: dict[int, Data] = field(default_factory=dict, init=False, repr=False)

    def data(self, seed: int) -> Data:
        """The split of one seed; the last ones are kept, as many as fit."""
        found = self._splits.pop(seed, None)
        if found is None:
            found = self.dataset.prepare(seed, fractions=self.plan.data.fractions)
            while self._splits and (len(self._splits) + 1) * _size(found) > KEPT_BYTES:
                del self._splits[next(iter(self._splits))]
        self._splits[seed] = found
        return found

    def work(self, arm: Arm, builtin: str, seed: int, progress: Progress | None = None) -> Work:
        """Everything the arena needs for one trial."""
        plan = self.plan
        return Work(
            arm,
            builtin,
            plan.base,
            self.data(seed),
            seed,
            factory=self.factory.playing(builtin) if isinstance(self.factory, Adapted) else self.factory,
            equal_compute=plan.equal_compute,
            tune=plan.tune,
            primary=plan.primary,
            progress=progress,
            engine=plan.engine,
            contest=plan.contest,
        )

    def study_key(self) -> str:
        """The study's key."""
        if not self.study:
            self.study = key_of(self.plan.describe())
        return self.study


def run_job(setup: Setup, job: Job, progress: Progress | None = None) -> Trial:
    """Run one trial; what goes wrong in it is part of what comes back."""
    start = time.perf_counter()
    with quiet(setup.plan.threads):
        try:
            work = setup.work(job.arm, job.builtin, job.seed, progress)
            if job.kind == "timing":
                outcome = Outcome({}, arena(setup.plan.arena).timings(work))
            else:
                outcome = arena(setup.plan.arena).trial(work)
        except Exception as problem:  # one broken arm must not take the study with it; the reason is kept
            return lost(setup, job, *told(problem), seconds=time.perf_counter() - start)
    return ended(setup, job, outcome, seconds=time.perf_counter() - start)


def ended(setup: Setup, job: Job, outcome: Outcome, *, seconds: float) -> Trial:
    """The trial that a job became by going well."""
    record: dict[str, Any] = {}
    if job.kind != "timing":
        record = {"measures": outcome.measures, "digest": outcome.digest, "details": outcome.details}
    return _trial(setup, job, "ok", record, {"measures": outcome.timing, "seconds": seconds})


def lost(setup: Setup, job: Job, status: str, reason: str, *, seconds: float) -> Trial:
    """The trial that a job became by not going well: `status` is failed or not applicable."""
    return _trial(setup, job, status, {"reason": reason}, {"seconds": seconds})


def told(problem: Exception) -> tuple[str, str]:
    """The status and the reason that an exception raised in a trial stands for."""
    if isinstance(problem, TrainingFailed):
        return "failed", str(problem)
    if isinstance(problem, InputError):
        return "not applicable", str(problem)
    where = traceback.extract_tb(problem.__traceback__)[-1]
    return "failed", f"{type(problem).__name__}: {problem} ({where.name}, line {where.lineno})"


def _size(data: Data) -> int:
    """Bytes of a split's rows; more than is ever kept where they are streamed."""
    x = [part.x for part in (data.train, data.valid, data.test)]
    return sum(v.numel() * v.element_size() if isinstance(v, torch.Tensor) else KEPT_BYTES + 1 for v in x)


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


def _trial(setup: Setup, job: Job, status: str, record: dict[str, Any], timing: dict[str, Any]) -> Trial:
    return Trial(job.key, setup.study_key(), job.arm.name, job.seed, job.kind, status, job.plan, record, timing)
