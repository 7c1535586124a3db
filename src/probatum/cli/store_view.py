"""`probatum runs` and `probatum report`: look again at what a store holds."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from probatum.bench.repair import repair
from probatum.bench.store import Store
from probatum.bench.stored import find_study, missing_beside, progress_of, results_of
from probatum.errors import InputError


def open_existing(path: str) -> Store:
    """A store that must be there already."""
    if "://" not in path and not Path(path).is_file():
        raise InputError(f"no store at {path}; `probatum try ... --store {path}` writes one")
    if "://" not in path and Path(path).stat().st_size == 0:
        raise InputError(
            f"{path} is empty (0 bytes) and holds no study yet; `probatum try ... --store {path}` writes one"
        )
    store = Store(path, forgiving=True)
    store.tell(_told)
    return store


def _told(line: str) -> None:
    """Beside the output, which may be read by a program."""
    Console(stderr=True).print(Text(line, style="yellow"), soft_wrap=True)


def print_runs(path: str, *, as_json: bool) -> None:
    """A line for every study in the store, oldest first."""
    with open_existing(path) as store:
        rows = []
        for study in sorted(store.studies(), key=lambda s: s.created):
            plan, progress = study.plan["plan"], progress_of(store, study)
            finished = progress["done"] == progress["total"]
            rows.append(
                {
                    "study": study.key,
                    "created": study.created,
                    "data": plan["data"]["name"],
                    "arena": plan["arena"],
                    "arms": [arm["name"] for arm in plan["arms"]],
                    "seeds": len(plan["seeds"]),
                    **progress,
                    "answer": results_of(store, study).answer() if finished else "not finished",
                }
            )
        unchecked = len(store.unchecked)
    if unchecked:
        _told(f"{unchecked} trials were written by an earlier version, without checksums: they cannot be checked")
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    console, table = Console(), Table(box=None, pad_edge=False, header_style="bold")
    for column in ("study", "created", "data", "trials", "answer"):
        table.add_column(column, no_wrap=column in ("study", "trials"), overflow="fold")
    for row in rows:
        trials = f"{row['done']}/{row['total']}"
        table.add_row(row["study"][:8], row["created"][:16], row["data"], trials, Text(row["answer"]))
    console.print(table)


def print_report(path: str, beginning: str | None, to: Path | None) -> str:
    """The verdict table of a stored study, and its HTML report; return why nothing could be judged, "" where something was."""
    from probatum.cli.try_view import print_results
    from probatum.report.write import write_report

    with open_existing(path) as store:
        study = find_study(store, beginning)
        results = results_of(store, study)
        missing = missing_beside(store, study, results)
    console = Console()
    print_results(console, results)
    if missing:
        _told(f"not all that belongs to it is in the store: {missing}; the same `probatum try` runs it")
    if to is not None:
        write_report(results, to)
        console.print(Text(f"\nreport: {to.resolve()}"), soft_wrap=True)
    return results.unjudged()


def print_repair(path: str, *, as_json: bool) -> None:
    """Mend a store's file and say what was kept and what is lost."""
    if "://" in path:
        raise InputError(
            "only SQLite files are repaired; what is damaged on a server the same `probatum try` runs again"
        )
    done = repair(Path(path))
    if as_json:
        kept = dict(zip(("trials", "studies", "blobs"), done.kept, strict=True))
        found = {"repaired": done.needed, "kept": kept, "arms": dict(done.arms), "lost": list(done.lost)}
        print(json.dumps({**found, "damaged": None if done.damaged is None else str(done.damaged)}, indent=1))
        return
    for line in done.lines(path):
        Console().print(Text(line), soft_wrap=True)
