"""Data frames as series: one column a step, or one row a step with a column that says which series it belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from probatum.data.arrays import Arrays
from probatum.data.columns import Column, conform, infer_column
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.frame import Framed, moment_of, restricted
from probatum.data.read import to_polars
from probatum.data.target import read_target
from probatum.errors import InputError
from probatum.kinds.series.encode import RawSeries, SeriesEncoder, raw_series
from probatum.settings import Reading

TIME_NAME = re.compile(r"^t?_?\d+$", re.IGNORECASE)
MIN_WIDE_STEPS = 16


def looks_wide(features: pl.DataFrame) -> bool:
    """Whether columns are named as steps of time are, and hold numbers."""
    names = features.columns
    wide = len(names) >= MIN_WIDE_STEPS and all(TIME_NAME.match(c) for c in names)
    return wide and all(infer_column(features[c]).kind == "number" for c in names)


def from_framed(found: Framed, reading: Reading) -> Dataset:
    """Series from a frame, long where the user says series and names both group and time, else wide."""
    if reading.modality == "series" and reading.group is not None and reading.time is not None:
        return _long(found, reading)
    features, apart = restricted(found, reading)
    values = read_target(found.frame[found.target], found.target, reading.task)
    return make_dataset(found.name, "series", _wide(features), values, found.target, **apart, notices=found.notices)


def from_arrays(arrays: Arrays, reading: Reading) -> Dataset:
    """Series from (n, time) or (n, channels, time) numbers."""
    values = arrays.targets(reading.task, small_integers=True)
    raw = raw_series(arrays.numbers("series"), lengths=arrays.lengths)
    return make_dataset(arrays.name, "series", raw, values, arrays.target, given=arrays.given)


def _wide(features: pl.DataFrame) -> RawSeries:
    columns = []
    for name in features.columns:
        if infer_column(features[name]).kind != "number":
            raise InputError(f"column {name!r} is no number; a series needs one numeric column a time step; drop it")
        columns.append(conform(features[name], Column(name, "number")).fill_null(float("nan")).to_numpy())
    return raw_series(np.stack(columns, axis=1))


def _long(found: Framed, reading: Reading) -> Dataset:
    """One series a value of the group, its steps in the order of time, channels = the other numeric columns."""
    frame, group, time, target = found.frame, str(reading.group), str(reading.time), found.target
    channels = [c for c in frame.columns if c not in (group, time, target)]
    if not channels:
        raise InputError(f"{found.name!r} has no value column besides {group!r}, {time!r} and {target!r}")
    moment = moment_of(frame[time])
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
    read = read_target(frame[target][firsts], target, reading.task)
    return make_dataset(found.name, "series", raw_series(x, tuple(channels)), read, target, notices=found.notices)


def looks_like_series(x: Any) -> bool:
    """Whether an array has three dimensions and does not hold bytes, which are images."""
    return getattr(x, "ndim", 0) == 3 and x.dtype != np.uint8


def new_rows(encoder: SeriesEncoder, source: Any, exclude: Sequence[str] = ()) -> tuple[RawSeries, pl.DataFrame]:
    """New series, and their numbers as a frame; `exclude` names target columns, which are no steps."""
    values = source if isinstance(source, np.ndarray) else _wide_values(encoder, to_polars(source), exclude)
    fits = encoder.channels if (values.shape[1] if values.ndim == 3 else 1) == len(encoder.channels) else ()
    series = raw_series(values, fits)
    return series, pl.DataFrame({"row": np.arange(len(series))})


def _wide_values(features: SeriesEncoder, frame: pl.DataFrame, exclude: Sequence[str]) -> np.ndarray:
    """(n, steps) from the numeric columns of a frame, one a step."""
    columns = [infer_column(frame[name]) for name in frame.columns if name not in exclude]
    steps = [column for column in columns if column.kind == "number"]
    if len(features.channels) != 1 or len(steps) != features.steps:
        raise InputError(
            f"the data has {len(steps)} numeric columns; the model takes {len(features.channels)} channel(s) of "
            f"{features.steps} steps; give one numeric column a step, or an array (n, channels, time)"
        )
    return np.stack([conform(frame[c.name], c).fill_null(float("nan")).to_numpy() for c in steps], axis=1)
