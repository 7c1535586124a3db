"""Run the trials of a plan: one after another, each stored as soon as it ends, none repeated."""

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

from probatum.arenas.base import Outcome, Work, arena
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.store import Store, Trial
from probatum.errors import InputError
from probatum.recipe import Arm
from probatum.spec import Data
from probatum.train.assemble import ModelFactory
from probatum.train.run import TrainingFailed


class Splits(Protocol):
    """What the bench needs of a dataset."""

    def prepare(self, seed: int, *, fractions: tuple[float, float, float]) -> Data: ...


@dataclass(frozen=True)
class Job:
    """One trial to be run: its key, its plan, who plays and on which seed."""

    key: str
    plan: dict[str, Any]
    arm: Arm
    builtin: str
    seed: int
    kind: str


class Listener(Protocol):
    """Hears what happens, for tables and progress bars."""

    def planned(self, jobs: list[Job], done: int) -> None: ...

    def started(self, job: Job) -> None: ...

    def stepped(self, step: int, steps: int) -> None: ...

    def ended(self, job: Job, trial: Trial) -> None: ...


class Silent:
    """A listener that says nothing."""

    def planned(self, jobs: list[Job], done: int) -> None:
        """Nothing."""

    def started(self, job: Job) -> None:
        """Nothing."""

    def stepped(self, step: int, steps: int) -> None:
        """Nothing."""

    def ended(self, job: Job, trial: Trial) -> None:
        """Nothing."""


@dataclass
class Bench:
    """A plan, the data and the store it runs on."""

    plan: StudyPlan
    dataset: Splits
    store: Store
    factory: ModelFactory | None = None
    listener: Listener = field(default_factory=Silent)
    _split: tuple[int, Data] | None = None

    def jobs(self, seeds: tuple[int, ...], arms: tuple[Arm, ...], *, with_references: bool) -> list[Job]:
        """The fits of these arms beside the baseline, seed by seed so that a study cut short is still paired."""
        baseline = arena(self.plan.arena).BASELINE
        players = [(Arm(baseline, self.plan.base), baseline), *((arm, "") for arm in arms)]
        if with_references:
            players += [(Arm(name, self.plan.base), name) for name in self.plan.references]
        return [self._job(arm, builtin, seed, "fit") for seed in seeds for arm, builtin in players]

    def timing_jobs(self, seeds: tuple[int, ...], arms: tuple[Arm, ...]) -> list[Job]:
        """The interleaved timings of these arms against the baseline."""
        return [self._job(arm, "", seed, "timing") for seed in seeds for arm in arms]

    def run(self, jobs: list[Job]) -> list[Trial]:
        """Run what the store lacks and return all trials, in the jobs' order."""
        known = {job.key: trial for job in jobs if (trial := self.store.get(job.key)) is not None}
        self.listener.planned(jobs, len(known))
        found = []
        for job in jobs:
            trial = known.get(job.key)
            if trial is None:
                self.listener.started(job)
                trial = self._run(job)
                self.store.put(trial)
                known[job.key] = trial
            self.listener.ended(job, trial)
            found.append(trial)
        return found

    def data(self, seed: int) -> Data:
        """The split of one seed; the last one is kept."""
        if self._split is None or self._split[0] != seed:
            self._split = (seed, self.dataset.prepare(seed, fractions=self.plan.data.fractions))
        return self._split[1]

    def work(self, arm: Arm, builtin: str, seed: int, progress: Callable[[int, int], None] | None = None) -> Work:
        """Everything one trial needs."""
        plan = self.plan
        return Work(
            arm,
            builtin,
            plan.base,
            self.data(seed),
            seed,
            factory=self.factory,
            equal_compute=plan.equal_compute,
            tune=plan.tune,
            primary=plan.primary,
            progress=progress,
        )

    def _job(self, arm: Arm, builtin: str, seed: int, kind: str) -> Job:
        plan = self.plan.trial(arm, builtin, seed, kind)
        return Job(key_of(plan), plan, arm, builtin, seed, kind)

    def _run(self, job: Job) -> Trial:
        start = time.perf_counter()
        status = "ok"
        record: dict[str, Any] = {}
        timing: dict[str, Any] = {}
        with _quiet(self.plan.threads):
            try:
                work = self.work(job.arm, job.builtin, job.seed, self.listener.stepped)
                if job.kind == "timing":
                    timing = {"measures": arena(self.plan.arena).timings(work)}
                else:
                    outcome = arena(self.plan.arena).trial(work)
                    record, timing = _record(outcome), {"measures": outcome.timing}
            except TrainingFailed as problem:
                status, record = "failed", {"reason": str(problem)}
            except InputError as problem:
                status, record = "not applicable", {"reason": str(problem)}
            except Exception as problem:  # one broken arm must not take the study with it; the reason is kept
                where = traceback.extract_tb(problem.__traceback__)[-1]
                reason = f"{type(problem).__name__}: {problem} ({where.name}, line {where.lineno})"
                status, record = "failed", {"reason": reason}
        timing["seconds"] = time.perf_counter() - start
        study = key_of(self.plan.describe())
        return Trial(job.key, study, job.arm.name, job.seed, job.kind, status, job.plan, record, timing)


def _record(outcome: Outcome) -> dict[str, Any]:
    return {"measures": outcome.measures, "digest": outcome.digest, "details": outcome.details}


@contextmanager
def _quiet(threads: int) -> Iterator[None]:
    """A fixed number of threads (torch's and those of BLAS) and no library warnings on the terminal; all put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings(), threadpool_limits(threads):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
