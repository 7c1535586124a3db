"""Budgets of time: what is begun in which order and what is left out, by a clock that is made up; one small study for real."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from commands import told
from probatum.arenas.predict import fit as fitting
from probatum.bench import context as bench_context
from probatum.bench.budget import Budget, Found, confirmation, order_of, spend, whole
from probatum.bench.context import Context, Job, TimeUp, run_job
from probatum.bench.costs import Costs
from probatum.bench.execute import Bench, Listener, Silent
from probatum.bench.isolation import at_most, guarded
from probatum.bench.plan import DataPlan, StudyPlan, plan_from
from probatum.bench.race import Race
from probatum.bench.records import PUT_OFF
from probatum.bench.results import Results
from probatum.bench.statistics import paired
from probatum.bench.store import Store, Trial
from probatum.bench.stored import progress_of
from probatum.bench.stored import results_of as stored_results
from probatum.bench.time_words import before, clock_words, time_note
from probatum.bench.workers import Task, Workers
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe
from probatum.settings import Running
from probatum.study import Study

LOOKS = (6, 7, 8, 9, 10, 12)
FIRST_STEPS = 0.05
"""Share of a trial by which it is foretold."""
OPEN = [0.045, -0.005] * 6
"""Differences that leave an arm undecided at every look."""
LOSS = [-0.2 + 0.001 * (i % 3) for i in range(12)]
GAIN = [0.2 + 0.001 * (i % 3) for i in range(12)]


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def said(self, line: str) -> None:
        self.lines.append(line)


def plan_of(arms: Iterable[str], *, fresh: int = 8, references: tuple[str, ...] = ()) -> StudyPlan:
    data = DataPlan("made up", "0", "table", "classes", "y", 100, (0.6, 0.2, 0.2), True)
    return StudyPlan(
        arena="predict",
        data=data,
        base=Recipe(),
        arms=tuple(Arm(name, Recipe(), salt=name) for name in arms),
        references=references,
        seeds=tuple(range(LOOKS[-1])),
        confirm=tuple(range(1000, 1000 + fresh)),
        primary="accuracy",
        race=LOOKS,
        minutes=1.0,
    )


class Simulated:
    """Runs trials by a clock of its own; they take what is said, and differ from the baseline as is said (None = fails)."""

    def __init__(
        self,
        seconds: Mapping[str, float],
        differences: Mapping[str, Sequence[float | None]] | None = None,
        slots: int = 1,
        slow: Mapping[tuple[str, int], float] | None = None,
    ) -> None:
        self.seconds, self.differences, self.count, self.slow = seconds, differences or {}, slots, slow or {}
        self.now = 0.0
        self.begun: list[tuple[float, str, int, str]] = []
        self.put_off: list[str] = []

    def slots(self, context: Context) -> int:
        return self.count

    def close(self) -> None:
        return

    def run(
        self, context: Context, groups: Iterable[list[Job]], listener: Listener
    ) -> Iterator[tuple[list[Job], list[Trial]]]:
        source, flying = iter(groups), list[tuple[float, int, list[Job]]]()
        while True:
            while len(flying) < self.count and (group := next(source, None)) is not None:
                (job,) = group
                self.begun.append((self.now, job.arm.name, job.seed, job.kind))
                if self.takes(job) > job.allowance:
                    self.put_off.append(job.arm.name)
                taken = self.takes(job) * (FIRST_STEPS if self.takes(job) > job.allowance else 1.0)
                heappush(flying, (self.now + taken, len(self.begun), group))
            if not flying:
                return
            self.now, _, group = heappop(flying)
            yield group, [self.trial(job) for job in group]

    def takes(self, job: Job) -> float:
        return self.slow.get((job.arm.name, job.seed), self.seconds[job.arm.name])

    def trial(self, job: Job) -> Trial:
        if self.takes(job) > job.allowance:
            timing = {"seconds": self.takes(job)}
            return Trial(job.key, "", job.arm.name, job.seed, job.kind, PUT_OFF, job.plan, {}, timing)
        given = self.differences.get(job.arm.name, OPEN)
        value = 0.0 if job.builtin else given[job.seed % len(given)]
        record: dict[str, Any] = {"reason": "on purpose"}
        if value is not None:
            record = {"measures": {"accuracy": 0.5 + 0.001 * (job.seed % 7) + value}}
        timing = {"seconds": self.takes(job), "measures": {"latency-ratio": 1.1} if job.kind == "timing" else {}}
        status = "failed" if value is None else "ok"
        return Trial(job.key, "", job.arm.name, job.seed, job.kind, status, job.plan, record, timing)

    def seeds(self, kind: str = "fit") -> dict[str, list[int]]:
        """Seeds begun, by arm, those of the screen alone."""
        found: dict[str, list[int]] = {}
        for _, name, seed, what in self.begun:
            if what == kind and seed < 1000:
                found.setdefault(name, []).append(seed)
        return found


def budget_of(
    executor: Simulated,
    end: float,
    *,
    kept: float = 0.0,
    order: Sequence[str] = (),
    store: Store | None = None,
    **terms: Any,
) -> Budget:
    names = order or [name for name in executor.seconds if name not in ("baseline", *terms.get("references", ()))]
    plan = plan_of(sorted(names), **terms)
    context = Context(plan, splits=None, stack="never")  # type: ignore[arg-type]
    bench = Bench(context, store or Store(":memory:"), terms.pop("listener", Silent()), executor)
    bench.alone = lambda: executor  # type: ignore[method-assign, assignment, return-value]
    return Budget(bench, tuple(names), end, kept, lambda: executor.now, executor.count)


def results_of(budget: Budget, found: Found) -> Results:
    return Results(budget.plan, found.trials, found.timings, found.confirmation, {})


def test_the_order_of_promise() -> None:
    points = {"b": 2.0, "c": 1.0, "d": -1.0}
    assert order_of(["a", "b(x=1)", "c", "c + b", "d", "e"], points) == ("c + b", "b(x=1)", "c", "a", "e", "d")
    assert order_of(["z", "y", "x"], {}) == ("z", "y", "x"), "without advice they stay as they come"


def test_costs_of_what_was_not_measured_are_the_mean_of_the_others() -> None:
    costs = Costs()
    assert (costs.of("a"), bool(costs)) == (0.0, False)
    for arm, seconds in (("a", 1.0), ("a", 3.0), ("b", 6.0)):
        costs.add(arm, seconds)
    assert (costs.of("a"), costs.of("b"), costs.of("c")) == (2.0, 6.0, 4.0)
    assert costs.of("c") == 4.0
    usual = Costs("b")
    usual.add("a", 1.0)
    assert usual.of("c") == 1.0
    usual.add("b", 5.0)
    assert usual.of("c") == 5.0, "an arm that has not run is taken for a usual one"
    assert costs.knows("a")
    assert not costs.knows("c")


@pytest.mark.parametrize("slots", [1, 3])
def test_six_seeds_for_all_before_any_has_more(slots: int) -> None:
    arms = ["d", "b", "a", "c"]
    runs = Simulated(dict.fromkeys(["baseline", *arms], 1.0), slots=slots)
    spend(budget_of(runs, 1000.0, order=arms), timing=False)
    firsts = [name for _, name, seed, _ in runs.begun if seed == 0]
    assert firsts == ["baseline", *arms], "arms begin in the order of promise"
    levels = [0 if seed == 0 else 1 if seed < 2 else 2 if seed < 6 else 3 for _, _, seed, _ in runs.begun]
    assert levels == sorted(levels)
    assert all(seeds == list(range(12)) for seeds in map(sorted, runs.seeds().values())), "time for all of it"


def test_what_is_decided_hopeless_or_broken_stops() -> None:
    differences = {
        "loses": LOSS,
        "same": [1e-4, -1e-4] * 6,
        "open": OPEN,
        "breaks": [None] * 12,
        "wild": [0.5, -0.5] * 6,
    }
    runs = Simulated(dict.fromkeys(["baseline", *differences], 1.0), differences)
    budget = budget_of(runs, 1000.0)
    results = results_of(budget, spend(budget, timing=False))
    ran = {name: len(seeds) for name, seeds in runs.seeds().items()}
    assert (ran["loses"], ran["same"], ran["breaks"]) == (6, 6, 2)
    words = {v.arm: v.word for v in results.primary_verdicts()}
    assert (words["loses"], words["same"], words["breaks"]) == ("hurts", "no material difference", "failed")
    assert results.no_time() == {}
    assert ran["wild"] < 12, "what more seeds can hardly decide is given up"


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("end", [3.0, 17.0, 40.0, 90.0])
def test_nothing_is_begun_that_would_end_too_late(slots: int, end: float) -> None:
    seconds = {"baseline": 1.0, "a": 2.0, "b": 0.5, "c": 3.0, "d": 1.0}
    runs = Simulated(seconds, slots=slots)
    spend(budget_of(runs, end), timing=True)
    known: set[str] = set()
    for begun, name, _, kind in runs.begun:
        if kind == "fit" and name in known:
            assert begun + seconds[name] <= end
        known.add(name)
    assert runs.now <= end + max(seconds.values())
    assert runs.begun[0][1] == "baseline"
    used = sum(seconds[name] for _, name, _, kind in runs.begun if kind == "fit")
    if end == 90.0:
        assert used >= 0.9 * min(slots * end, 12 * sum(seconds.values())), "the time is used"


def test_one_misjudged_trial_is_all_that_is_overshot() -> None:
    runs = Simulated({"baseline": 1.0, "a": 1.0, "b": 1.0}, slow={("a", 4): 100.0})
    spend(budget_of(runs, 20.0), timing=True)
    late = [(name, seed) for begun, name, seed, _ in runs.begun if begun >= 20.0]
    assert late == []
    assert runs.now < 20.0 + 100.0


def test_what_an_arm_costs_that_was_never_tried_is_feared_to_be_the_most() -> None:
    runs = Simulated({"baseline": 1.0, "long": 9.0, "new": 9.0})
    spend(budget_of(runs, 18.5, order=["long", "new"]), timing=False)
    assert runs.put_off == ["long", "new"]
    assert [seed for _, name, seed, _ in runs.begun if name == "long"] == [0, 0], "a pair for the next time"
    assert runs.now <= 18.5, "after ten seconds the new arm is not begun for what the baseline takes"


def test_where_time_is_short_promise_per_second_goes_first() -> None:
    seconds = {"baseline": 1.0, "dear": 20.0, "good": 2.0, "cheap": 1.0, "late": 2.0}
    runs = Simulated(seconds)
    budget = budget_of(runs, 60.0, order=["dear", "good", "cheap", "late"])
    found = spend(budget, timing=False)
    results = results_of(budget, found)
    ran = {name: len(seeds) for name, seeds in runs.seeds().items()}
    assert ran["dear"] == 1, "its first trial told that six of it are too dear"
    assert min(ran["good"], ran["cheap"]) >= 6
    assert set(results.no_time()) == {"dear"} | ({"late"} if ran["late"] < 6 else set())
    assert "no time: " in results.notes()["dear"]
    assert "dear" in results.race_note()
    words = {v.arm: (v.word, v.n) for v in results.primary_verdicts()}
    assert words["dear"][0] == "undecided"
    assert all(count <= 2 or count >= 6 for count in ran.values()), "no block is begun that cannot end"
    assert json.loads(json.dumps(results.as_json(), allow_nan=False))["plan"]["minutes"] == 1.0


@pytest.mark.parametrize("slots", [1, 2])
def test_a_first_trial_that_would_take_far_longer_than_others_waits(slots: int) -> None:
    seconds = {"baseline": 1.0, "dear": 40.0, **{f"a{i}": 1.0 for i in range(12)}}
    names = [name for name in seconds if name != "baseline"]
    runs = Simulated(seconds, dict.fromkeys(names, LOSS), slots=slots)
    store = Store(":memory:")
    results = results_of(budget := budget_of(runs, 90.0 / slots, order=names, store=store), spend(budget, timing=False))
    assert runs.put_off == ["dear"]
    assert set(results.no_time()) == {"dear"}, "which took two seconds of the others' time"
    assert "no time" in results.notes()["dear"]
    held = budget.bench.jobs(budget.plan.seeds, budget.plan.arms, with_references=False)
    assert not any(store.has(job.key) for job in held if job.arm.name == "dear"), "what was put off is no trial"
    # with more time the others come first, and then it has its turn
    runs = Simulated(seconds, dict.fromkeys(names, LOSS), slots=slots)
    spend(budget_of(runs, 600.0 / slots, order=names), timing=False)
    assert runs.seeds()["dear"] == [0, 0, 1, 2, 3, 4, 5]
    second = [begun for begun, name, _, _ in runs.begun if name == "dear"][1]
    assert all(begun <= second for begun, name, seed, _ in runs.begun if name != "dear" and seed == 0)


def test_an_arm_alone_is_never_put_off() -> None:
    runs = Simulated({"baseline": 1.0, "dear": 20.0})
    spend(budget_of(runs, 200.0), timing=False)
    assert runs.put_off == []
    assert runs.seeds()["dear"] == list(range(len(runs.seeds()["dear"])))


def test_nobody_goes_further_while_another_can_be_brought_to_six_seeds() -> None:
    """Of arms that are decided early, or put off, time is left that was not there when the round began."""
    seconds = {"baseline": 1.0, "open": 1.0, "dear": 30.0, **{f"a{i}": 2.0 for i in range(8)}}
    names = [name for name in seconds if name != "baseline"]
    runs = Simulated(seconds, {name: LOSS for name in names if name != "open"})
    results = results_of(budget := budget_of(runs, 125.0, order=names), spend(budget, timing=False))
    assert set(results.no_time()) == {"dear"}
    further = [begun for begun, name, seed, _ in runs.begun if seed >= 6]
    assert all(begun <= min(further, default=math.inf) for begun, name, seed, _ in runs.begun if seed < 6)


def test_a_trial_tells_by_its_first_steps_what_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 2.0, 6.0])
    monkeypatch.setattr(bench_context.time, "perf_counter", lambda: next(clock))
    told: list[tuple[int, int]] = []
    heard = bench_context.allowed(50.0, lambda *step: told.append(step))
    heard(1, 200)  # 100 s, but half a second foretells nothing
    heard(10, 200)
    with pytest.raises(bench_context.PutOff) as found:
        heard(20, 200)
    assert found.value.seconds == 60.0
    assert told == [(1, 200), (10, 200)]


def test_a_real_trial_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_context, "FORETOLD_SECONDS", 0.0)
    study = Study("wine", ["gradient-noise"], steps=20, seeds=6, running=Running(timing=False, workers=1))
    bench = study.bench()
    job = replace(bench.jobs((0,), study.plan.arms, with_references=False)[1], allowance=1e-6)
    trial = run_job(study.context, job)
    assert (trial.status, trial.arm) == (PUT_OFF, "gradient-noise")
    assert trial.timing["seconds"] > 0
    assert [one.status for _, one in bench.run_within([[job]], lambda group: True)] == [PUT_OFF]
    assert not study.store.has(job.key)
    assert run_job(study.context, replace(job, allowance=1e6)).status == "ok"


def test_a_learner_is_put_off_once_its_allowance_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learners tell no steps."""
    study = Study("breast-cancer", ["gbnn"], seeds=6, running=Running(timing=False, workers=1))
    monkeypatch.setattr(fitting, "fit_learner", lambda *terms: time.sleep(60))
    job = replace(study.bench().jobs((0,), study.plan.arms, with_references=False)[1], allowance=0.5)
    (trial,) = guarded(study.context, [job]).trials
    assert trial.status == PUT_OFF
    assert trial.timing["seconds"] == 1.0
    # one that is stopped before it could put back what it had changed has not failed
    monkeypatch.setattr(fitting, "fit_learner", lambda *terms: (torch.set_default_dtype(torch.float64), time.sleep(60)))
    ran = guarded(study.context, [replace(job, allowance=0.2)])
    assert (ran.trials[0].status, ran.touched) == (PUT_OFF, True)
    assert torch.get_default_dtype() == torch.float32
    # what a trial may take at all holds whatever it is allowed
    monkeypatch.setattr(fitting, "fit_learner", lambda *terms: time.sleep(60))
    (trial,) = guarded(study.context, [replace(job, allowance=50.0)], limit=0.2).trials
    assert (trial.status, trial.record["reason"]) == ("failed", "it took longer than 0.2 s; --trial-minutes gives more")


def test_a_worker_that_hears_no_alarm_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("wine", ["gradient-noise"], seeds=6, running=Running(timing=False, workers=1))
    job = replace(study.bench().jobs((0,), study.plan.arms, with_references=False)[1], allowance=2.0)
    workers, ended = Workers(1), list[str]()
    worker = SimpleNamespace(task=Task([job], begun=time.monotonic() - 5.0), kill=lambda: ended.append("worker"))
    workers._workers = [worker]  # type: ignore[list-item]
    assert [*workers._overdue(study.context)] == []
    worker.task.begun -= 3.0
    ((jobs, (trial,)),) = workers._overdue(study.context)
    assert (jobs, trial.status, ended, workers._workers) == ([job], PUT_OFF, ["worker"], [])
    assert trial.timing["seconds"] == pytest.approx(2 * 8.0, abs=1.0)


def test_nothing_is_probed_when_the_time_is_up() -> None:
    runs = Simulated({"baseline": 1.0, **{f"a{i}": 1.0 for i in range(9)}})
    budget = budget_of(runs, 25.0)
    asked: list[float] = []
    groups = budget.bench.groups

    def probing(jobs: list[Job], planned: list[Job] | None = None) -> Iterator[list[Job]]:
        asked.append(runs.now)
        return groups(jobs, planned)

    budget.bench.groups = probing  # type: ignore[method-assign]
    spend(budget, timing=True)
    assert asked
    assert all(now + 1.0 <= 25.0 for now in asked)


def test_a_limit_within_a_limit() -> None:
    def both() -> None:
        with pytest.raises(bench_context.PutOff), at_most(0.02, bench_context.PutOff(0.02, passed=True)):
            time.sleep(60)
        time.sleep(60)

    with pytest.raises(TimeUp), at_most(0.3):
        both()


def test_dear_arms_are_not_even_tried_all() -> None:
    names = [f"a{i:02d}" for i in range(30)]
    runs = Simulated(dict.fromkeys(["baseline", *names], 10.0))
    budget = budget_of(runs, 300.0, order=names)
    found = spend(budget, timing=False)
    ran = {name: len(seeds) for name, seeds in runs.seeds().items()}
    assert [ran.get(name, 0) for name in names[:4]] == [6, 6, 6, 6], "300 seconds are 30 trials: 5 times 6"
    untried = [name for name in names if name not in ran]
    assert len(untried) >= 24
    results = results_of(budget, found)
    assert set(results.no_time()) == set(names[4:])
    verdicts = {v.arm: v for v in results.primary_verdicts()}
    assert (verdicts["a29"].word, verdicts["a29"].n, verdicts["a29"].note) == ("undecided", 0, "not begun")


def test_the_same_again_goes_on_where_it_was() -> None:
    seconds = {"baseline": 1.0, "a": 2.0, "b": 2.0, "c": 2.0}
    store = Store(":memory:")
    counts = []
    begun: list[tuple[str, int]] = []
    for _ in range(4):
        runs = Simulated(seconds)
        budget = budget_of(runs, 25.0, store=store)
        found = spend(budget, timing=False)
        counts.append(len(found.trials))
        begun += [(name, seed) for _, name, seed, _ in runs.begun]
        assert runs.now <= 25.0
    assert len(set(begun)) == len(begun), "nothing is run twice"
    assert counts == sorted(counts)
    assert counts[-1] == 48, "in the end all is there"
    assert not results_of(budget, found).no_time()


def test_a_way_that_is_longer_than_the_time_is_gone_in_several_goes() -> None:
    store, counts = Store(":memory:"), []
    for _ in range(3):
        runs = Simulated({"baseline": 3.0, "a": 3.0})
        budget = budget_of(runs, 20.0, store=store)
        found = spend(budget, timing=False)
        counts.append((len(runs.begun), sum(trial.arm == "a" for trial in found.trials)))
    assert counts[0][0] == counts[1][0] == 6, "20 seconds hold six trials"
    assert counts[1][1] == 6, "after twelve there is a verdict"
    assert results_of(budget, found).no_time() == {}


def test_time_is_kept_for_the_winner() -> None:
    seconds = {"baseline": 1.0, "wins": 1.0, "open": 1.0, "more": 1.0}
    runs = Simulated(seconds, {"wins": GAIN})
    budget = budget_of(runs, 47.0, kept=20.0)
    found = spend(budget, timing=False)
    fresh = [(name, seed) for _, name, seed, _ in runs.begun if seed >= 1000]
    assert len(fresh) == 16
    assert {name for name, _ in fresh} == {"baseline", "wins"}
    results = results_of(budget, found)
    confirmed = results.confirmed()
    assert confirmed is not None
    assert (confirmed.word, confirmed.n) == ("helps", 8)
    assert runs.now <= 47.0
    first = next(begun for begun, _, seed, _ in runs.begun if seed >= 1000)
    assert first <= 47.0 - 16.0 + 1e-9
    assert "confirmed on 8 fresh seeds" in results.answer()


def test_what_was_kept_and_is_not_needed_is_used() -> None:
    runs = Simulated({"baseline": 1.0, "open": 1.0})
    spend(budget_of(runs, 24.0, kept=10.0), timing=False)
    assert runs.now == 24.0
    assert len(runs.begun) == 24


def test_a_confirmation_that_is_not_complete_is_none() -> None:
    runs = Simulated({"baseline": 1.0, "wins": 1.0}, {"wins": GAIN})
    store = Store(":memory:")
    budget = budget_of(runs, 16.0, kept=3.0, store=store)
    results = results_of(budget, spend(budget, timing=False))
    assert results.confirmed() is None
    assert "No time was left to confirm" in results.race_note()
    begun = sum(seed >= 1000 for _, _, seed, _ in runs.begun)
    assert 0 < begun < 16, "what time there is goes into it, for the next time"
    again = Simulated({"baseline": 1.0, "wins": 1.0}, {"wins": GAIN})
    budget = budget_of(again, 16.0, kept=3.0, store=store)
    results = results_of(budget, spend(budget, timing=False))
    assert sum(seed >= 1000 for _, _, seed, _ in again.begun) == 16 - begun
    assert results.confirmed() is not None
    assert "No time was left" not in results.race_note()
    assert confirmation(budget.plan, budget.fresh.values(), None) == ()


def test_references_and_timings_come_when_six_seeds_are_there_and_all_else_is_done() -> None:
    runs = Simulated({"baseline": 1.0, "a": 1.0, "loses": 1.0, "reference": 0.5}, {"a": GAIN, "loses": LOSS})
    budget = budget_of(runs, 200.0, kept=30.0, references=("reference",))
    found = spend(budget, timing=True)
    kinds = [(kind, name) for _, name, _, kind in runs.begun]
    assert runs.seeds()["reference"] == list(range(6))
    assert kinds.index(("fit", "reference")) > max(
        i for i, (_, name, seed, _) in enumerate(runs.begun) if (name, seed, kinds[i][0]) == ("loses", 5, "fit")
    )
    timed = [name for kind, name in kinds if kind == "timing"]
    assert timed == ["a"] * 6 + ["loses"] * 6, "those that help are timed first"
    assert kinds[-12:] == [("timing", name) for name in timed]
    assert len(found.timings) == 12


def slow(store: Store, now: float = 0.0) -> tuple[Simulated, Results, list[str]]:
    """A run of 30 seconds, of which so many are gone when it begins, where a trial takes 5, and references 1."""

    heard = Heard()
    runs = Simulated({"baseline": 5.0, "first": 5.0, "second": 5.0, "reference": 1.0})
    runs.now = now
    plan = plan_of(["first", "second"], references=("reference",))
    bench = Bench(Context(plan, None, stack="never"), store, heard, runs)  # type: ignore[arg-type]
    budget = Budget(bench, ("first", "second"), 30.0, 6.0, lambda: runs.now, 1)
    return runs, results_of(budget, spend(budget, timing=False)), heard.lines


def test_where_no_arm_can_come_to_six_seeds_the_first_is_begun_and_no_reference() -> None:
    store = Store(":memory:")
    runs, results, (told_after,) = slow(store)
    assert runs.seeds() == {"baseline": [0, 1, 2, 3], "first": [0, 1]}, "pairs, and what else fits counts later"
    assert runs.now <= 30.0
    assert "No arm comes to 6 seeds in the 0:19 left: first with the baseline would take about 0:55." in told_after
    assert "0 arm(s)" not in told_after
    assert results.race_note().startswith("1 minute at a time: 4 trials of the baseline and the arms count.")
    runs, results, _ = slow(store)
    assert "first" in runs.seeds()
    for _ in range(3):
        runs, results, _ = slow(store)
    assert "first" not in results.no_time(), "it is judged in the end"


@pytest.mark.parametrize("now", [28.0, 45.0])
def test_each_run_begins_something_of_an_arm_even_where_starting_took_all_the_time(now: float) -> None:
    store = Store(":memory:")
    for seed in range(6):
        runs, results, _ = slow(store, now)
        assert runs.seeds() == {"baseline": [seed], "first": [seed]}
    assert set(results.no_time()) == {"second"}
    runs, results, _ = slow(store, now)
    assert "second" in runs.seeds()


def test_an_arm_put_off_comes_further_all_the_same() -> None:
    """Put off at its first steps in every run, it would never have a trial where the time is too short for one."""
    store, seconds = Store(":memory:"), {"baseline": 0.5, "dear": 100.0, "long": 7.0}
    for trials in range(1, 4):
        runs = Simulated(seconds, slots=2)
        budget = budget_of(runs, 3.0, order=["dear", "long"], store=store)
        spend(budget, timing=False)
        assert sum(name != "baseline" for name, _ in budget.trials) == trials
    assert budget.seeds("long") + budget.seeds("dear") == 3


def test_what_nobody_knows_is_no_surprise_at_the_end() -> None:
    """Six of the long arm never fit, so that nothing tells what one takes; what is left goes into one, if it fits."""
    runs = Simulated({"baseline": 1.0, "short": 0.5, "long": 7.0})
    spend(budget_of(runs, 10.0, order=["short", "long"]), timing=False)
    assert runs.seeds()["short"] == [0, 1, 2, 3, 4, 5]
    assert runs.put_off == ["long"]
    assert runs.now <= 10.0


def test_references_take_no_longer_than_there_is_time() -> None:
    runs = Simulated({"baseline": 1.0, "a": 1.0, "reference": 300.0}, {"a": LOSS})
    spend(budget_of(runs, 60.0, references=("reference",)), timing=False)
    assert runs.put_off == ["reference"], "its other seeds are then not begun"
    assert runs.now <= 60.0


def test_many_hands_give_no_trial_more_than_there_is() -> None:
    runs = Simulated({"baseline": 1.0, "dear": 70.0}, slots=8)
    budget = budget_of(runs, 60.0)
    assert budget.allowance("dear") == 60.0, "an eighth of six times eight would be 80"
    spend(budget, timing=False)
    assert set(runs.put_off) == {"dear"}


def test_time_is_used_where_all_have_come_to_the_first_look() -> None:
    """From 10 seeds two pairs more are the next look, for which there is no time; what fits counts in the next run."""
    spend(budget_of(runs := Simulated({"baseline": 1.0, "a": 1.0}), 22.5), timing=False)
    assert len(runs.begun) == runs.now == 22.0


def test_references_wait_for_a_verdict() -> None:
    runs = Simulated({"baseline": 1.0, "a": 1.0, "b": 9.0, "reference": 1.0})
    spend(budget_of(runs, 40.0, order=["a", "b"], references=("reference",)), timing=False)
    names = [name for _, name, _, _ in runs.begun]
    assert names.index("reference") > max(i for i, name in enumerate(names[: names.index("reference")]) if name == "a")
    assert names[: names.index("reference")].count("a") == 6


def test_words_of_a_budget_agree_with_their_numbers() -> None:
    plan = plan_of(["a"])
    one = time_note(plan, {"baseline": 1, "a": 0}, {"a": "no time"}, confirmed=True)
    assert one.startswith("1 minute at a time: 1 trial of the baseline and the arms counts.")
    assert one.endswith("No arm has a trial that counts: give more minutes.")
    assert "goes on" not in one
    assert time_note(plan, {"baseline": 6, "a": 6}, {}, confirmed=True).endswith("The same command goes on from here.")
    assert not any("Reading" in line for line in before(plan, 10.0, 12.0))
    assert before(plan, 45.0, 12.0)[-1].startswith(
        "Reading and rehearsing took 0:45 of the 1:00, as it will every time; 0:15 are left"
    )
    assert "as far as the time allows" in before(plan, 45.0, 12.0)[0]


def test_only_whole_looks_count_and_hold_whenever_one_stops() -> None:
    plan = plan_of(["a", "b"])
    made = Simulated({})
    values = {"a": [0.05 + 0.01 * math.sin(i) for i in range(12)], "b": OPEN}

    def trials(name: str, seeds: Iterable[int]) -> list[Trial]:
        made.differences = values
        arm = Arm(name, Recipe())
        jobs = [Job(f"{name}{s}", {}, arm, "baseline" * (name == "baseline"), s, "fit") for s in seeds]
        made.seconds = {name: 1.0}
        return [made.trial(job) for job in jobs]

    held = [*trials("baseline", range(12)), *trials("a", [*range(10), 11]), *trials("b", [0, 1, 2, 4])]
    counted = whole(plan, held)
    by_arm = {name: sorted(t.seed for t in counted if t.arm == name) for name in ("baseline", "a", "b")}
    assert by_arm == {"baseline": list(range(10)), "a": list(range(10)), "b": [0, 1, 2]}
    held.remove(next(t for t in held if t.arm == "a" and t.seed == 9))
    assert sum(t.arm == "a" for t in whole(plan, held)) == 9
    verdict = next(v for v in Results(plan, counted, (), (), {}).verdicts() if v.arm == "a")
    race, looks = Race(LOOKS, None), [look for look in LOOKS if look <= 10]
    nominal = np.array([paired(values["a"][:n], test_fraction_ratio=None).p for n in looks])
    assert verdict.p == pytest.approx(race.p_values(nominal)[-1], rel=1e-6)
    assert verdict.n == 10
    half = (verdict.high - verdict.low) / 2
    plain = paired(values["a"][:10], test_fraction_ratio=None, confidence=float(race.levels()[len(looks) - 1]))
    assert half == pytest.approx((plain.high - plain.low) / 2)


def test_many_hands_skip_looks_that_would_leave_them_idle() -> None:
    one, many = (Simulated({"baseline": 1.0, "a": 1.0}, slots=n) for n in (1, 12))
    for runs in (one, many):
        spend(budget_of(runs, 100.0, fresh=0), timing=False)
    assert one.now == 24.0
    assert many.now == 4.0, "one, two, six seeds, then the other six at once"


def test_an_arm_cheaper_than_the_baseline_never_runs_ahead_of_it() -> None:
    store = Store(":memory:")
    for run in range(6):
        runs = Simulated({"baseline": 5.0, "a": 0.5})
        budget = budget_of(runs, 10.0, order=["a"], store=store)
        spend(budget, timing=False)
        assert runs.now <= 10.0 + 5.5, f"run {run}: at most one pair is begun that does not fit"
        assert budget.seeds("a") <= budget.seeds("baseline")
    assert budget.seeds("a") >= 6


def test_what_is_told_after_the_pilot() -> None:
    heard = Heard()
    runs = Simulated({"baseline": 1.0, "a": 2.0, "b": 30.0})
    plan = plan_of(["a", "b"])
    bench = Bench(Context(plan, None, stack="never"), Store(":memory:"), heard, runs)  # type: ignore[arg-type]
    spend(Budget(bench, ("a", "b"), 60.0, 0.0, lambda: runs.now, 1), timing=False)
    told_after = heard.lines[0]
    assert "baseline 1, a 2, b 30" in told_after
    assert "1 arm comes to 6 seeds in about 0:12; 0:52 are left" in told_after, "4 seeds each of 1 and 2 seconds"
    assert told_after.endswith("No time: b.")
    assert clock_words(125.4) == "2:05"


def test_the_plan_says_the_minutes() -> None:
    study = Study("iris", ["encouraging-loss"], steps=4, running=Running(minutes=2.5))
    plan = study.plan
    assert (plan.minutes, plan.race[0], len(plan.seeds), len(plan.confirm)) == (2.5, 6, 24, 8)
    assert plan_from(plan.describe()).minutes == 2.5
    assert "minutes" not in Study("iris", ["encouraging-loss"], steps=4).plan.describe()
    assert len(Study("iris", ["encouraging-loss"], seeds=9, steps=4, running=Running(minutes=2)).plan.seeds) == 9


@pytest.mark.parametrize(
    ("running", "seeds", "says"),
    [
        (Running(minutes=0.0), None, "minutes is 0; give the time to use"),
        (Running(minutes=1.0), 6, "more than 6 seeds"),
        (Running(minutes="ten"), None, "minutes is 'ten'; give a finite number"),  # type: ignore[arg-type]
    ],
)
def test_budgets_that_cannot_be(running: Running, seeds: int | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Study("iris", ["encouraging-loss"], seeds=seeds, running=running)


def test_a_store_in_which_no_trial_has_ended_is_not_finished(tmp_path: Path) -> None:
    class Broken(Silent):
        def started(self, job: Job) -> None:
            raise KeyboardInterrupt

    study = Study("iris", ["encouraging-loss"], steps=4, store=tmp_path / "s.sqlite", running=Running(minutes=1))
    with pytest.raises(KeyboardInterrupt):
        study.run(Broken())
    with Store(tmp_path / "s.sqlite") as store:
        (record,) = store.studies()
        assert progress_of(store, record) == {"done": 0, "total": 1}
        with pytest.raises(InputError, match="run the same `probatum try` again"):
            stored_results(store, record)


def test_probes_have_no_race() -> None:
    with pytest.raises(InputError, match="leave minutes out"):
        Study("wine", ["calibration-benchmark"], running=Running(minutes=1.0))


def test_a_small_study_for_real(tmp_path: Path) -> None:
    words = ["try", "encouraging-loss", "gradient-noise(eta=30.0)", "--data", "wine", "--steps", "20", "--seeds", "7"]
    words += ["--workers", "1", "--no-references", "--no-timing"]
    first = told(*words, "--minutes", "0.03", cwd=tmp_path)
    assert first.returncode in (0, 4), first.stderr  # by how far it came
    assert "0.03 minutes in all" in first.stdout
    again = told(*words, "--minutes", "0.03", "--json", "out.json", cwd=tmp_path)
    assert "trials are in the store already" in again.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["race"]["note"] in " ".join(again.stdout.split())
    runs = json.loads(told("runs", "probatum-runs/store.sqlite", "--json", cwd=tmp_path).stdout)
    assert len(runs) == 1
    assert runs[0]["answer"] == found["answer"]
    assert runs[0]["done"] == runs[0]["total"] > 0
    report = told("report", "probatum-runs/store.sqlite", "--to", "again.html", cwd=tmp_path)
    assert found["answer"] in " ".join(report.stdout.split())
    assert "--minutes 0.03" in (tmp_path / "again.html").read_text()
    # a budget's trials are those of any study
    with Store(tmp_path / "probatum-runs" / "store.sqlite") as store:
        held = [t for study in store.studies() for t in store.trials(study.key) if t.seed < 6]
    plain = Study(
        "wine",
        ["encouraging-loss", "gradient-noise(eta=30.0)"],
        steps=20,
        seeds=7,
        running=Running(timing=False, stack="never"),
    )
    jobs = plain.bench().jobs(plain.plan.seeds, plain.plan.arms, with_references=False)
    assert {trial.key for trial in held} <= {job.key for job in jobs}
    assert held
