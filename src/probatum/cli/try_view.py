"""`probatum try`: run a study with a live table, print the verdicts, write the report."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from probatum.bench.execute import Job
from probatum.bench.results import Results
from probatum.bench.store import Trial
from probatum.bench.workers import too_many
from probatum.drawing.blocks import terminal_table
from probatum.errors import InputError
from probatum.report.pretrained_start import started_from
from probatum.report.table import remarks, verdict_table
from probatum.report.world import world_blocks
from probatum.rooms.arena import blocks_of, competes
from probatum.train.speed import lines

RUNS = Path("probatum-runs")
TOLD = 1000
"""Steps of pretraining between two lines where there is no terminal."""
NAMED = 4
"""Running trials that the live table names."""


@dataclass(frozen=True)
class Outputs:
    """Where what is found goes: the store, the report, a JSON file; None = the usual place, or nowhere."""

    store: str | None = None
    report: Path | None = None
    json_file: Path | None = None


def run_try(ids: list[str] | None, data: str, arguments: dict[str, Any], outputs: Outputs) -> None:
    """Run the study of these arguments of `Study` and show it."""
    console = Console()
    with console.status("reading the data and rehearsing every arm ...") as status:
        from probatum.bench.plan import key_of
        from probatum.report.write import write_report
        from probatum.study import Study

        where = outputs.store or str(_runs_folder() / "store.sqlite")
        tuning = arguments["fine_tuning"]

        def pretraining(step: int, steps: int) -> None:
            status.update(f"pretraining on {tuning.source}: step {step} of {steps} ...")
            if not console.is_terminal and (step == steps or step // TOLD > (step - 1) // TOLD):
                console.print(f"pretraining: step {step} of {steps}", highlight=False)

        study = Study(data, ids, store=where, progress=pretraining, **arguments)
    _print_data(console, study.summary())
    _print_plan(console, study)
    listener = LiveTable(console, study.plan.primary, study.plan.race)
    with listener:
        results = study.run(listener)
    key = key_of(study.plan.describe())
    path = outputs.report or (_runs_folder() / f"{_plain(study.dataset.name)}-{key[:8]}.html")
    write_report(results, path)
    if outputs.json_file is not None:
        outputs.json_file.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
    print_results(console, results)
    console.print(Text(f"\nreport: {path.resolve()}", no_wrap=False, overflow="fold"), soft_wrap=True)
    console.print(Text(f"store:  {study.store.name} (study {key[:8]})", style="dim"), soft_wrap=True)


def print_results(console: Console, results: Results) -> None:
    """The verdict table and the answer."""
    console.print()
    if competes(results.plan.arena):
        console.print(verdict_table(results))
    for line in remarks(results):
        console.print(line)
    for block in (*world_blocks(results), *blocks_of(results.plan.arena, results)):
        for grid in block.grids if block.printed else ():
            console.print()
            console.print(terminal_table(grid))
    for trial in results.trials if not competes(results.plan.arena) else ():
        if trial.status != "ok":
            told = f"{trial.arm}, seed {trial.seed} {trial.status}: {trial.record.get('reason', '')}"
            console.print(Text(told, style="red"))
    for note in filter(None, (results.race_note(), results.swap_note())):
        console.print(Text(note, style="dim"))
    for note in filter(None, (results.rows_note(), results.choice_note())):
        console.print(Text(note, style="yellow"))
    console.print()
    console.print(Text(results.answer(), style="bold"))
    if results.reference_note():
        console.print(Text(results.reference_note(), style="yellow"))


class LiveTable:
    """A table that follows the trials; without a terminal, one line per seed instead."""

    def __init__(self, console: Console, primary: str, race: tuple[int, ...] = ()) -> None:
        self.console, self.primary, self.race = console, primary, race
        self.racing: set[str] = set()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.values: dict[str, list[float]] = defaultdict(list)
        self.failed: dict[str, int] = defaultdict(int)
        self.total = self.done = self.stored = 0
        self.begun = time.monotonic()
        self.running: dict[str, str] = {}

    def __enter__(self) -> LiveTable:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def planned(self, jobs: list[Job], done: int) -> None:
        """A batch of trials is about to run; `done` of them are in the store."""
        if self.race:
            self._tell_stage(jobs)
        self.total, self.done, self.stored, self.begun = len(jobs), 0, done, time.monotonic()
        self.running.clear()
        if done:
            self.console.print(Text(f"{done} of {len(jobs)} trials are in the store already", style="dim"))

    def started(self, job: Job) -> None:
        """A trial begins; others may be under way."""
        self.running[job.key] = f"{job.arm.name}, seed {job.seed}" + (" (timing)" if job.kind == "timing" else "")
        self._show()

    def stepped(self, step: int, steps: int) -> None:
        """The trial has taken `step` of `steps` updates."""
        self._show(f" {100 * step // steps} %")

    def ended(self, job: Job, trial: Trial) -> None:
        """A trial ended, or was found in the store."""
        self.done += 1
        self.running.pop(job.key, None)
        if trial.status != "ok":
            self.failed[job.arm.name] += 1
        elif self.primary in trial.record.get("measures", {}):
            self.values[job.arm.name].append(trial.record["measures"][self.primary])
        self._show()
        if self.live is None and self._ran() and (self.done == self.total or self.done % max(1, self.total // 10) == 0):
            self.console.print(f"{self.done}/{self.total} trials{self._left()}", highlight=False)

    def _tell_stage(self, jobs: list[Job]) -> None:
        """A line when a race goes on: which arms stopped at the look before."""
        fits = [job for job in jobs if job.kind == "fit"]
        look = max((job.seed for job in fits), default=-1) + 1
        if look not in self.race:  # timings, or the winner's fresh seeds
            return
        arms = {job.arm.name for job in fits if not job.builtin}
        stopped = sorted(self.racing - arms)
        told = f"; stopped: {', '.join(stopped)}" if stopped else ""
        line = f"race to {look} of {self.race[-1]} seeds: {len(arms)} arm(s){told}"
        self.console.print(Text(line, style="dim"), soft_wrap=False)
        self.racing = arms

    def _ran(self) -> int:
        """Trials that have ended here; the stored ones are told of before them."""
        return max(0, self.done - self.stored)

    def _left(self) -> str:
        ran = self._ran()  # however many run side by side, what has ended so far says how fast it goes
        if not ran or self.done == self.total:
            return ""
        left = (time.monotonic() - self.begun) / ran * (self.total - self.done)
        return f", about {int(left // 60)}:{int(left % 60):02d} left"

    def _show(self, share: str = "") -> None:
        if self.live is None:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("arm", overflow="fold")
        table.add_column("seeds", justify="right")
        table.add_column(f"mean {self.primary}", justify="right")
        for arm, values in self.values.items():
            lost = f" ({self.failed[arm]} lost)" if self.failed[arm] else ""
            table.add_row(arm, f"{len(values)}{lost}", f"{sum(values) / len(values):.4f}")
        now = list(self.running.values())
        told = "; ".join(now[:NAMED]) + (f"; {len(now) - NAMED} more" if len(now) > NAMED else "")
        line = Text(f"{self.done}/{self.total} trials{self._left()} · {told}{share}", style="dim")
        self.live.update(Group(table, line))


def _print_data(console: Console, summary: dict[str, Any]) -> None:
    shape = "x".join(str(size) for size in summary.get("shape", ()))
    console.print(
        f"[bold]{summary['name']}[/bold]: {summary['n']} {summary.get('unit', 'rows')}, {summary['modality']}"
        + (f" {shape}" if shape else "")
        + f", target {summary['target']}, task {summary['task']}"
        + (f" ({summary['tokens']}, {summary['vocabulary']} ids)" if "tokens" in summary else ""),
        highlight=False,
    )
    if "world" in summary:
        world = summary["world"]
        console.print(Text(f"world {world['name']}: {world['about']}", style="bold"))
        told = "; ".join(f"{what} {number:g}" for what, number in world["counts"].items())
        console.print(Text(f"  seed 0: {told}", style="dim"))
    for notice in summary.get("notices", ()):
        console.print(Text(f"  note: {notice}", style="yellow"))


def _print_plan(console: Console, study: Any) -> None:
    plan = study.plan
    console.print(
        f"{len(plan.arms)} arm(s) against the baseline, "
        + (f"raced over at most {len(plan.seeds)} paired seeds, " if plan.race else f"{len(plan.seeds)} paired seeds, ")
        + ("equal arithmetic" if plan.equal_compute else "equal steps")
        + (f", {plan.tune} tuner trials each" if plan.tune else "")
        + (
            f", on {study.running.on}"
            if study.running.on
            else f", {study.running.workers} workers"
            if study.running.workers > 1
            else ""
        )
        + f"; {plan.primary} decides",
        highlight=False,
    )
    for line in started_from(plan.pretrained):
        console.print(line, highlight=False)
    if plan.engine.plan() or plan.speed:
        console.print(f"computed on {plan.engine.words()}", highlight=False)
    for line in lines(plan.speed):
        console.print(Text(f"  {line}", style="dim"))
    crowded = too_many(study.running.workers, plan.threads)
    if crowded is not None and study.running.workers > 1:
        console.print(Text(f"  warning: {crowded}", style="yellow"))
    for name, reason in plan.skipped.items():
        console.print(Text(f"  not tried: {name}: {reason.removeprefix(name + ': ')}", style="dim"))


def _runs_folder() -> Path:
    try:
        RUNS.mkdir(exist_ok=True)
    except OSError as problem:
        raise InputError(
            f"cannot make the folder {RUNS.resolve()}: {problem.strerror}; give --store and --report"
        ) from problem
    return RUNS


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(name).stem)[:60] or "study"
