"""Arrays: what examples and targets as tensors, lists or an .npz file hold, before a kind of data takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probatum.data.read import read_npz
from probatum.data.split import TEST, TRAIN, given_parts
from probatum.data.target import Target, read_target
from probatum.errors import InputError


@dataclass(frozen=True)
class Arrays:
    """Examples and targets.

    Attributes:
        x: (n, ...) numbers, or words.
        y: (n,) or (n, outputs).
        name: of the data.
        target: name of the target.
        given: (n,) parts as numbers, or None.
        lengths: (n,) lengths of padded series, or None.
        classes: names for codes 0, 1, ...
        features: names of the columns.
    """

    x: Any
    y: Any
    name: str
    target: str = "y"
    given: np.ndarray | None = None
    lengths: np.ndarray | None = None
    classes: Sequence[str] = ()
    features: Sequence[str] = ()

    def numbers(self, kind: str) -> np.ndarray:
        """x as an array; InputError where it holds no numbers."""
        found = np.asarray(self.x)
        if found.dtype.kind not in "iufb":
            raise InputError(f"X has type {found.dtype}; {kind} data needs numbers")
        return found

    def targets(self, task: str, *, small_integers: bool) -> Target:
        """The targets, their classes named."""
        values = read_target(self.y, self.target, task, small_integers=small_integers)
        if not len(self.classes) or values.task != "classes":
            return values
        names = tuple(str(self.classes[int(code)]) for code in values.classes)
        return Target(values.task, values.names, values.values, names)


def given_arrays(
    x: Any, y: Any, name: str, target: str | None = None, split: str | Sequence[object] | None = None
) -> Arrays:
    """What is given as X and y; InputError for lengths that differ, no rows, and what is no array."""
    x, y = _numpy(x), _numpy(y)
    if len(x) != len(y):
        raise InputError(f"X has {len(x)} rows, but y has {len(y)}; give one target a row")
    if len(x) == 0:
        raise InputError("X has no rows")
    return Arrays(x, y, name, target or "y", None if split is None else given_rows(split, len(x)))


def read_arrays(path: Path, name: str, target: str | None, split: str | Sequence[object] | None = None) -> Arrays:
    """An .npz file of x and y, or x_train, y_train, x_test, y_test, with len_* for padded series and names in classes."""
    arrays = read_npz(path)
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
    found = given_arrays(x, y, name, target, split)
    given = given if split is None else found.given
    return replace(found, given=given, lengths=lengths, classes=classes)


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


def given_rows(split: str | Sequence[object], n: int) -> np.ndarray | None:
    """(n,) parts from one word a row; InputError where there are more or fewer words, or a column is named."""
    if isinstance(split, str):
        raise InputError(
            f"split {split!r} names a column, but there are none; give one word (train, valid, test) a row"
        )
    if len(split) != n:
        raise InputError(f"split has {len(split)} entries for {n} rows; give one a row")
    return given_parts(list(split), "split")
