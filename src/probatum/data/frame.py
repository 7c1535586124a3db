"""Data frames: which column is the target, what restricts the split, and what is left as features."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import polars as pl

from probatum.data.columns import conform, infer_column
from probatum.data.split import SPLIT_WORDS, given_parts, unit_numbers
from probatum.errors import InputError
from probatum.settings import Reading

TARGET_NAMES = ("target", "label", "class", "y")


@dataclass(frozen=True)
class Framed:
    """A data frame of which it is known what each column is for.

    Attributes:
        name: of the data.
        frame: all columns but the dropped ones.
        target: name of the target column.
        features: the columns that are left; of data split by group without the group's.
        given: (n,) parts that the user or the source gives, or None.
        notices: one-line warnings found so far; what reads further adds to them.
    """

    name: str
    frame: pl.DataFrame
    target: str
    features: pl.DataFrame
    given: np.ndarray | None
    notices: list[str] = field(default_factory=list)


def framed(frame: pl.DataFrame, name: str, reading: Reading, given: np.ndarray | None = None) -> Framed:
    """Find the target and the split (`given` where it is known); InputError for columns that are not there, and where
    nothing is left."""
    notices: list[str] = []
    if frame.height == 0:
        raise InputError(f"{name!r} has no rows")
    split, text = reading.split, reading.options.get("text")
    named = [c for c in (reading.group, reading.time, text) if c]
    for column in (*reading.drop, *named, *([split] if isinstance(split, str) else [])):
        need_column(frame, column, "column")
    frame = frame.drop(list(reading.drop))
    if split is None and given is None:
        split = _find_split(frame, reading.target, notices)
    reserved = {c for c in (reading.group, text, reading.time, split if isinstance(split, str) else None) if c}
    target = pick_target(frame, reading.target, reserved, notices)
    features = frame.drop({target} | ({split} if isinstance(split, str) else set()))
    return Framed(name, frame, target, features, _given(frame, split) if given is None else given, notices)


class Apart(TypedDict):
    """What restricts the split, as `make_dataset` takes it."""

    groups: np.ndarray | None
    moment: np.ndarray | None
    given: np.ndarray | None


def restricted(found: Framed, reading: Reading) -> tuple[pl.DataFrame, Apart]:
    """The features without the group's column, and what restricts the split, as `make_dataset` takes it.

    Raises:
        InputError: both a group and a time, both a time and a split, a time that is none, or no feature left.
    """
    features, groups = found.features, None
    check_apart(reading)
    if reading.group is not None:
        groups = unit_numbers(str(cell).encode() for cell in features[reading.group].to_list())
        features = features.drop(reading.group)
    moment = None if reading.time is None else moment_of(found.frame[reading.time])
    if features.width == 0:
        raise InputError(f"{found.name!r} has no column besides the target {found.target!r}; bring features")
    return features, {"groups": groups, "moment": moment, "given": found.given}


def check_apart(reading: Reading) -> None:
    """InputError where two things say how rows are split."""
    if reading.time is not None and reading.group is not None:
        raise InputError("give group or time, not both, unless modality is series")
    if reading.time is not None and reading.split is not None:
        raise InputError("time and split both say which rows are the test; give one of them")


def need_column(frame: pl.DataFrame, column: str, what: str) -> None:
    """Raise InputError with the nearest names unless `frame` has this column."""
    if column in frame.columns:
        return
    near = difflib.get_close_matches(column, frame.columns, n=3, cutoff=0.4) or frame.columns[:10]
    raise InputError(f"{what} {column!r} is not in the data; nearest: {', '.join(map(repr, near))}")


def pick_target(frame: pl.DataFrame, target: str | None, reserved: set[str], notices: list[str]) -> str:
    """The given target, or the last column called target, label, class or y, or the last column, with a notice."""
    if target is not None:
        need_column(frame, target, "target column")
        return target
    free = [c for c in frame.columns if c not in reserved]
    if not free:
        raise InputError("no column is left for the target; name it with target=")
    named = [c for c in free if c.lower() in TARGET_NAMES]
    chosen = named[-1] if named else free[-1]
    notices.append(f"no target was named: {chosen!r} is taken; name another with target=")
    return chosen


def _find_split(frame: pl.DataFrame, target: str | None, notices: list[str]) -> str | None:
    """A column called split that says train and test is taken as the given split."""
    if "split" not in frame.columns or target == "split" or frame["split"].dtype != pl.String:
        return None
    words = {str(word).strip().lower() for word in frame["split"].unique().to_list()}
    if words == {"all"} or (words <= set(SPLIT_WORDS) and len(words) > 1):
        notices.append("column 'split' is taken as the given split and not as a feature; drop it to split by the seed")
        return "split"
    return None


def _given(frame: pl.DataFrame, split: str | Sequence[object] | None) -> np.ndarray | None:
    if split is None:
        return None
    if isinstance(split, str):
        return given_parts(frame[split].to_list(), f"split column {split!r}")
    if len(split) != frame.height:
        raise InputError(f"split has {len(split)} entries for {frame.height} rows; give one a row")
    return given_parts(list(split), "split")


def moment_of(series: pl.Series) -> np.ndarray:
    """(n,) a time column as numbers; InputError where it holds neither dates nor numbers, or a cell is empty."""
    column = infer_column(series)
    if column.kind not in ("number", "date"):
        raise InputError(f"time column {series.name!r} holds {series[0]!r}; give dates like 2024-01-31 or numbers")
    cells = conform(series, column)
    if cells.null_count():
        row = int(cells.is_null().arg_true()[0])
        raise InputError(f"time column {series.name!r} is empty in row {row}; fill it or leave the row out")
    return (cells.to_physical() if column.kind == "date" else cells).cast(pl.Float64).to_numpy()
