"""Data frames and arrays as tables: what each column is, and what is wrong with it."""

from __future__ import annotations

import numpy as np
import polars as pl

from probatum.data.arrays import Arrays
from probatum.data.columns import Column, conform, infer_column
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.facts import HIGH_CARDINALITY, Facts, missing, remarks, unusable
from probatum.data.frame import Framed, restricted
from probatum.data.target import Target, read_target
from probatum.errors import InputError
from probatum.kinds.table.encode import RawTable
from probatum.settings import Reading


def from_framed(found: Framed, reading: Reading, *, id_check: bool = True) -> Dataset:
    """A table; `id_check` drops running numbers."""
    features, apart = restricted(found, reading)
    values = read_target(found.frame[found.target], found.target, reading.task)
    raw = table_from(features, values, found.notices, id_check, found.name)
    return make_dataset(found.name, "table", raw, values, found.target, **apart, notices=found.notices)


def from_arrays(arrays: Arrays, reading: Reading) -> Dataset:
    """A table from (n, columns) numbers; InputError for other shapes."""
    numbers = np.asarray(arrays.x)
    if numbers.ndim != 2 or numbers.dtype.kind not in "iufb":
        raise InputError(f"X has shape {numbers.shape} and type {numbers.dtype}; a table needs (n, columns) of numbers")
    names = list(arrays.features) or [f"x{i}" for i in range(numbers.shape[1])]
    frame = pl.DataFrame({column: numbers[:, j].astype(np.float64) for j, column in enumerate(names)})
    values = arrays.targets(reading.task, small_integers=False)
    notices: list[str] = []
    raw = table_from(frame, values, notices, id_check=False, name=arrays.name)
    return make_dataset(arrays.name, "table", raw, values, arrays.target, given=arrays.given, notices=notices)


def table_from(features: pl.DataFrame, values: Target, notices: list[str], id_check: bool, name: str) -> RawTable:
    """The columns that can be used; what is left out or strange is added to `notices`."""
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
