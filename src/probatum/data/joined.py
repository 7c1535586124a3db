"""Test rows of the user's own: a second file, folder, frame or pair of arrays beside the data, joined behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from probatum.data.arrays import Arrays
from probatum.data.columns import conform, infer_column
from probatum.data.split import TEST, TRAIN
from probatum.data.target import read_target
from probatum.errors import InputError
from probatum.settings import Reading

NAMED = 5
"""Classes that an error names."""


def parts_of(train: int, test: int) -> np.ndarray:
    """(train + test,) parts of rows of which the last `test` are the test."""
    return np.repeat([TRAIN, TEST], [train, test])


def joined_frames(frame: pl.DataFrame, test: pl.DataFrame, reading: Reading) -> pl.DataFrame:
    """The frame with the test rows below it; other columns of theirs are left out.

    Raises:
        InputError: there are no test rows, they lack a column, or cells are not what the column holds in the data.
    """
    if test.height == 0:
        raise InputError("there are no test rows; give a file with rows, or leave test out")
    lacking = [c for c in frame.columns if c not in test.columns and c not in reading.drop]
    if lacking:
        raise InputError(
            f"the test rows lack the column(s) {', '.join(map(repr, lacking))} of the data; they have "
            f"{', '.join(map(repr, test.columns))}: give the same columns"
        )
    found = []
    for mine in frame.get_columns():
        theirs = test[mine.name] if mine.name in test.columns else pl.Series(mine.name, [None] * test.height)
        found.append(pl.concat(_alike(mine, theirs)).alias(mine.name))
    return pl.DataFrame(found)


def _alike(mine: pl.Series, theirs: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Both columns with one type; InputError for test cells that are no numbers or dates where the data have them."""
    if mine.dtype.is_nested() or theirs.dtype.is_nested():
        if mine.dtype != theirs.dtype:
            raise InputError(f"column {mine.name!r} is {theirs.dtype} in the test rows and {mine.dtype} in the data")
        return mine, theirs
    column = infer_column(mine)
    free = column.kind in ("category", "boolean") or mine.null_count() == len(mine)
    if mine.dtype == theirs.dtype and (free or mine.dtype != pl.String):
        return mine, theirs
    if mine.null_count() == len(mine):
        return pl.Series(mine.name, [None] * len(mine), dtype=theirs.dtype), theirs
    try:
        return conform(mine, column), conform(theirs, column)
    except InputError as problem:
        raise InputError(f"test rows: {problem}") from problem


def joined_arrays(data: Arrays, test: Arrays) -> Arrays:
    """X and y with the test's behind them; InputError where the data have test rows already, or shapes or types differ."""
    if data.given is not None:
        raise InputError(f"{data.name!r} says itself which rows are the test; leave test out")
    if list(data.classes) != list(test.classes):
        raise InputError(f"the test rows name the classes {list(test.classes)}, the data {list(data.classes)}")
    lengths = None
    if data.lengths is not None and test.lengths is not None:
        lengths = np.concatenate([data.lengths, test.lengths])
    return replace(
        data,
        x=_stacked(data.x, test.x, "X"),
        y=_stacked(data.y, test.y, "y"),
        given=parts_of(len(data.x), len(test.x)),
        lengths=lengths,
    )


def _stacked(mine: Any, theirs: Any, what: str) -> Any:
    told = [(np.shape(one)[1:], np.asarray(one).dtype.kind in "iufb") for one in (mine, theirs)]
    if told[0] != told[1]:
        kinds = [
            f"{'numbers' if numbers else 'words'} of shape (n, {', '.join(map(str, shape))})" for shape, numbers in told
        ]
        raise InputError(f"{what} holds {kinds[1]} in the test rows and {kinds[0]} in the data; give the same form")
    if isinstance(mine, list) and isinstance(theirs, list):
        return mine + theirs
    return np.concatenate([np.asarray(mine), np.asarray(theirs)])


def task_of_training(values: Any, target: str) -> str | None:
    """What the training targets alone ask, classes or reals; None where kinds of data differ (a few whole numbers)."""
    found = {read_target(values, target, "auto", small_integers=small).task for small in (False, True)}
    return found.pop() if len(found) == 1 else None


def check_classes(dataset: Any) -> None:
    """InputError where a class stands in the test rows alone."""
    plan = getattr(dataset, "plan", None)
    if plan is None or plan.labels is None:
        return
    alone = np.setdiff1d(plan.labels[plan.given == TEST], plan.labels[plan.given != TEST])
    if len(alone):
        names = ", ".join(repr(dataset.classes[code]) for code in alone[:NAMED]) + (
            " ..." if len(alone) > NAMED else ""
        )
        raise InputError(
            f"target {dataset.target!r}: class(es) {names} stand in the test rows alone; bring training rows of them, or "
            "leave those test rows out"
        )
