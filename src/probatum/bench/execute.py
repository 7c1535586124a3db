"""Run the trials of a plan: group by group, each stored as soon as it ends, none repeated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from probatum.bench import grouping
from probatum.bench.context import Context, Job
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.store import Store, Trial
from probatum.recipe import Arm
from probatum.rooms.arena import arena


class Listener(Protocol):
    """Hears what happens, for tables and progress bars; several jobs may be under way at once."""

    def planned(self, jobs: list[Job], done: int) -> None: ...

    def started(self, job: Job) -> None: ...

    def stepped(self, step: int, steps: int) -> None: ...

    def ended(self, job: Job, trial: Trial) -> None: ...

    def said(self, line: str) -> None: ...


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

    def said(self, line: str) -> None:
        """Nothing."""


class Executor(Protocol):
    """Who runs groups of jobs: this process, several processes, or a cluster. It writes nothing to the store."""

    def run(
        self, context: Context, groups: Iterable[list[Job]], listener: Listener
    ) -> Iterator[tuple[list[Job], list[Trial]]]:
        """Run every group, asking for the next when there is room; yield jobs with their trials once they have ended."""
        ...

    def slots(self, context: Context) -> int:
        """How many groups run at once."""
        ...

    def close(self) -> None:
        """Stop whatever is still running."""
        ...


class Here:
    """Runs one group after another in this process."""

    def run(
        self, context: Context, groups: Iterable[list[Job]], listener: Listener
    ) -> Iterator[tuple[list[Job], list[Trial]]]:
        """Run every group in turn."""
        for group in groups:
            for job in group:
                listener.started(job)
            yield group, grouping.run_group(context, group, listener.stepped)

    def slots(self, context: Context) -> int:
        """One."""
        return 1

    def close(self) -> None:
        """Nothing is left running."""


@dataclass
class Bench:
    """A study's context, the store, and whoever runs the trials."""

    context: Context
    store: Store
    listener: Listener = field(default_factory=Silent)
    executor: Executor = field(default_factory=Here)

    def __post_init__(self) -> None:
        alone = isinstance(self.executor, Here)
        self.context.most_threads = (os.cpu_count() or 1) if alone else 1

    @property
    def plan(self) -> StudyPlan:
        """The study."""
        return self.context.plan

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
        """Run what the store lacks and return all trials, in the jobs' order.

        Timings are run after everything else, one by one in this process, so that nothing else runs beside them.
        """
        known = {job.key: trial for job in jobs if (trial := self.store.get(job.key)) is not None}
        self.listener.planned(jobs, len(known))
        for job in jobs:
            if job.key in known:
                self.listener.ended(job, known[job.key])
        pending = list({job.key: job for job in jobs if job.key not in known}.values())
        fits = [job for job in pending if job.kind != "timing"]
        timings = [[job] for job in pending if job.kind == "timing"]
        work = [(self.executor, grouping.groups(self.context, fits, self.store))] if fits else []
        for executor, groups in (*work, (Here(), iter(timings))):
            known |= {job.key: trial for job, trial in self._ended(executor, groups)}
        return [known[job.key] for job in jobs]

    def run_within(
        self, blocks: Iterable[list[Job]], admits: Callable[[Sequence[Job]], bool], executor: Executor | None = None
    ) -> Iterator[tuple[Job, Trial]]:
        """Run blocks of jobs that the store lacks, one block after another, and yield each job when it has ended.

        Blocks are asked for, and their groups are admitted, when somebody is free to run them; what is not admitted is
        left out.
        """
        groups = (group for block in blocks for group in grouping.groups(self.context, block, self.store))
        return self._ended(executor or self.executor, (group for group in groups if admits(group)))

    def _ended(self, executor: Executor, groups: Iterable[list[Job]]) -> Iterator[tuple[Job, Trial]]:
        """Run groups, store what has ended, tell of it and yield it."""
        for group, trials in executor.run(self.context, groups, self.listener):
            self.store.put_all(trials)
            for job, trial in zip(group, trials, strict=True):
                self.listener.ended(job, trial)
                yield job, trial

    def _job(self, arm: Arm, builtin: str, seed: int, kind: str) -> Job:
        plan = self.plan.trial(arm, builtin, seed, kind)
        return Job(key_of(plan), plan, arm, builtin, seed, kind)
