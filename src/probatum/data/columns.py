"""Columns of a table: what kind each one is, and how its cells become numbers, words or dates."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from probatum.errors import InputError

MISSING_WORDS = ("", "?", "na", "n/a", "nan", "null")
"""Cells that mean "missing" in a table (compared in lower case, without outer spaces); never applied to text."""

BOOLEAN_WORDS = {"true", "false", "yes", "no", "t", "f", "y", "n"}
DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
)
READINGS = ("boolean", "number", *DATE_FORMATS)
"""What a column of words may be read as, in the order in which it is tried."""
LEADING_ZERO = re.compile(r"^0\d+$")


@dataclass(frozen=True)
class Column:
    """Name and kind of one column: number, category, boolean or date; `format` is how its dates are written."""

    name: str
    kind: str
    format: str = ""


def blank_missing(series: pl.Series) -> pl.Series:
    """Strip the words of a String column and turn those that mean "missing" into nulls."""
    words = series.str.strip_chars()
    return words.set(words.str.to_lowercase().is_in(list(MISSING_WORDS)).fill_null(False), None)


def infer_column(series: pl.Series) -> Column:
    """Kind of a column from its type and, for words, from its cells; raises InputError for nested types."""
    dtype = series.dtype
    if dtype == pl.Boolean:
        return Column(series.name, "boolean")
    if dtype.is_numeric() or dtype == pl.Null or dtype == pl.Duration:
        return Column(series.name, "number")
    if dtype in (pl.Date, pl.Datetime):
        return Column(series.name, "date")
    if dtype in (pl.Categorical, pl.Enum):
        return Column(series.name, "category")
    if dtype != pl.String:
        raise InputError(f"column {series.name!r} has type {dtype}; give numbers, words, booleans or dates, or drop it")
    return _infer_words(series)


def _infer_words(series: pl.Series) -> Column:
    cells = blank_missing(series).drop_nulls().unique()
    if len(cells) == 0:
        return Column(series.name, "number")
    return words_column(series.name, next((reading for reading in READINGS if can_be(cells, reading)), None))


def can_be(cells: pl.Series, reading: str) -> bool:
    """Whether all these distinct words can be read so; `reading` is one of READINGS."""
    if reading == "boolean":
        return set(cells.str.to_lowercase().to_list()) <= BOOLEAN_WORDS
    if reading == "number":
        # Codes such as postal code 01234 would lose their zeros as numbers.
        coded = any(LEADING_ZERO.match(cell) for cell in cells.to_list())
        return not coded and cells.cast(pl.Float64, strict=False).null_count() == 0
    return cells.str.to_datetime(reading, strict=False, time_unit="us").null_count() == 0


def words_column(name: str, reading: str | None) -> Column:
    """The column of words that can be read so; None = only as categories."""
    if reading is None:
        return Column(name, "category")
    return Column(name, reading) if reading in ("boolean", "number") else Column(name, "date", reading)


def conform(series: pl.Series, column: Column, first: int = 0) -> pl.Series:
    """Cells of `series` as Float64 (number), String (category, boolean) or Datetime in us (date); null = missing.

    Raises InputError that names the column, the row (counted from `first`) and the cell that does not fit the kind.
    """
    raw = series
    if series.dtype == pl.String:
        series = blank_missing(series)
    if column.kind == "number":
        return _numbers(series, raw, column, first)
    if column.kind == "date":
        return _dates(series, raw, column, first)
    if series.dtype == pl.Boolean:
        words = series.cast(pl.String)
    elif series.dtype.is_float() and column.kind == "category":
        words = pl.Series(
            series.name,
            [None if v is None or v != v else str(int(v)) if v == int(v) else str(v) for v in series.to_list()],
            dtype=pl.String,
        )
    else:
        words = series.cast(pl.String)
    return words.str.to_lowercase() if column.kind == "boolean" else words


def _numbers(series: pl.Series, raw: pl.Series, column: Column, first: int) -> pl.Series:
    if series.dtype == pl.Duration:
        series = series.dt.total_microseconds() / 1e6
    if series.dtype not in (pl.String, pl.Boolean, pl.Null) and not series.dtype.is_numeric():
        raise InputError(f"column {column.name!r} has type {raw.dtype}, but it was a number in training; convert it")
    numbers = series.cast(pl.Float64, strict=False)
    _same_missing(series, numbers, raw, column, "a number", first)
    infinite = numbers.is_infinite().fill_null(False)
    if infinite.any():
        row = first + int(infinite.arg_true()[0])
        raise InputError(f"column {column.name!r} is infinite in row {row}; replace it by a number or leave it empty")
    return numbers.fill_nan(None)


def _dates(series: pl.Series, raw: pl.Series, column: Column, first: int) -> pl.Series:
    if series.dtype == pl.String:
        forms = (column.format,) if column.format else DATE_FORMATS
        for form in forms:
            dates = series.str.to_datetime(form, strict=False, time_unit="us")
            if dates.null_count() == series.null_count():
                return dates
        _same_missing(series, dates, raw, column, f"a date like {forms[0]}", first)
        return dates
    if series.dtype not in (pl.Date, pl.Datetime, pl.Null):
        raise InputError(f"column {column.name!r} has type {raw.dtype}, but it held dates in training; convert it")
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone is not None:
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return series.cast(pl.Datetime("us"))


def _same_missing(before: pl.Series, after: pl.Series, raw: pl.Series, column: Column, what: str, first: int) -> None:
    lost = after.is_null() & before.is_not_null()
    if lost.any():
        row = int(lost.arg_true()[0])
        raise InputError(
            f"column {column.name!r}, row {first + row}: {raw[row]!r} is not {what}; mend or empty the cell"
        )


def floats(series: pl.Series) -> np.ndarray:
    """Numbers, or seconds of dates, as float64; missing -> NaN."""
    if series.dtype == pl.Float64:
        return series.to_numpy()
    if series.dtype == pl.Datetime:
        series = series.to_physical().cast(pl.Float64) / 1e6
    return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def canonical(values: np.ndarray) -> np.ndarray:
    """The same numbers with one bit pattern for every NaN, and for both zeros."""
    return np.where(np.isnan(values), np.nan, values + 0.0)
