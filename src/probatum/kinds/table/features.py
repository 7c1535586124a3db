"""Rows of tables as numbers: categories become columns of 0 and 1, or, with very many levels, stay codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from probatum.kinds.usual.features import scaled_alike
from probatum.kinds.usual.features import tables as usual_tables
from probatum.spec import Part, Spec

MOST_LEVELS = 64


def matrix(spec: Spec, train: Part) -> Callable[[Part], Any]:
    """A function part -> matrix (n, d) for classical predictors."""
    return lambda part: one_hot(part.x, spec).numpy()


def one_hot(x: Tensor, spec: Spec) -> Tensor:
    """Numbers, then every category as 0/1 columns (as its code, where it has more than 64 levels)."""
    if not spec.cardinalities:
        return x.flatten(1)
    columns = [x[:, : spec.numeric]]
    for i, size in enumerate(spec.cardinalities):
        codes = x[:, spec.numeric + i].long()
        few = size <= MOST_LEVELS
        columns.append(torch.nn.functional.one_hot(codes, size).float() if few else codes[:, None].float())
    return torch.cat(columns, dim=1)


def flat(x: Tensor, spec: Spec) -> np.ndarray:
    """(n, d) numbers of encoded rows, for comparing sets of rows."""
    return one_hot(x, spec).double().numpy()


def input_features(parts: list[Any], dimensions: int) -> list[np.ndarray]:
    """(n, d) numbers of several sets of rows, scaled and reduced alike; columns have units of their own."""
    return scaled_alike([flat(rows.part.x, rows.spec) for rows in parts], dimensions, one_unit=False)


def tables(spec: Spec, train: Part, most: int, generator: Generator) -> tuple[Tensor, ...]:
    """A projection of the numbers, and a random vector for each level of each category."""
    if not spec.cardinalities:
        return usual_tables(spec, train, most, generator)
    numbers = torch.randn(spec.numeric, most, generator=generator, dtype=torch.float64) / max(1, spec.numeric) ** 0.5
    levels = (torch.randn(n, most, generator=generator, dtype=torch.float64) for n in spec.cardinalities)
    return (numbers, *levels)


def vectors(x: Tensor, spec: Spec, tables: tuple[Tensor, ...]) -> Tensor:
    """(n, d) float64: projected numbers plus the vectors of the codes."""
    if not spec.cardinalities:
        flat = x.flatten(1).double()
        return flat @ tables[0] if tables else flat
    total = x[:, : spec.numeric].double() @ tables[0]
    for column, table in enumerate(tables[1:]):
        total = total + table[x[:, spec.numeric + column].long()]
    return total
