"""What an audit asks of tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from probatum.errors import InputError
from probatum.kinds.usual.audit import Place, Plain
from probatum.spec import Spec

NDIM = 2
FRAMED = True
COLUMNS = True


def plain(dataset: Any) -> Plain:
    """The columns as numbers; InputError where one holds words or dates."""
    raw = dataset.raw
    words = [column.name for column in raw.columns if column.kind not in ("number", "boolean")]
    if words:
        raise InputError(
            f"column {words[0]!r} holds no numbers; leave it out (--drop), or give the numbers the model was trained on"
        )
    numbers = raw.frame.select([pl.col(c.name).cast(pl.Float64, strict=False) for c in raw.columns])
    values = numbers.fill_null(float("nan")).to_numpy()
    return Plain(values, tuple(column.name for column in raw.columns), raw.frame)


def parts(spec: Spec, grid: int) -> Iterator[tuple[str, Place]]:
    """The columns."""
    for i in range(spec.shape[0]):
        yield (spec.features[i] if i < len(spec.features) else f"column {i}"), (slice(None), i)
