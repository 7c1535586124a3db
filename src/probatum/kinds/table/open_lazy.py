"""The door to tables larger than memory: Parquet files become a Dataset that is read as it is used."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl

from probatum.data.columns import Column, conform
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.facts import missing, remarks, unusable
from probatum.data.frame import check_apart, pick_target
from probatum.data.lazy.memory import Sizes, told
from probatum.data.lazy.parquet import ParquetRows
from probatum.data.lazy.scan import Coder, column_kinds, mix, salt_of, scan, stream_target, units_of, without
from probatum.data.split import SPLIT_WORDS, given_parts
from probatum.data.target import Target
from probatum.errors import InputError
from probatum.kinds.series.read import MIN_WIDE_STEPS, TIME_NAME
from probatum.kinds.table.lazy_table import StreamedTable, piece_rows
from probatum.kinds.text.read import is_text
from probatum.settings import Reading


def stream_parquet(source: ParquetRows, limit: float, name: str, reading: Reading) -> Dataset:
    """A dataset that stays in its Parquet files; see `Reading` for what is said of it and `open_dataset` for what is raised.

    Three passes over row groups: words (kinds of columns), target and split columns, then all features. Kept are 8
    bytes a row for the target, 8 for the units of the split, and a few counts a column.
    """
    target, group, time, split, drop = reading.target, reading.group, reading.time, reading.split, reading.drop
    _refuse_kinds(source, reading.modality, reading.options.get("text"))
    check_apart(reading)
    notices = [f"{told(source.size)} in memory: streamed by row groups"]
    sizes = Sizes.of(limit)
    names = [c for c in source.schema if c not in set(drop)]
    for column in (*drop, *(c for c in (group, time) if c), *([split] if isinstance(split, str) else [])):
        _need(source, column, "column")
    rows = piece_rows(source, sizes)
    n = len(source)
    if n == 0:
        raise InputError(f"{name!r} has no rows")
    if split is None and "split" in names and target != "split" and source.schema["split"] == pl.String:
        split = _split_column(source, rows, notices)
    split_name = split if isinstance(split, str) else None
    if target is not None:
        _need(source, target, "target column")
    empty = pl.DataFrame(schema={c: source.schema[c] for c in names})
    target = pick_target(empty, target, {c for c in (group, time, split_name) if c}, notices)
    features = [c for c in names if c not in (target, split_name, group)]
    if not features:
        raise InputError(f"{name!r} has no column besides the target {target!r}; bring features")
    _refuse_found(source, features, reading.modality, rows)
    values = stream_target(source, target, reading.task, rows)
    groups = None if group is None else _coded(source, group, rows).codes.astype(np.int64)
    kinds = column_kinds(source, features, rows)
    moment = None if time is None else _moment(source, kinds[time], rows)
    given = _given(source, split, rows)
    raw, units = _table(source, [kinds[c] for c in features], values, sizes, notices, name)
    return make_dataset(
        name, "table", raw, values, target, groups=groups, moment=moment, given=given, notices=notices, units=units
    )


def _table(
    source: ParquetRows, columns: list[Column], values: Target, sizes: Sizes, notices: list[str], name: str
) -> tuple[StreamedTable, np.ndarray]:
    """The columns that are used, and the units that duplicated rows make."""
    rows = piece_rows(source, sizes)
    id_check = len(columns) > 1
    found = scan(source, columns, values, rows)
    kept, dropped = [], []
    for facts in found.facts:
        reason = unusable(facts, id_check)
        if reason:
            notices.append(reason)
            dropped += [facts.column]
        else:
            notices += remarks(facts, values)
            kept.append(facts)
    notices += missing(kept)
    if not kept:
        raise InputError(f"{name!r} has no usable feature: {'; '.join(notices)}")
    without(source, found.hashes, dropped, rows)
    bits = np.ascontiguousarray(values.values.reshape(len(source), -1)[:, 0]).view(np.uint64)
    hashes = found.hashes
    for first in range(0, len(hashes), rows):
        hashes[first : first + rows] += mix(bits[first : first + rows], salt_of("target"))
    mark = hashlib.sha256(hashes.tobytes()).digest()
    raw = StreamedTable(source, tuple(facts.column for facts in kept), tuple(kept), sizes, mark)
    fitted, checked = sizes.fit_rows(len(kept)), sizes.valid_rows(len(kept))
    if len(source) > min(fitted, checked):
        notices.append(
            f"the pipeline is fitted on at most {fitted} training rows, and at most {checked} validation rows are used, "
            "both drawn by the seed; every training and test row is used"
        )
    return raw, units_of(hashes)


def _refuse_kinds(source: ParquetRows, modality: str, text: str | None) -> None:
    if modality == "image":
        raise InputError("images come as arrays, .npz files or folders, not as data frames")
    if modality in ("text", "series") or text is not None:
        raise InputError(
            f"{modality if modality != 'auto' else 'text'} of {told(source.size)} does not fit in memory, and only "
            "tables and image folders are streamed; raise memory= (--memory, PROBATUM_MEMORY) or bring fewer rows"
        )


def _refuse_found(source: ParquetRows, features: list[str], modality: str, rows: int) -> None:
    """Refuse what would be read as text or series if it were in memory."""
    if modality != "auto":
        return
    if len(features) == 1 and source.schema[features[0]] == pl.String:
        _, frame = next(source.scan(features, rows))
        if is_text(frame[features[0]]):
            _refuse_kinds(source, "text", features[0])
    if len(features) >= MIN_WIDE_STEPS and all(TIME_NAME.match(c) for c in features):
        raise InputError(
            f"{len(features)} columns named by time look like series, which are not streamed; say modality=table to "
            "take them as a table, or raise memory= (--memory, PROBATUM_MEMORY)"
        )


def _need(source: ParquetRows, column: str, what: str) -> None:
    if column not in source.schema:
        names = list(source.schema)
        near = difflib.get_close_matches(column, names, n=3, cutoff=0.4) or names[:10]
        raise InputError(f"{what} {column!r} is not in the data; nearest: {', '.join(map(repr, near))}")


def _coded(source: ParquetRows, column: str, rows: int) -> Coder:
    coder = Coder(len(source), str)
    for first, frame in source.scan([column], rows):
        coder.add(first, frame[column])
    return coder


def _split_column(source: ParquetRows, rows: int, notices: list[str]) -> str | None:
    """A column called split that says train and test is taken as the given split."""
    words: set[str] = set()
    for _, frame in source.scan(["split"], rows):
        words |= {str(word).strip().lower() for word in frame["split"].unique().to_list()}
    if words == {"all"} or (words <= set(SPLIT_WORDS) and len(words) > 1):
        notices.append("column 'split' is taken as the given split and not as a feature; drop it to split by the seed")
        return "split"
    return None


def _given(source: ParquetRows, split: str | Sequence[object] | None, rows: int) -> np.ndarray | None:
    if split is None:
        return None
    if not isinstance(split, str):
        if len(split) != len(source):
            raise InputError(f"split has {len(split)} entries for {len(source)} rows; give one a row")
        return given_parts(list(split), "split")
    coder = _coded(source, split, rows)
    parts = given_parts(list(coder.known), f"split column {split!r}, distinct words")
    return None if parts is None else parts[coder.codes]


def _moment(source: ParquetRows, column: Column, rows: int) -> np.ndarray:
    moment = np.empty(len(source))
    for first, frame in source.scan([column.name], rows):
        if column.kind not in ("number", "date"):
            cell = frame[column.name][0]
            raise InputError(f"time column {column.name!r} holds {cell!r}; give dates like 2024-01-31 or numbers")
        cells = conform(frame[column.name], column, first)
        if cells.null_count():
            row = first + int(cells.is_null().arg_true()[0])
            raise InputError(f"time column {column.name!r} is empty in row {row}; fill it or leave the row out")
        numbers = (cells.to_physical() if column.kind == "date" else cells).cast(pl.Float64)
        moment[first : first + len(cells)] = numbers.to_numpy()
    return moment
