"""What an arena or a world shows beyond verdicts: charts and tables, for the page and for the terminal alike."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table as TerminalTable
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        head: names of the columns.
        rows: as many cells each.
        words: how many leading columns hold words; the others hold numbers.
        caption: what stands below.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    caption: str = ""


@dataclass(frozen=True)
class Block:
    """A section of a report.

    Attributes:
        id: its anchor on the page.
        title: its heading.
        about: a sentence or two.
        charts: SVG strings with what they show.
        grids: tables.
        printed: whether the terminal shows its tables, too.
    """

    id: str
    title: str
    about: str = ""
    charts: tuple[tuple[str, str], ...] = ()
    grids: tuple[Grid, ...] = ()
    printed: bool = False


def terminal_table(grid: Grid) -> TerminalTable:
    """A table for the terminal."""
    table = TerminalTable(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for i, name in enumerate(grid.head):
        table.add_column(name, justify="left" if i < grid.words else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
