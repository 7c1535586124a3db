"""The verdict table, for the terminal and for notebooks."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from probatum.bench.results import Results, change_text
from probatum.bench.verdict import Verdict
from probatum.measure.base import Measure

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLES = {
    "helps": "bold green",
    "hurts": "bold red",
    "no material difference": "blue",
    "undecided": "yellow",
    "not applicable": "dim",
    "failed": "red",
}
SHORT = {"no material difference": "no difference", "not applicable": "n/a"}


def verdict_table(results: Results) -> Table:
    """Arms on the primary measure; fits 80 columns."""
    plan = results.plan
    primary = results.measure(plan.primary)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold")
    table.add_column(plan.primary, justify="right", no_wrap=True)
    table.add_column("difference [interval]", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    base = results.mean(results.baseline, plan.primary)
    table.add_row(Text(results.baseline, style="bold"), _number(base), "", "")
    for verdict in _told(results):
        mark = Text(SHORT.get(verdict.word, verdict.word), style=STYLES[verdict.word])
        table.add_row(verdict.arm, _number(verdict.arm_mean), change_text(verdict, primary), mark)
    for name in plan.references:
        verdict_of = [v for v in results.verdicts() if v.arm == name and v.measure == plan.primary]
        for verdict in verdict_of:
            table.add_row(
                Text(name, style="dim"),
                Text(_number(verdict.arm_mean), style="dim"),
                Text(change_text(verdict, primary), style="dim"),
                Text("reference", style="dim"),
            )
    return table


def remarks(results: Results) -> list[Text]:
    """One line for each arm about which there is more to say: other axes, no effect, failures, what would decide."""
    lines = []
    others, notes = other_axes(results), results.notes()
    degenerate = results.degenerate()
    for name in (results.baseline, *results.plan.references):  # whose lines have no verdict to say it beside
        if name in degenerate:
            lines.append(Text.assemble((f"  {name}: ", "bold"), (degenerate[name], "red")))
    for verdict in _told(results):
        line = others.get(verdict.arm, Text())
        note = verdict.note
        if verdict.word == "undecided" and verdict.seeds_needed:
            note = f"about {verdict.seeds_needed} seeds would decide (80 %)" + (f"; {note}" if note else "")
        if note:
            line = Text.assemble(line, "; " if line.plain else "", (note, "dim"))
        if verdict.arm in notes:
            line = Text.assemble(line, "; " if line.plain else "", (notes[verdict.arm], "red"))
        if line.plain:
            lines.append(Text.assemble((f"  {verdict.arm}: ", "bold"), line))
    return lines


def other_axes(results: Results) -> dict[str, Text]:
    """For each arm, the other measures on which something happened: one per axis, the largest in margins."""
    named = {measure.name: measure for measure in results.measures()}
    best: dict[tuple[str, str], Verdict] = {}
    for verdict in results.verdicts():
        if verdict.measure == results.plan.primary or verdict.word not in ("helps", "hurts"):
            continue
        key = (verdict.arm, verdict.axis)
        if key not in best or _weight(verdict) > _weight(best[key]):
            best[key] = verdict
    found: dict[str, Text] = {}
    # by axis, since which verdict is met first hangs on times
    axes = list(dict.fromkeys(verdict.axis for verdict in results.verdicts()))
    for (arm, _axis), verdict in sorted(best.items(), key=lambda item: axes.index(item[0][1])):
        text = found.setdefault(arm, Text())
        if text.plain:
            text.append(", ")
        text.append(_brief(verdict, named[verdict.measure]), style="green" if verdict.word == "helps" else "red")
    return found


def verdict_table_html(results: Results) -> str:
    """The same table for a notebook; every text escaped."""
    primary = results.measure(results.plan.primary)
    head = "".join(
        f"<th>{html.escape(cell)}</th>" for cell in ("arm", primary.name, "difference [interval]", "verdict", "note")
    )
    base = results.mean(results.baseline, primary.name)
    rows = [_html_row((results.baseline, _number(base), "", "", results.degenerate().get(results.baseline, "")))]
    notes = results.notes()
    for verdict in results.primary_verdicts():
        note = "; ".join(filter(None, (verdict.note, notes.get(verdict.arm, ""))))
        rows.append(
            _html_row((verdict.arm, _number(verdict.arm_mean), change_text(verdict, primary), verdict.word, note))
        )
    answer = html.escape(results.answer())
    return (
        f"<p><strong>{answer}</strong></p><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _told(results: Results) -> list[Verdict]:
    """Verdicts for the terminal: where no technique was named, without those that do not apply, which are counted once."""
    named = (results.summary.get("wishes") or {"techniques": ()})["techniques"] is not None
    return [v for v in results.primary_verdicts() if named or v.arm not in results.plan.skipped]


def _html_row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _brief(verdict: Verdict, measure: Measure) -> str:
    if measure.kind == "ratio":
        sign = 1 if measure.higher_is_better else -1
        return f"{measure.name} x{math.exp(sign * verdict.mean):.2g}"
    sign = 1 if measure.higher_is_better else -1
    return f"{measure.name} {sign * verdict.mean:+.2g}"


def _weight(verdict: Verdict) -> float:
    return abs(verdict.mean) / verdict.margin if verdict.margin else abs(verdict.mean)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
