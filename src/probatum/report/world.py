"""What a world of known truth showed: every arm on the measures that need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probatum.bench.results import Results, change_text
from probatum.drawing.blocks import Block, Grid
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


def world_blocks(results: Results) -> list[Block]:
    """The rows as a section, for page and terminal; [] where there are none."""
    rows = world_rows(results)
    if not rows:
        return []
    short = {"no material difference": "no difference"}
    cells = tuple((row.measure, row.arm, f"{row.value:.4f}", row.change, short.get(row.word, row.word)) for row in rows)
    about = (
        f"The data were put into the world {results.plan.data.world}, where the truth is known; these measures need it."
    )
    grid = Grid(("measure", "arm", "mean", "difference [interval]", "verdict"), cells, words=2)
    return [Block("world", "World", about, grids=(grid,), printed=True)]
