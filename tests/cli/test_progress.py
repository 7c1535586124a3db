"""What a user sees while a study runs, by a clock that is made up."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from probatum.bench.context import Job
from probatum.bench.hands import Hands
from probatum.bench.plan import DataPlan, StudyPlan
from probatum.bench.results import Results
from probatum.bench.store import Trial
from probatum.cli.progress import LiveTable, Ticker, Waiting
from probatum.cli.try_view import _print_plan
from probatum.recipe import Arm, Recipe
from probatum.report.table import remarks, verdict_table


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job(arm: str, seed: int, kind: str = "fit") -> Job:
    return Job(f"{arm}-{seed}-{kind}", {}, Arm(arm, Recipe()), "", seed, kind)


def trial(of: Job, seconds: float, status: str = "ok") -> Trial:
    record = {"measures": {"accuracy": 0.5}} if status == "ok" else {"reason": "on purpose"}
    return Trial(of.key, "", of.arm.name, of.seed, of.kind, status, {}, record, {"seconds": seconds})


def table_of(clock: Clock, **terms: Any) -> tuple[LiveTable, io.StringIO]:
    screen = io.StringIO()
    return LiveTable(Console(file=screen, width=120), "accuracy", clock=clock, **terms), screen


JOBS = [job(arm, seed) for seed in range(3) for arm in ("baseline", "quick", "slow")]


@pytest.mark.parametrize("slots", [1, 2])
def test_time_left_is_told_by_the_arms_own_times(slots: int) -> None:
    clock = Clock()
    table, _ = table_of(clock, slots=slots)
    table.planned(JOBS, 0)
    assert table.left() is None, "nothing is known yet"
    for one, seconds in zip(JOBS[:3], (2.0, 1.0, 30.0), strict=True):
        table.started(one)
        clock.now += seconds
        table.ended(one, trial(one, seconds))
    assert table.left() == pytest.approx(2 * (2 + 1 + 30) / slots), "not six times the mean of all"
    table.started(JOBS[5])
    clock.now += 10
    assert table.left() == pytest.approx((66 - slots * 10) / slots)
    clock.now += 1000
    assert table.left() == pytest.approx(36 / slots), "a trial that takes too long takes no time off the others"


def test_what_the_store_holds_takes_no_time_and_timings_are_taken_alone() -> None:
    clock = Clock()
    table, screen = table_of(clock, slots=4)
    timings = [job("quick", 0, "timing"), job("quick", 1, "timing")]
    table.planned([*JOBS, *timings], 6)
    for one in JOBS[:6]:
        table.ended(one, trial(one, 10.0 if one.arm.name == "slow" else 1.0))
    assert "6 of 11 trials are in the store already" in screen.getvalue()
    assert table.left() == pytest.approx((1 + 1 + 10) / 4 + 2 * 1.0)
    for one in JOBS[6:]:
        table.ended(one, trial(one, 1.0))
    table.ended(timings[0], trial(timings[0], 7.0))
    assert table.left() == pytest.approx(7.0)


def test_a_line_comes_early_and_again_while_one_trial_runs() -> None:
    clock = Clock()
    table, screen = table_of(clock)
    table.planned(JOBS, 0)
    table.started(JOBS[0])
    lines = []
    for _ in range(80):
        clock.now += 1
        table.beat()
        lines.append(len(screen.getvalue().splitlines()))
    assert lines.index(1) + 1 <= 20
    assert lines.index(2) - lines.index(1) == 30
    assert lines[-1] == 3
    assert "0/9 trials" in screen.getvalue()
    assert "baseline, seed 0 for 0:15" in screen.getvalue()
    table.ended(JOBS[0], trial(JOBS[0], 80.0))
    assert "1/9 trials, about " in screen.getvalue()


def test_a_budget_tells_what_is_left_of_it() -> None:
    clock = Clock()
    table, screen = table_of(clock, end=clock.now + 600, race=(6, 7))
    for one in JOBS[:4]:
        table.planned([one], 0)
        table.started(one)
        clock.now += 25
        table.ended(one, trial(one, 25.0, "ok" if one.seed == 0 else "failed"))
    table.beat()
    assert "4 trials, 8:20 left" in screen.getvalue()
    assert "/" not in screen.getvalue(), "nobody knows how many it will be"
    table.said("confirming")
    assert screen.getvalue().endswith("confirming\n")


def test_reading_is_told_without_a_terminal() -> None:
    clock, screen = Clock(), io.StringIO()
    waiting = Waiting(Console(file=screen, width=80), "reading", clock)
    assert screen.getvalue() == "reading ...\n"
    for _ in range(65):
        clock.now += 1
        waiting.beat()
    assert screen.getvalue().splitlines()[1:] == ["reading, for 0:30", "reading, for 1:00"]
    shown = io.StringIO()
    Waiting(Console(file=shown, width=80, force_terminal=True), "reading", clock).beat()
    assert shown.getvalue() == "", "there a wheel turns"


def test_the_ticker_beats_beside_long_work_and_ends() -> None:
    beats = threading.Semaphore(0)
    with Ticker(beats.release, seconds=0.001) as ticker:
        for _ in range(3):
            assert beats.acquire(timeout=30)
    assert not ticker._thread.is_alive()


def study(minutes: float = 0.0, spent: float = 0.0) -> Any:
    data = DataPlan("made up", "0", "table", "classes", "y", 100, (0.6, 0.2, 0.2), True)
    skipped = {f"unfit{i}": f"unfit{i}: is for images" for i in range(21)}
    plan = StudyPlan(
        arena="predict",
        data=data,
        base=Recipe(),
        arms=(Arm("arm", Recipe()),),
        references=(),
        seeds=tuple(range(24)),
        confirm=tuple(range(1000, 1008)),
        primary="accuracy",
        skipped=skipped,
        race=(6, 24) if minutes else (),
        minutes=minutes,
    )
    return SimpleNamespace(plan=plan, hands=Hands(), spent=spent, running=SimpleNamespace(on=None, workers=1))


def test_what_does_not_apply_is_one_line_unless_it_was_named() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    _print_plan(console, study(), named=False)
    assert "21 technique(s) do not apply to these data; the report and --json say why" in screen.getvalue()
    assert "unfit3" not in screen.getvalue()
    _print_plan(console, study(), named=True)
    assert screen.getvalue().count("not tried: unfit") == 21
    assert "not tried: unfit3: is for images" in screen.getvalue()


@pytest.mark.parametrize("techniques", [None, ["arm", "unfit3"]])
def test_the_table_leaves_out_what_nobody_named(techniques: list[str] | None) -> None:
    plan = replace(study().plan, seeds=tuple(range(6)))
    trials = tuple(trial(job(name, seed), 1.0) for seed in range(6) for name in ("baseline", "arm"))
    results = Results(plan, trials, (), (), {"wishes": {"techniques": techniques}})
    screen = io.StringIO()
    console = Console(file=screen, width=120)
    console.print(verdict_table(results), *remarks(results))
    assert ("unfit3" in screen.getvalue()) == (techniques is not None)
    assert sum(verdict["word"] == "not applicable" for verdict in results.as_json()["verdicts"]) == 21


def test_a_budget_says_beforehand_what_it_does() -> None:
    screen = io.StringIO()
    _print_plan(Console(file=screen, width=200), study(minutes=10.0), named=False)
    said = [line for line in screen.getvalue().splitlines() if "technique(s)" not in line][1:]
    assert len(said) == 3
    assert "10 minutes in all" in said[0]
    assert "up to 2:00 are kept to confirm a winner on 8 fresh seeds" in said[1]
    assert "the same command goes on" in said[2]
