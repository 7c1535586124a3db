"""Run the trials of a plan: group by group, each stored as soon as it ends, none repeated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from probatum.arenas.predict.stacks import Choice
from probatum.bench import grouping, isolation
from probatum.bench.context import Context, Job
from probatum.bench.isolation import guarded, owner_of
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.records import PUT_OFF, as_stored
from probatum.bench.store import Store, Trial
from probatum.errors import InputError
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


class Elsewhere(Protocol):
    """Processes for techniques from outside the package."""

    def run(
        self, context: Context, groups: Iterable[list[Job]], listener: Listener
    ) -> Iterator[tuple[list[Job], list[Trial]]]: ...

    def probe(self, context: Context, block: list[Job]) -> Choice: ...

    def close(self) -> None: ...


class Here:
    """Runs one group after another in this process, those of techniques from outside in a process of their own.

    Args:
        apart: where these are run; None = here too.
    """

    def __init__(self, apart: Elsewhere | None = None) -> None:
        self._apart = apart

    def run(
        self, context: Context, groups: Iterable[list[Job]], listener: Listener
    ) -> Iterator[tuple[list[Job], list[Trial]]]:
        """Run every group in turn.

        Raises:
            InputError: a trial, which has failed, left something that cannot be put back in this process.
        """
        for group in groups:
            if self._apart is not None and owner_of(group):
                yield from self._apart.run(context, [group], listener)
                continue
            for job in group:
                listener.started(job)
            limit = context.limit.seconds()
            ran = guarded(context, group, listener.stepped, None if limit is None else limit * len(group))
            yield group, ran.trials
            if ran.lasting:
                raise InputError(
                    f"{group[0].arm.name} left behind what cannot be undone in this process ({ran.lasting}); what has ended "
                    "is stored, and the same command goes on"
                )

    def slots(self, context: Context) -> int:
        """One."""
        return 1

    def close(self) -> None:
        """End what runs apart."""
        if self._apart is not None:
            self._apart.close()


@dataclass
class Bench:
    """A study's context, the store, and whoever runs the trials."""

    context: Context
    store: Store
    listener: Listener = field(default_factory=Silent)
    executor: Executor = field(default_factory=Here)
    apart: Elsewhere | None = None

    def __post_init__(self) -> None:
        alone = isinstance(self.executor, Here)
        self.context.most_threads = (os.cpu_count() or 1) if alone else 1

    def groups(self, jobs: list[Job], planned: list[Job] | None = None) -> Iterator[list[Job]]:
        """The jobs in groups; whether seeds are trained as one is probed where their techniques may run."""
        return grouping.groups(self.context, jobs, self.store, self._probed, planned)

    def _probed(self, context: Context, block: list[Job]) -> Choice:
        if self.apart is None or not owner_of(block):
            return isolation.probed(context, block)
        try:
            return self.apart.probe(context, block)
        except InputError as problem:  # it shows again when the trials are run
            return Choice(False, reason=str(problem))

    def alone(self) -> Here:
        """Whoever runs what nothing else may run beside."""
        return Here(self.apart)

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
        for trial in known.values():
            self._seen(trial)
        self.listener.planned(jobs, len(known))
        for job in jobs:
            if job.key in known:
                self.listener.ended(job, known[job.key])
        pending = list({job.key: job for job in jobs if job.key not in known}.values())
        fits = [job for job in pending if job.kind != "timing"]
        wanted = list({job.key: job for job in jobs if job.kind != "timing"}.values())
        timings = [[job] for job in pending if job.kind == "timing"]
        work: list[tuple[Executor, Iterator[list[Job]]]] = [(self.executor, self.groups(fits, wanted))] if fits else []
        for executor, groups in (*work, (self.alone(), iter(timings))):
            known |= {job.key: trial for job, trial in self._ended(executor, groups)}
        return [known[job.key] for job in jobs]

    def run_within(
        self, blocks: Iterable[list[Job]], admits: Callable[[Sequence[Job]], bool], executor: Executor | None = None
    ) -> Iterator[tuple[Job, Trial]]:
        """Run blocks of jobs that the store lacks, one block after another, and yield each job when it has ended.

        Blocks are asked for, and their groups are admitted, when somebody is free to run them; what is not admitted is
        left out.
        """
        groups = (group for block in blocks for group in self.groups(block))
        return self._ended(executor or self.executor, (group for group in groups if admits(group)))

    def _ended(self, executor: Executor, groups: Iterable[list[Job]]) -> Iterator[tuple[Job, Trial]]:
        """Run groups, store what has ended, tell of it and yield it; what was put off is told and yielded alone."""
        for group, trials in executor.run(self.context, groups, self.listener):
            self.store.put_all([trial for trial in trials if trial.status != PUT_OFF])
            for job, trial in zip(group, map(as_stored, trials), strict=True):
                self._seen(trial)
                self.listener.ended(job, trial)
                yield job, trial

    def _seen(self, trial: Trial) -> None:
        self.context.limit.seen(trial, arena(self.plan.arena).BASELINE)

    def _job(self, arm: Arm, builtin: str, seed: int, kind: str) -> Job:
        plan = self.plan.trial(arm, builtin, seed, kind)
        return Job(key_of(plan), plan, arm, builtin, seed, kind)
