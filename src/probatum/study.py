"""A study from Python: what to try on which data, then run, verdicts, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from probatum import catalogue
from probatum.bench import limits, making
from probatum.bench.budget import order_of, run_budget
from probatum.bench.cluster import Cluster
from probatum.bench.context import Context, Job
from probatum.bench.execute import Bench, Executor, Here, Listener, Silent
from probatum.bench.hands import Hands, automatic
from probatum.bench.isolation import all_outsiders, outsiders
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.race_run import race_through
from probatum.bench.results import Results, winner_of
from probatum.bench.speed import measured
from probatum.bench.splits import Splits
from probatum.bench.store import Store
from probatum.bench.verdict import Verdict
from probatum.bench.workers import AUTO, Workers
from probatum.engine import Engine
from probatum.settings import FineTuning, Judging, Reading, Running, checked, fitting, with_target, with_test

if TYPE_CHECKING:
    import polars


class Study:
    """Baseline and techniques at equal budget over paired seeds on your data.

    Args:
        data: a dataset's name, a path (text files are for language modelling), a DataFrame, ``(X, y)`` arrays or tensors,
            or a `Dataset`.
        techniques: ids, with settings and joined by ``+`` if wanted: ``["tabm", "selu-snn+gradient-noise(eta=0.3)"]``;
            None = every technique of the predict arena that applies to the data.
        target: column to predict.
        test: test rows of your own, as the data are given; None = every seed tests another fifth of the data.
        model: the baseline network: an `nn.Module`, a function that builds one, or the id of a model in the catalogue.
        seeds: paired seeds, 6 or more for a verdict; None = 8, or at most 24 in a budget of time.
        epochs, steps, batch_size: the budget of every arm; None = what is usual for such data.
        primary: the measure that decides; None = accuracy for classes, rmse for reals, bits-per-character for language.
        margin: region of practical equivalence of the primary measure.
        tune: tuner trials for every arm, the baseline too.
        store: SQLite file (or database URL) in which trials are kept; None = in memory.
        reading: how data are read, `probatum.settings.Reading`.
        judging: what is compared and when it counts, `probatum.settings.Judging`.
        running: where and how it runs, `probatum.settings.Running`.
        fine_tuning: start every arm from one pretrained network, `probatum.settings.FineTuning`.
        rules: of the arena's contest, where it has any: `probatum.StreamRules` (continual learning) or
            `probatum.AcquireRules` (active learning); None = chosen by the data.
        progress: called as (step, steps) while a network is pretrained.

    Raises:
        InputError: anything above that cannot be used.

    Example:
        >>> study = Study("iris", ["encouraging-loss"], seeds=6, epochs=2, running=Running(timing=False))
        >>> len(study.run().trials) > 12
        True
    """

    def __init__(
        self,
        data: Any,
        techniques: Sequence[str] | None = None,
        *,
        target: str | None = None,
        test: Any = None,
        model: nn.Module | Callable[..., nn.Module] | str | None = None,
        seeds: int | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        primary: str | None = None,
        margin: float | None = None,
        tune: int = 0,
        store: str | Path | None = None,
        reading: Reading | None = None,
        judging: Judging | None = None,
        running: Running | None = None,
        fine_tuning: FineTuning | None = None,
        rules: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        begun, asked = time.monotonic(), checked(running, Running)
        training = (model, seeds, epochs, steps, batch_size, primary, margin, tune)
        wishes, engine = _wishes(techniques, training, judging, asked, fine_tuning, rules)
        self.running, chosen = wishes.running, wishes.techniques
        self.store = Store(fitting(":memory:" if store is None else store, str | Path, "store"))
        dataset, self._source = making.read(data, with_test(with_target(checked(reading, Reading), target), test))
        base = making.baseline(dataset, wishes)
        self.dataset, base = making.pretrained(dataset, base, wishes, self.store, engine, progress)
        splits = Splits(self.dataset, making.fractions(self.dataset, wishes.judging))
        plan = making.frozen(self.dataset, splits, base, wishes, engine)
        self._wishes = making.said(wishes, engine)
        context = Context(plan, splits, base.factory, self.running.stack if engine.stacks else "never")
        context.limit.given = limits.seconds(self.running)
        self._memory, self.apart = limits.memory(self.running), None
        if self.running.apart and all_outsiders(plan.base, plan.arms):
            self.apart = Workers(1, self._memory)
        auto, elsewhere = chosen is None, None if self.apart is None else self.apart.rehearse
        context = replace(context, plan=making.rehearsed(context, auto=auto, elsewhere=elsewhere))
        measure = measured if self.apart is None or not outsiders(plan.base) else self.apart.speed
        self.context = making.at_speed(
            context, self.running, self.store, auto=auto, elsewhere=elsewhere, measure=measure
        )
        self._results: Results | None = None
        workers = int(self.running.workers)
        self.hands = Hands(workers)
        if asked.workers == AUTO and workers > 1:
            self.hands = automatic(self.context, workers, elsewhere)
            self.running = replace(self.running, workers=self.hands.workers)
        self._spent = time.monotonic() - begun  # making the study is part of its budget of time

    @property
    def plan(self) -> StudyPlan:
        """What is run, frozen."""
        return self.context.plan

    @property
    def spent(self) -> float:
        """Seconds that making the study took, which are part of its budget of time until it has run."""
        return self._spent

    def run(self, listener: Listener | None = None) -> Results:
        """Run what the store lacks; safe to interrupt and to call again."""
        with closing(self.executor()) as executor, closing(self.apart or executor):
            self._results = self._run(self.bench(listener, executor))
        return self._results

    def _run(self, bench: Bench) -> Results:
        plan = self.plan
        self.store.tell(lambda line: bench.listener.said(line))
        begun = time.monotonic() - self._spent
        self._spent = 0.0
        first = plan.race[0] if plan.race else len(plan.seeds)  # a race takes what is context at its first look only
        jobs = bench.jobs(plan.seeds[:first], plan.arms, with_references=True)
        jobs += bench.jobs(plan.seeds[first:], plan.arms, with_references=False)
        timing_jobs = bench.timing_jobs(plan.seeds[:first], plan.arms) if self.running.timing else []
        confirm_jobs = bench.jobs(plan.confirm, plan.arms, with_references=False)
        keys = {"fit": jobs, "timing": timing_jobs, "confirm": confirm_jobs}
        summary = self.summary()
        self.store.put_study(
            key_of(plan.describe()),
            {
                "plan": plan.describe(),
                "summary": summary,
                "keys": {kind: [job.key for job in group] for kind, group in keys.items()},
            },
        )
        if not plan.minutes:
            return _in_full(bench, jobs, timing_jobs, summary)
        bench.listener.said(f"asking what {len(plan.arms)} arm(s) promise on these data")
        order = order_of((arm.name for arm in plan.arms), promise(self.dataset))
        found = run_budget(bench, order, begun=begun, timing=self.running.timing)
        return Results(plan, found.trials, found.timings, found.confirmation, summary)

    def summary(self) -> dict[str, Any]:
        """The dataset's summary, where it was read from if that can be repeated, and what was asked."""
        return {**self.dataset.summary(self.context.data(0)), "source": self._source, "wishes": self._wishes}

    def bench(self, listener: Listener | None = None, executor: Executor | None = None) -> Bench:
        """The context and the store as something that runs trials."""
        return Bench(self.context, self.store, listener or Silent(), executor or Here(self.apart), self.apart)

    def executor(self) -> Executor:
        """Who runs the trials, by `Running.workers` and `Running.on`; to be closed after use."""
        if self.running.on is not None:
            return Cluster(self.running.on, apart=self.running.apart)
        return self.hands.executor(self._memory, self.apart)

    @property
    def results(self) -> Results:
        """What `run` found (it is run now if it was not)."""
        return self._results if self._results is not None else self.run()

    def verdicts(self) -> list[Verdict]:
        """One verdict per arm and measure."""
        return self.results.verdicts()

    def frame(self) -> polars.DataFrame:
        """Every measured number: one row per arm, seed and measure."""
        import polars

        return polars.DataFrame(self.results.rows())

    def report(self, path: str | Path) -> Path:
        """Write the stand-alone HTML report and return its path."""
        from probatum.report.write import write_report

        return write_report(self.results, Path(path))

    def ship(self, arm: str, folder: str | Path) -> Path:
        """Train one arm for keeps and write it, its pipeline and its evidence; see `probatum.ship`."""
        from probatum.ship.place import check_target
        from probatum.ship.write import ship

        check_target(Path(folder))  # before the trials are run
        return ship(self.context, self.results, arm, Path(folder))

    def _repr_html_(self) -> str:
        from probatum.report.table import verdict_table_html

        return verdict_table_html(self.results)


def check(techniques: Sequence[str] | None, arguments: Mapping[str, Any]) -> None:
    """InputError where these arguments of `Study` cannot be used whatever the data are; nothing is read."""
    training = ("model", "seeds", "epochs", "steps", "batch_size", "primary", "margin")
    said = (*(arguments.get(name) for name in training), arguments.get("tune", 0))
    _wishes(techniques, said, *(arguments.get(name) for name in ("judging", "running", "fine_tuning", "rules")))
    with_target(checked(arguments.get("reading"), Reading), arguments.get("target"))


def _wishes(
    techniques: Any, training: Sequence[Any], judging: Any, running: Any, fine_tuning: Any, rules: Any
) -> tuple[making.Wishes, Engine]:
    """What is asked beside the data, checked, and the engine."""
    chosen = None if techniques is None else list(fitting(techniques, tuple[str, ...], "techniques"))
    where, engine = making.checked_running(checked(running, Running))
    others = (checked(judging, Judging), where, fine_tuning and checked(fine_tuning, FineTuning), rules)
    return making.Wishes(*(chosen, *training, *others)).checked(), engine


def _in_full(bench: Bench, jobs: list[Job], timing_jobs: list[Job], summary: dict[str, Any]) -> Results:
    """All trials of the plan, or those of its race, and the winner's on fresh seeds."""
    plan = bench.plan
    if plan.race:
        fits = race_through(plan, lambda seeds, arms, refs: bench.run(bench.jobs(seeds, arms, with_references=refs)))
        timings = tuple(bench.run(timing_jobs))
    else:
        trials = bench.run([*jobs, *timing_jobs])
        fits, timings = tuple(trials[: len(jobs)]), tuple(trials[len(jobs) :])
    results = Results(plan, fits, timings, (), summary)
    winner = winner_of(results.verdicts(), plan.primary, [arm.name for arm in plan.arms])
    if winner is None or not plan.confirm:
        return results
    arm = next(arm for arm in plan.arms if arm.name == winner)
    return replace(results, confirmation=tuple(bench.run(bench.jobs(plan.confirm, (arm,), with_references=False))))


def promise(dataset: Any) -> dict[str, float]:
    """What techniques promise on these data before any is tried, in margins, by facts, claims and the studies that ship here."""
    from probatum.advising import evidence
    from probatum.advising.facts import facts_of
    from probatum.advising.rank import ranked

    cards = {name: catalogue.card(name) for name in catalogue.names()}
    order = ranked(cards, facts_of(dataset), evidence.once(evidence.shipped()[0]), evidence.claims())
    return {one.technique: one.points for one in order}
