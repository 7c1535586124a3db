"""Data frames as texts: which column holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from probatum.data.arrays import Arrays
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.facts import HIGH_CARDINALITY
from probatum.data.frame import Framed, restricted
from probatum.data.read import to_polars
from probatum.data.target import read_target
from probatum.errors import InputError
from probatum.kinds.text.encode import RawTexts, TextEncoder, raw_texts
from probatum.settings import Reading

TEXT_WORDS = 3


def is_text(series: pl.Series) -> bool:
    """Whether cells are free text: over three words on average, and mostly distinct."""
    if series.dtype != pl.String:
        return False
    cells = series.drop_nulls()
    if len(cells) == 0 or cells.n_unique() <= HIGH_CARDINALITY * len(cells):
        return False
    words = cells.str.count_matches(r"\S+").to_numpy()
    return float(words.mean()) > TEXT_WORDS


def from_framed(found: Framed, reading: Reading) -> Dataset:
    """Texts from a column of a frame: the one that is named, or the first; the others are left out with a notice."""
    features, apart = restricted(found, reading)
    values = read_target(found.frame[found.target], found.target, reading.task, small_integers=True)
    column = reading.options.get("text") or features.columns[0]
    unused = [c for c in features.columns if c != column]
    if unused:
        found.notices.append(f"only the text {column!r} is used; left out: {', '.join(map(repr, unused))}")
    raw = raw_texts(features[column].to_list(), column)
    return make_dataset(found.name, "text", raw, values, found.target, **apart, notices=found.notices)


def from_arrays(arrays: Arrays, reading: Reading) -> Dataset:
    """Texts from a list or an array of strings."""
    values = arrays.targets(reading.task, small_integers=True)
    raw = raw_texts([str(text) if isinstance(text, np.str_) else text for text in arrays.x])
    return make_dataset(arrays.name, "text", raw, values, arrays.target, given=arrays.given)


def new_rows(encoder: TextEncoder, source: Any) -> tuple[RawTexts, pl.DataFrame]:
    """New texts, and the frame that they stand in."""
    if isinstance(source, (list, tuple)):
        texts = list(source)
        return raw_texts(texts, encoder.column), pl.DataFrame({encoder.column: texts})
    frame = to_polars(source)
    if encoder.column not in frame.columns:
        raise InputError(f"text column {encoder.column!r} is missing; the data has {', '.join(frame.columns)}")
    return raw_texts(frame[encoder.column].to_list(), encoder.column), frame
