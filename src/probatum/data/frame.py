"""Data frames: which column is the target, what the others are, and what is wrong with them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from probatum.data.columns import Column, conform, infer_column
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.facts import HIGH_CARDINALITY, Facts, missing, remarks, unusable
from probatum.data.pipeline import Raw
from probatum.data.split import SPLIT_WORDS, given_parts, unit_numbers
from probatum.data.target import Target, read_target
from probatum.errors import InputError
from probatum.kinds.series.encode import RawSeries, raw_series
from probatum.kinds.table.encode import RawTable
from probatum.kinds.text.encode import raw_texts

TARGET_NAMES = ("target", "label", "class", "y")
TIME_NAME = re.compile(r"^t?_?\d+$", re.IGNORECASE)
MIN_WIDE_STEPS = 16
TEXT_WORDS = 3


def from_frame(
    frame: pl.DataFrame,
    *,
    name: str,
    target: str | None,
    task: str,
    modality: str,
    group: str | None,
    time: str | None,
    split: str | Sequence[object] | None,
    text: str | None,
    drop: Sequence[str],
    id_check: bool = True,
) -> Dataset:
    """A dataset from a data frame; see `open_dataset` for the arguments; `id_check` drops running numbers."""
    notices: list[str] = []
    if frame.height == 0:
        raise InputError(f"{name!r} has no rows")
    for column in (*drop, *(c for c in (group, time, text) if c), *([split] if isinstance(split, str) else [])):
        need_column(frame, column, "column")
    frame = frame.drop(list(drop))
    if split is None:
        split = _find_split(frame, target, notices)
    reserved = {c for c in (group, text, time, split if isinstance(split, str) else None) if c}
    target = pick_target(frame, target, reserved, notices)
    given = _given(frame, split)
    features = frame.drop({target} | ({split} if isinstance(split, str) else set()))
    if modality == "series" and group is not None and time is not None:
        return _long_series(frame, name, target, task, group, time, notices)
    if group is not None and time is not None:
        raise InputError("give group or time, not both, unless modality is series")
    groups = None
    if group is not None:
        groups = unit_numbers(str(cell).encode() for cell in features[group].to_list())
        features = features.drop(group)
    moment = None if time is None else _moment(frame[time])
    if features.width == 0:
        raise InputError(f"{name!r} has no column besides the target {target!r}; bring features")
    kind = _modality(features, modality, text)
    values = read_target(frame[target], target, task, small_integers=kind == "text")
    if kind == "text":
        column = text or features.columns[0]
        unused = [c for c in features.columns if c != column]
        if unused:
            notices.append(f"only the text {column!r} is used; left out: {', '.join(map(repr, unused))}")
        raw: Raw = raw_texts(features[column].to_list(), column)
    elif kind == "series":
        raw = _wide_series(features)
    else:
        raw = table_from(features, values, notices, id_check, name)
    return make_dataset(name, kind, raw, values, target, groups=groups, moment=moment, given=given, notices=notices)


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


def _moment(series: pl.Series) -> np.ndarray:
    column = infer_column(series)
    if column.kind not in ("number", "date"):
        raise InputError(f"time column {series.name!r} holds {series[0]!r}; give dates like 2024-01-31 or numbers")
    cells = conform(series, column)
    if cells.null_count():
        row = int(cells.is_null().arg_true()[0])
        raise InputError(f"time column {series.name!r} is empty in row {row}; fill it or leave the row out")
    return (cells.to_physical() if column.kind == "date" else cells).cast(pl.Float64).to_numpy()


def _modality(features: pl.DataFrame, modality: str, text: str | None) -> str:
    if modality == "image":
        raise InputError("images come as arrays, .npz files or folders, not as data frames")
    if modality != "auto":
        return modality
    if text is not None or (features.width == 1 and is_text(features.to_series(0))):
        return "text"
    names = features.columns
    wide = len(names) >= MIN_WIDE_STEPS and all(TIME_NAME.match(c) for c in names)
    if wide and all(infer_column(features[c]).kind == "number" for c in names):
        return "series"
    return "table"


def is_text(series: pl.Series) -> bool:
    """Whether cells are free text: over three words on average, and mostly distinct."""
    if series.dtype != pl.String:
        return False
    cells = series.drop_nulls()
    if len(cells) == 0 or cells.n_unique() <= HIGH_CARDINALITY * len(cells):
        return False
    words = cells.str.count_matches(r"\S+").to_numpy()
    return float(words.mean()) > TEXT_WORDS


def _wide_series(features: pl.DataFrame) -> RawSeries:
    columns = []
    for name in features.columns:
        if infer_column(features[name]).kind != "number":
            raise InputError(f"column {name!r} is no number; a series needs one numeric column a time step; drop it")
        columns.append(conform(features[name], Column(name, "number")).fill_null(float("nan")).to_numpy())
    return raw_series(np.stack(columns, axis=1))


def _long_series(
    frame: pl.DataFrame, name: str, target: str, task: str, group: str, time: str, notices: list[str]
) -> Dataset:
    """One series a value of `group`, its steps in the order of `time`, channels = the other numeric columns."""
    channels = [c for c in frame.columns if c not in (group, time, target)]
    if not channels:
        raise InputError(f"{name!r} has no value column besides {group!r}, {time!r} and {target!r}")
    moment = _moment(frame[time])
    for channel in channels:
        if infer_column(frame[channel]).kind != "number":
            raise InputError(f"column {channel!r} is no number; a series needs numeric channels; drop it")
    values = np.stack(
        [conform(frame[c], Column(c, "number")).fill_null(float("nan")).to_numpy() for c in channels], axis=1
    )
    labels = frame[target].to_list()
    members: dict[object, list[int]] = {}
    for row, key in enumerate(frame[group].to_list()):
        members.setdefault(key, []).append(row)
    longest = max(map(len, members.values()))
    x = np.full((len(members), len(channels), longest), np.nan, dtype=np.float32)
    firsts = []
    for i, (key, rows) in enumerate(members.items()):
        if len({labels[row] for row in rows}) > 1:
            raise InputError(f"target {target!r} varies within {group} {key!r}; a series has one target")
        ordered = np.array(rows)[np.argsort(moment[rows], kind="stable")]
        x[i, :, : len(ordered)] = values[ordered].T
        firsts.append(rows[0])
    read = read_target(frame[target][firsts], target, task)
    return make_dataset(name, "series", raw_series(x, tuple(channels)), read, target, notices=notices)


def table_from(features: pl.DataFrame, values: Target, notices: list[str], id_check: bool, name: str) -> RawTable:
    kept: list[pl.Series] = []
    found: list[Facts] = []
    for series in features.get_columns():
        column = infer_column(series)
        cells = conform(series, column)
        told = facts_of(cells, column, values)
        reason = unusable(told, id_check and features.width > 1)
        if reason:
            notices.append(reason)
            continue
        notices += remarks(told, values)
        kept.append(cells)
        found.append(told)
    notices += missing(found)
    if not kept:
        raise InputError(f"{name!r} has no usable feature: {'; '.join(notices)}")
    return RawTable(pl.DataFrame(kept), tuple(told.column for told in found))


def facts_of(cells: pl.Series, column: Column, values: Target) -> Facts:
    """What decides whether a column of cells in memory is used, and what is said of it."""
    n, distinct, gaps = len(cells), cells.n_unique(), cells.null_count()
    return Facts(
        column=column,
        rows=n,
        missing=gaps,
        distinct=distinct,
        first=cells[0],
        scattered=column.kind == "category" and distinct - (gaps > 0) > HIGH_CARDINALITY * n,
        running=column.kind == "number" and distinct == n and gaps == 0 and _running(cells),
        tells=_tells_target(cells, values),
    )


def _running(cells: pl.Series) -> bool:
    """Whether these distinct numbers are whole and run up or down."""
    numbers = cells.to_numpy()
    steps = np.diff(numbers)
    return bool((numbers == np.round(numbers)).all() and ((steps > 0).all() or (steps < 0).all()))


def _tells_target(cells: pl.Series, values: Target) -> bool:
    """Whether values of the column and of the target correspond one to one."""
    if values.values.ndim > 1 and values.values.shape[1] > 1:
        return False
    target = values.values.reshape(-1)
    if cells.null_count():
        return False
    levels = cells.n_unique()
    if levels != len(np.unique(target)):
        return False
    if values.task == "reals":
        if cells.dtype != pl.Float64:
            return False
        # Distinct continuous columns pair off by chance: only a straight line counts as giving the target away.
        numbers = cells.to_numpy()
        return bool(abs(np.corrcoef(numbers, target)[0, 1]) > 1 - 1e-9)
    return pl.DataFrame({"a": cells, "b": target}).n_unique() == levels
