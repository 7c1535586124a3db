"""What an audit asks of a kind of data that says nothing of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probatum.errors import InputError

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from probatum.spec import Spec

NDIM = 0
"""Dimensions of a bare tensor of rows that is taken for this kind of data; 0 = none is."""

FRAMED = False
"""Whether new rows come as data frames, whose columns groups can be made of."""

COLUMNS = False
"""Whether the places of x are columns with names, in units of their own."""

ALL_IN_X = True
"""Whether the encoded tensor is all there is of a row; False where learners may read raw strings."""

NO_PARTS = "rows of this kind have no fixed parts whose content could be permuted"
"""Why `parts` gives none."""

Place = tuple[Any, ...]


class Plain(NamedTuple):
    """Rows as numbers without a pipeline: values (n, ...), names of their columns or channels, the columns as a frame."""

    values: np.ndarray
    names: tuple[str, ...] = ()
    columns: pl.DataFrame | None = None


def plain(dataset: Any) -> Plain:
    """The raw rows as a network without a pipeline takes them; InputError where that is not known."""
    raise InputError(f"{dataset.name} cannot be audited without a pipeline")


def centred_over(spec: Spec) -> tuple[int, ...]:
    """Dimensions of x over which a mean and a deviation are taken; () = values keep their scale."""
    return (0,)


def spread(value: Tensor, spec: Spec) -> Tensor:
    """One number a column or channel in the shape in which it stands beside x."""
    return value[None]


def not_corruptible(x: Tensor, spec: Spec) -> str:
    """Why corruptions would mean nothing for these rows; "" where they mean what they say."""
    return ""


def too_coarse(spec: Spec) -> tuple[str, ...]:
    """Corruptions whose mildest form is not mild for rows of this size."""
    return ()


def parts(spec: Spec, grid: int) -> Iterator[tuple[str, Place]]:
    """Names and places of the parts of x, cut about `grid` times a side; none where parts have no fixed place."""
    return iter(())


def facts(x: Tensor, spec: Spec) -> dict[str, Tensor]:
    """Simple numbers (n,) of each row, by which weak slices are looked for."""
    flat = x.flatten(1).double()
    return {"level": flat.mean(dim=1), "spread": flat.std(dim=1)}


def cuts(length: int, pieces: int) -> list[tuple[int, int]]:
    """Beginnings and ends of so many pieces of a length, about equal."""
    edges = np.unique(np.linspace(0, length, min(pieces, length) + 1).round().astype(int))
    return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]
