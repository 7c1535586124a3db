"""Tables that may be opened in a spreadsheet, which runs cells that look like formulas: told of, and quoted on request."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from probatum.errors import InputError

BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")
NUMBER = re.compile(r"[+-]?(\d[\d,.]*|[.,]\d+)(e[+-]?\d+)?\s*%?|[+-]?(inf|nan)", flags=re.IGNORECASE)
"""What begins with a sign and is a number, which no spreadsheet runs."""


def is_formula(cell: str | None) -> bool:
    """Whether a spreadsheet may read a cell as a formula: it begins as one and is no number."""
    return cell is not None and cell.startswith(BEGINNINGS) and NUMBER.fullmatch(cell) is None


def formulas(frame: pl.DataFrame) -> str:
    """How many cells and headings a spreadsheet may run, with a column that has one, in a line; "" where none is."""
    counts = {name: 0 for name in frame.columns if is_formula(name)}
    headings = len(counts)
    for name in _words(frame):
        if count := sum(map(is_formula, frame[name].cast(pl.String))):
            counts[name] = count
    if not counts:
        return ""
    cells = sum(counts.values())
    example = next(iter(counts))
    told = [
        f"{number} {what}{'s' * (number > 1)}" for number, what in ((cells, "cell"), (headings, "heading")) if number
    ]
    return (
        f"{' and '.join(told)} begin{'s' * (cells + headings == 1)} like a formula, e.g. in column {example!r}; a spreadsheet "
        "may run that: --spreadsheet writes an apostrophe before it"
    )


def quoted(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with an apostrophe before each cell and heading that a spreadsheet may run."""
    words = [
        pl.Series(name, [f"'{cell}" if is_formula(cell) else cell for cell in frame[name].cast(pl.String)], pl.String)
        for name in _words(frame)
    ]
    found = frame.with_columns(words)
    names = {name: f"'{name}" for name in frame.columns if is_formula(name)}
    if taken := sorted(set(names.values()) & set(frame.columns)):
        raise InputError(f"column {taken[0]!r} stands beside one that --spreadsheet would call so; rename one of them")
    return found.rename(names)


def as_csv(frame: pl.DataFrame, *, spreadsheet: bool) -> str:
    """CSV; for spreadsheets with all words in quotation marks, so that no other separator makes new cells of one."""
    if not spreadsheet:
        return frame.write_csv()
    return quoted(frame).write_csv(quote_style="non_numeric")


def write_table(frame: pl.DataFrame, path: Path, *, spreadsheet: bool) -> None:
    """A .csv or .parquet file, moved into place when it is whole; InputError where it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            if path.suffix == ".csv":
                file.write(as_csv(frame, spreadsheet=spreadsheet).encode())
            else:
                frame.write_parquet(file)
        part.replace(path)
    except (OSError, pl.exceptions.PolarsError) as problem:
        raise InputError(f"{path} could not be written ({problem}); make room or name another file") from problem
    finally:
        part.unlink(missing_ok=True)


def _words(frame: pl.DataFrame) -> list[str]:
    return [name for name, dtype in frame.schema.items() if dtype in (pl.String, pl.Categorical, pl.Enum)]
