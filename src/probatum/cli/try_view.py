"""`probatum try`: run a study with a live table, print the verdicts, write the report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from probatum.bench.budget import KEPT
from probatum.bench.results import Results
from probatum.bench.time_words import before
from probatum.bench.workers import too_many
from probatum.cli.progress import LiveTable, Ticker, Waiting
from probatum.drawing.blocks import terminal_table
from probatum.errors import InputError
from probatum.files import check_writable, write_whole
from probatum.report.pretrained_start import started_from
from probatum.report.table import remarks, verdict_table
from probatum.report.world import world_blocks
from probatum.rooms.arena import blocks_of, competes
from probatum.train.speed import lines

RUNS = Path("probatum-runs")
TOLD = 1000
"""Steps of pretraining between two lines where there is no terminal."""
SAID = "reading the data and rehearsing every arm"


@dataclass(frozen=True)
class Outputs:
    """Where what is found goes: the store, the report, a JSON file; None = the usual place, or nowhere."""

    store: str | None = None
    report: Path | None = None
    json_file: Path | None = None


def run_try(ids: list[str] | None, data: str, arguments: dict[str, Any], outputs: Outputs) -> str:
    """Run the study of these arguments of `Study` and show it; return why nothing could be judged, "" where something was."""
    console, begun = Console(), time.monotonic()
    with console.status("starting ..."):
        from probatum.study import check

        check(ids, arguments)
    waiting = Waiting(console, SAID)
    with console.status(f"{SAID} ...") as status, Ticker(waiting.beat):
        from probatum.bench.plan import key_of
        from probatum.report.write import write_report
        from probatum.study import Study

        if outputs.report is None:
            check_writable(_runs_folder() / "report.html")
        where = outputs.store or str(_runs_folder() / "store.sqlite")
        tuning = arguments["fine_tuning"]

        def pretraining(step: int, steps: int) -> None:
            status.update(f"pretraining on {tuning.source}: step {step} of {steps} ...")
            if not console.is_terminal and (step == steps or step // TOLD > (step - 1) // TOLD):
                console.print(f"pretraining: step {step} of {steps}", highlight=False)

        study = Study(data, ids, store=where, progress=pretraining, **arguments)
    _print_data(console, study.summary())
    _print_plan(console, study, named=ids is not None)
    end = begun + 60 * study.plan.minutes if study.plan.minutes else None
    with LiveTable(console, study.plan.primary, study.plan.race, slots=study.hands.workers, end=end) as listener:
        results = study.run(listener)
    key = key_of(study.plan.describe())
    path = outputs.report or (_runs_folder() / f"{_plain(study.dataset.name)}-{key[:8]}.html")
    print_results(console, results)  # before files: what can go wrong with these must not hide it
    try:
        write_report(results, path)
        if outputs.json_file is not None:
            write_whole(outputs.json_file, json.dumps(results.as_json(), indent=1) + "\n")
    except InputError as problem:
        raise InputError(f"{problem}; all trials are stored, and the same command writes it") from problem
    console.print(Text(f"\nreport: {path.resolve()}", no_wrap=False, overflow="fold"), soft_wrap=True)
    console.print(Text(f"store:  {study.store.name} (study {key[:8]})", style="dim"), soft_wrap=True)
    return results.unjudged()


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


def _print_plan(console: Console, study: Any, *, named: bool) -> None:
    plan = study.plan
    console.print(
        f"{len(plan.arms)} arm(s) against the baseline, "
        + f"{'raced over ' if plan.race else ''}{plan.over_seeds()}, "
        + ("equal arithmetic" if plan.equal_compute else "equal steps")
        + (f", {plan.tune} tuner trials each" if plan.tune else "")
        + (
            f", on {study.running.on}"
            if study.running.on
            else f", {study.hands.words()}"
            if study.hands.words()
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
    for name, reason in plan.skipped.items() if named else ():
        console.print(Text(f"  not tried: {name}: {reason.removeprefix(name + ': ')}", style="dim"))
    if plan.skipped and not named:
        told = f"  {len(plan.skipped)} technique(s) do not apply to these data; the report and --json say why"
        console.print(Text(told, style="dim"))
    for line in before(plan, study.spent, 60 * KEPT * plan.minutes):
        console.print(line, highlight=False)


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
