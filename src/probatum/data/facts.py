"""What is known of a column of a table before it is used, and what is said of it; the same in memory and from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probatum.data.columns import Column
from probatum.data.target import Target

ID_NAMES = ("id", "index", "rowid", "row_id", "unnamed: 0", "")
HIGH_CARDINALITY = 0.5
SHOWN = 5
CONSTANT = " is constant ("


@dataclass(frozen=True)
class Facts:
    """Facts on one column.

    Attributes:
        column: its name and kind.
        rows: how many cells it has.
        missing: how many of them are empty.
        distinct: how many different cells there are, "empty" counted as one; at least 2 where it was not counted.
        first: the first cell.
        scattered: categories: more than half of the cells differ, as ids do.
        running: numbers: whole ones that only rise, or only fall.
        tells: its values and the target's correspond one to one.
        counted: whether `distinct` is exact.
    """

    column: Column
    rows: int
    missing: int
    distinct: int
    first: Any
    scattered: bool
    running: bool
    tells: bool
    counted: bool = True

    def describe(self) -> dict[str, Any]:
        """Name, kind, missing cells and distinct values (None where they were not counted)."""
        levels = self.distinct - (self.missing > 0) if self.counted else None
        return {"name": self.column.name, "kind": self.column.kind, "missing": self.missing, "n_unique": levels}


def id_by_name(name: str) -> bool:
    """Whether a column is called as ids are."""
    return name.strip().lower() in ID_NAMES


def unusable(facts: Facts, id_check: bool) -> str | None:
    """Why a column is dropped, or None; `id_check` drops ids and running numbers."""
    name = facts.column.name
    if facts.distinct <= 1:
        return f"column {name!r}{CONSTANT}{facts.first}): dropped"
    if facts.scattered:
        return f"column {name!r} has {facts.distinct} distinct words in {facts.rows} rows, like an id: dropped"
    if id_check and id_by_name(name):
        return f"column {name!r} is an id by its name: dropped; use group= if its values mark related rows"
    if id_check and facts.running:
        return f"column {name!r} is a running number, like an id: not used as a feature"
    return None


def told_constant(notices: Sequence[str]) -> int:
    """How many columns these notices say were dropped because they are constant."""
    return sum(notice.startswith("column ") and CONSTANT in notice for notice in notices)


def remarks(facts: Facts, values: Target) -> list[str]:
    """Notices on a column that is used."""
    out, column = [], facts.column
    if column.kind == "date":
        form = f" (written {column.format})" if column.format else ""
        out.append(f"column {column.name!r} holds dates{form}: expanded into year, month, day, weekday, hour, seconds")
    if facts.tells:
        out.append(f"column {column.name!r} gives the target {values.names[0]!r} away one to one: drop it (--drop)")
    return out


def missing(kept: Sequence[Facts]) -> list[str]:
    """One notice for the numbers and one for the categories with missing cells."""
    out = []
    for kinds, done in (
        (("number", "date"), "numbers: put at the training median; a 0/1 column marks each"),
        (("category", "boolean"), "categories: code 0, shared with unseen and rare ones"),
    ):
        gaps = [(facts.column.name, facts.missing) for facts in kept if facts.column.kind in kinds and facts.missing]
        gaps.sort(key=lambda gap: -gap[1])
        if gaps:
            shown = ", ".join(f"{name!r} {count}" for name, count in gaps[:SHOWN])
            more = f" and {len(gaps) - SHOWN} more columns" if len(gaps) > SHOWN else ""
            out.append(f"missing values in {shown}{more}, of {kept[0].rows} rows ({done})")
    return out
