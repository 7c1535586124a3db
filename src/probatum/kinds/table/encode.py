"""Tables: the raw columns, and the encoder fitted on training rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from probatum.data.columns import Column, canonical, conform, floats
from probatum.data.read import to_polars
from probatum.errors import InputError

DATE_PARTS = ("year", "month", "day", "weekday", "hour", "seconds")
MAX_QUANTILES = 1000
BOUND = 5.0
"""Scaled numbers lie in [-BOUND, BOUND]."""


@dataclass(frozen=True)
class RawTable:
    """Feature columns as they were read: Float64 numbers, String categories, Datetime dates; null = missing."""

    frame: pl.DataFrame
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return self.frame.height

    def take(self, rows: np.ndarray) -> RawTable:
        """The rows with these numbers, in this order."""
        return RawTable(self.frame[rows], self.columns)

    def digest(self, sha: hashlib._Hash) -> None:
        """Feed schema and values to a hash, independent of the library that the table came from."""
        sha.update(json.dumps([asdict(column) for column in self.columns]).encode())
        for column in self.columns:
            series = self.frame[column.name]
            if column.kind in ("category", "boolean"):
                sha.update(json.dumps(series.to_list()).encode())
            else:
                sha.update(canonical(floats(series)).tobytes())

    def row_keys(self) -> list[bytes]:
        """One key a row; rows with equal cells have equal keys."""
        parts = [
            canonical(floats(self.frame[c.name]))
            if c.kind in ("number", "date")
            else self.frame[c.name].rank("dense").fill_null(0).cast(pl.Float64).to_numpy()
            for c in self.columns
        ]
        matrix = np.ascontiguousarray(np.stack(parts, axis=1))
        width = matrix.shape[1] * 8
        data = matrix.tobytes()
        return [data[i : i + width] for i in range(0, len(data), width)]

    def describe(self) -> list[dict[str, Any]]:
        """Name, kind, missing cells and distinct values of each column."""
        return [
            {
                "name": c.name,
                "kind": c.kind,
                "missing": int(self.frame[c.name].null_count()),
                "n_unique": int(self.frame[c.name].drop_nulls().n_unique()),
            }
            for c in self.columns
        ]


def read_rows(frame: pl.DataFrame, columns: Sequence[Column]) -> RawTable:
    """New rows in the known columns; raises InputError that lists the columns `frame` lacks."""
    missing = [c.name for c in columns if c.name not in frame.columns]
    if missing:
        raise InputError(f"column(s) {', '.join(map(repr, missing))} missing; the data has {', '.join(frame.columns)}")
    return RawTable(pl.DataFrame([conform(frame[c.name], c) for c in columns]), tuple(columns))


def new_frame(encoder: TableEncoder, source: Any) -> pl.DataFrame:
    """New rows as a frame; an array must have one column for each of the encoder's."""
    if not isinstance(source, np.ndarray):
        return to_polars(source)
    if source.ndim != 2 or source.shape[1] != len(encoder.columns):
        raise InputError(f"the array is {source.shape}; the model takes {len(encoder.columns)} columns")
    return pl.DataFrame({c.name: source[:, j] for j, c in enumerate(encoder.columns)})


def as_in_pretraining(dataset: Any, encoder: TableEncoder) -> Any:
    """A dataset whose rows are encoded by this encoder; InputError where columns or their kinds differ."""
    raw = dataset.raw
    here = {column.name: column.kind for column in raw.columns}
    there = {column.name: column.kind for column in encoder.columns}
    unlike = sorted(name for name in {**here, **there} if here.get(name) != there.get(name))
    if unlike:
        raise InputError(
            f"{dataset.name} has other columns than the data of pretraining ({', '.join(unlike[:6])}); tables need "
            "the same columns on both sides: leave out the others with drop"
        )
    return replace(dataset, raw=RawTable(raw.frame, encoder.columns), encoder=encoder)


@dataclass(frozen=True)
class TableEncoder:
    """Table cells -> (n, numeric + categories) float32.

    Numbers and date parts are mapped through the training distribution function to the normal distribution
    (as scikit-learn's QuantileTransformer, but ties take their middle rank everywhere and the ends stay half a rank
    inside, so that two-valued columns do not become +-5). Missing numbers become 0, the place of the training
    median, and a 0/1 column marks them where training rows have any. Category codes count from 1 in the order of
    the words; 0 is missing, unseen or rare (fewer than max(3, 0.1 %) training rows).

    Attributes:
        columns: the columns it reads.
        quantiles: (q, k) knots of the k scaled numbers.
        trained: (k,) training rows with a value, which set how far out the ends lie.
        marked: names of numbers with a missing-value marker.
        levels: category column -> its words.
    """

    columns: tuple[Column, ...]
    quantiles: np.ndarray
    trained: np.ndarray
    marked: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(cls, raw: RawTable) -> TableEncoder:
        """Read medians, quantiles and levels off these (training) rows."""
        names = _number_names(raw.columns)
        count = max(2, min(MAX_QUANTILES, len(raw)))
        grid = np.linspace(0.0, 1.0, count)
        quantiles = np.zeros((count, len(names)))
        trained = np.zeros(len(names), dtype=np.int64)
        for j, numbers in enumerate(_number_columns(raw)):
            seen = numbers[~np.isnan(numbers)]
            trained[j] = len(seen)
            if len(seen):
                # Rounding in the interpolation must not break the order of the knots.
                quantiles[:, j] = np.maximum.accumulate(np.quantile(seen, grid))
        marked = tuple(name for j, name in enumerate(names) if trained[j] < len(raw))
        rare = max(3, math.ceil(0.001 * len(raw)))
        levels = {}
        for column in raw.columns:
            if column.kind in ("category", "boolean"):
                counts = raw.frame[column.name].drop_nulls().value_counts(name="count")
                words = counts.filter(pl.col("count") >= rare)[column.name].to_list()
                levels[column.name] = tuple(sorted(words))
        return cls(raw.columns, quantiles, trained, marked, levels)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Names of the leading numeric columns of x."""
        return _number_names(self.columns) + tuple(f"{name} is missing" for name in self.marked)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each category column, code 0 included."""
        return tuple(len(words) + 1 for words in self.levels.values())

    def encode(self, raw: RawTable) -> Tensor:
        """(n, numeric + categories) float32."""
        names = _number_names(self.columns)
        x = np.empty((len(raw), len(names) + len(self.marked) + len(self.levels)), dtype=np.float32)
        # One column at a time, so that no copy of the whole in double precision is held.
        for j, numbers in enumerate(_number_columns(raw)):
            x[:, j] = _scale(numbers, self.quantiles[:, j], int(self.trained[j]))
            if names[j] in self.marked:
                x[:, len(names) + self.marked.index(names[j])] = np.isnan(numbers)
        for j, (name, words) in enumerate(self.levels.items(), start=len(names) + len(self.marked)):
            table = {word: code for code, word in enumerate(words, start=1)}
            x[:, j] = [table.get(word, 0) for word in raw.frame[name].to_list()]
        return torch.from_numpy(x)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What to save: JSON values and arrays."""
        meta = {
            "columns": [asdict(column) for column in self.columns],
            "marked": list(self.marked),
            "levels": [[name, list(words)] for name, words in self.levels.items()],
        }
        return meta, {"quantiles": self.quantiles, "trained": self.trained}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TableEncoder:
        """Rebuild from `state`."""
        return cls(
            tuple(Column(**column) for column in meta["columns"]),
            arrays["quantiles"],
            arrays["trained"],
            tuple(meta["marked"]),
            {name: tuple(words) for name, words in meta["levels"]},
        )


def _number_names(columns: Sequence[Column]) -> tuple[str, ...]:
    numbers = [c.name for c in columns if c.kind == "number"]
    dates = [f"{c.name} {part}" for c in columns if c.kind == "date" for part in DATE_PARTS]
    return tuple(numbers + dates)


def _number_columns(raw: RawTable) -> Iterator[np.ndarray]:
    """(n,) float64 of each number and each part of a date, in the order of `_number_names`."""
    for column in raw.columns:
        if column.kind == "number":
            yield floats(raw.frame[column.name])
    for column in raw.columns:
        if column.kind == "date":
            dates = raw.frame[column.name]
            for part in (dates.dt.year(), dates.dt.month(), dates.dt.day(), dates.dt.weekday(), dates.dt.hour(), dates):
                yield floats(part)


def _scale(values: np.ndarray, knots: np.ndarray, trained: int) -> np.ndarray:
    """Standard normal scores of `values` under the distribution with these quantiles; missing -> 0."""
    if trained == 0 or knots[0] == knots[-1]:
        return np.zeros_like(values)
    grid = np.linspace(0.0, 1.0, len(knots))
    # The mean of both directions gives tied values the middle of their ranks.
    # In sorted order each search starts where the last one ended: the same numbers in half the time.
    order = np.argsort(values)
    ascending = values[order]
    ahead = np.interp(ascending, knots, grid)
    back = 1.0 - np.interp(-ascending, -knots[::-1], grid)
    inside = 0.5 / trained
    share = np.empty_like(values)
    share[order] = np.clip(0.5 * (ahead + back), inside, 1.0 - inside)
    scores = torch.special.ndtri(torch.from_numpy(share)).numpy()
    return np.where(np.isnan(values), 0.0, np.clip(scores, -BOUND, BOUND))
