"""Arrays: tensors, lists and .npz files become a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from probatum.data.dataset import Dataset, make_dataset
from probatum.data.frame import table_from
from probatum.data.pipeline import Raw
from probatum.data.split import TEST, TRAIN, given_parts
from probatum.data.target import Target, read_target
from probatum.errors import InputError
from probatum.kinds.image.encode import raw_images
from probatum.kinds.series.encode import raw_series
from probatum.kinds.text.encode import raw_texts


def from_arrays(
    x: Any,
    y: Any,
    *,
    name: str,
    target: str | None = None,
    task: str = "auto",
    modality: str = "auto",
    split: str | Sequence[object] | None = None,
    given: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    classes: Sequence[str] = (),
    feature_names: Sequence[str] = (),
) -> Dataset:
    """A dataset from arrays, tensors or lists: 2-D numbers are a table, words text, 3-D series, 4-D or uint8 images.

    `given` (n,) are parts as numbers; `lengths` (n,) lengths of padded series; `classes` names for codes 0, 1, ...
    """
    x, y = _numpy(x), _numpy(y)
    if len(x) != len(y):
        raise InputError(f"X has {len(x)} rows, but y has {len(y)}; give one target a row")
    if len(x) == 0:
        raise InputError("X has no rows")
    if split is not None:
        given = given_rows(split, len(x))
    kind = _array_modality(x) if modality == "auto" else modality
    title = target or "y"
    if kind == "table":
        return _array_table(x, y, name, title, task, given, classes, feature_names)
    values = _named(read_target(y, title, task, small_integers=True), classes)
    raw: Raw
    if kind == "text":
        raw = raw_texts([_plain(text) for text in x])
    else:
        numbers = np.asarray(x)
        if numbers.dtype.kind not in "iufb":
            raise InputError(f"X has type {numbers.dtype}; {kind} data needs numbers")
        raw = raw_images(numbers) if kind == "image" else raw_series(numbers, lengths=lengths)
    return make_dataset(name, kind, raw, values, title, given=given)


def _array_table(
    x: Any,
    y: Any,
    name: str,
    title: str,
    task: str,
    given: np.ndarray | None,
    classes: Sequence[str],
    feature_names: Sequence[str],
) -> Dataset:
    numbers = np.asarray(x)
    if numbers.ndim != 2 or numbers.dtype.kind not in "iufb":
        raise InputError(f"X has shape {numbers.shape} and type {numbers.dtype}; a table needs (n, columns) of numbers")
    names = list(feature_names) or [f"x{i}" for i in range(numbers.shape[1])]
    frame = pl.DataFrame({column: numbers[:, j].astype(np.float64) for j, column in enumerate(names)})
    values = _named(read_target(y, title, task), classes)
    notices: list[str] = []
    raw = table_from(frame, values, notices, id_check=False, name=name)
    return make_dataset(name, "table", raw, values, title, given=given, notices=notices)


def _named(values: Target, classes: Sequence[str]) -> Target:
    """Give codes 0 .. k-1 their names."""
    if not len(classes) or values.task != "classes":
        return values
    return Target(values.task, values.names, values.values, tuple(str(classes[int(code)]) for code in values.classes))


def _array_modality(x: Any) -> str:
    if isinstance(x, list) or x.dtype.kind in "OUS":
        return "text"
    if x.ndim == 2:
        return "table"
    if x.ndim == 3:
        return "image" if x.dtype == np.uint8 else "series"
    if x.ndim == 4:
        return "image"
    raise InputError(f"X has {x.ndim} dimension(s); give 2 (table), 3 (series, grey images) or 4 (images)")


def _numpy(values: Any) -> Any:
    """Tensors and array-likes as arrays; lists of words stay lists."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, (list, tuple)):
        if any(isinstance(value, str) for value in values):
            return list(values)
        try:
            return np.array(values)
        except ValueError as error:
            raise InputError("X or y is a ragged list; pad its rows to one length") from error
    if hasattr(values, "to_numpy"):
        return values.to_numpy()
    raise InputError(f"X and y must be arrays, tensors or lists, not {type(values).__name__}")


def _plain(text: Any) -> Any:
    return str(text) if isinstance(text, np.str_) else text


def given_rows(split: str | Sequence[object], n: int) -> np.ndarray | None:
    if isinstance(split, str):
        raise InputError(
            f"split {split!r} names a column, but there are none; give one word (train, valid, test) a row"
        )
    if len(split) != n:
        raise InputError(f"split has {len(split)} entries for {n} rows; give one a row")
    return given_parts(list(split), "split")


def from_npz(
    arrays: dict[str, np.ndarray],
    path: Path,
    name: str,
    target: str | None,
    task: str,
    modality: str,
    split: str | Sequence[object] | None,
) -> Dataset:
    """Arrays x and y, or x_train, y_train, x_test, y_test, with len_* for padded series and names in classes."""
    lower = {key.lower(): value for key, value in arrays.items()}
    classes = lower["classes"].tolist() if "classes" in lower else ()
    x, y, lengths, given = lower.get("x"), lower.get("y"), lower.get("len"), None
    if {"x_train", "y_train", "x_test", "y_test"} <= set(lower):
        x, y = (np.concatenate([lower[f"{key}_train"], lower[f"{key}_test"]]) for key in ("x", "y"))
        given = np.repeat([TRAIN, TEST], [len(lower["x_train"]), len(lower["x_test"])])
        if "len_train" in lower and "len_test" in lower:
            lengths = np.concatenate([lower["len_train"], lower["len_test"]])
    if x is None or y is None:
        raise InputError(
            f"{str(path)!r} holds {', '.join(arrays)}; it needs x and y, or x_train, y_train, x_test, y_test"
        )
    return from_arrays(
        x,
        y,
        name=name,
        target=target,
        task=task,
        modality=modality,
        split=split,
        given=given,
        lengths=lengths if modality in ("auto", "series") else None,
        classes=classes,
    )
