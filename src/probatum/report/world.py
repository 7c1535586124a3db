"""What a world of known truth showed: every arm on the measures that need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from probatum.bench.results import Results, change_text
from probatum.measure import truth

if TYPE_CHECKING:
    from probatum.bench.verdict import Verdict


@dataclass(frozen=True)
class Row:
    """One arm on one measure of the truth."""

    measure: str
    arm: str
    value: float
    change: str
    word: str


def world_rows(results: Results) -> list[Row]:
    """Rows by measure, the baseline first; [] for studies of data as they are."""
    if not results.plan.data.world:
        return []
    rows: list[Row] = []
    judged: dict[tuple[str, str], Verdict] = {(v.arm, v.measure): v for v in results.verdicts() if v.n}
    arms = (results.baseline, *(arm.name for arm in results.plan.arms), *results.plan.references)
    for measure in truth.MEASURES:
        for arm in arms:
            value = results.mean(arm, measure.name)
            if value is None:
                continue
            found = judged.get((arm, measure.name))
            change = "" if found is None else change_text(found, measure)
            word = "reference" if arm in results.plan.references else "" if found is None else found.word
            rows.append(Row(measure.name, arm, value, change, word))
    return rows


def world_table(results: Results) -> Table | None:
    """The rows for the terminal, or None where there are none."""
    rows = world_rows(results)
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(f"in {results.plan.data.world}", overflow="fold")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("difference [interval]", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    last = ""
    for row in rows:
        if row.measure != last:
            table.add_row(Text(row.measure, style="bold"), "", "", "")
            last = row.measure
        style = "dim" if row.word == "reference" else ""
        word = {"no material difference": "no difference"}.get(row.word, row.word)
        table.add_row(*(Text(cell, style=style) for cell in (f"  {row.arm}", f"{row.value:.4f}", row.change, word)))
    return table
