"""`probatum audit`: the table of checks, and what to try next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from probatum.auditing.audit import AuditReport, audit
from probatum.auditing.page import quality_line
from probatum.errors import InputError

STYLES = {"pass": "green", "fault": "bold red", "not measurable": "dim"}
SHOWN = 8
"""Suspicious rows named in the terminal."""


def run_audit(model: str, data: str, out: Path | None, *, as_json: bool, **options: Any) -> AuditReport:
    """Audit, print, and write the page where a folder is named."""
    console = Console()
    if as_json:
        report = audit(model, data, **options)
        print(json.dumps(report.as_json(), indent=1))
    else:
        with console.status(f"auditing {model} ..."):
            report = audit(model, data, **options)
        print_report(console, report)
    if out is not None:
        page = report.write(out)
        if not as_json:
            console.print(Text(f"\nreport: {page.resolve()}", overflow="fold"), soft_wrap=True)
    return report


def print_report(console: Console, report: AuditReport) -> None:
    """Notes, the table of checks, the rows and slices found, and the advice."""
    console.print(Text(quality_line(report)), highlight=False)
    for note in report.notes:
        console.print(Text(f"  note: {note}", style="yellow"))
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured [95 % interval]", overflow="fold")
    table.add_column("a fault would be", overflow="fold", style="dim")
    for finding in report.findings:
        told = finding.value or finding.about
        table.add_row(
            finding.check, Text(finding.verdict, style=STYLES[finding.verdict]), Text(told), Text(finding.threshold)
        )
    console.print(table)
    for finding in report.findings:
        if finding.verdict != "fault":
            continue
        console.print(Text.assemble("\n", (f"{finding.check}: ", "bold red"), finding.about))
        if finding.table:
            console.print(_rows(finding.table))
    console.print()
    console.print(Text(report.answer(), style="bold"))
    for item in report.advice:
        if item["techniques"]:
            console.print(Text.assemble("\n", (item["words"], "bold"), ": try"))
            for command in item["commands"]:
                console.print(Text(f"  {command}"), soft_wrap=True)
        else:
            console.print(Text.assemble("\n", (item["words"], "bold"), ": no technique for such data names this yet"))


def limits_of(texts: list[str] | None) -> dict[str, float]:
    """{"name": number} of name=number texts; InputError for others."""
    found = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            found[name.strip().replace("-", "_")] = float(value)
        except ValueError as problem:
            raise InputError(f"--limit {text!r}: write NAME=NUMBER, e.g. calibration=0.05") from problem
    return found


def _rows(rows: tuple[Any, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows[:SHOWN]:
        table.add_row(*(Text(str(value)) for value in row.values()))
    if len(rows) > SHOWN:
        table.add_row(Text(f"{len(rows) - SHOWN} more in the report", style="dim"))
    return table
