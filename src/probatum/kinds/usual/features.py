"""Rows as numbers, for classical predictors, audits and worlds: whatever is in x, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

    from probatum.spec import Part, Spec


STANDARDISED = True
"""Whether classical predictors standardise the numbers first."""


def matrix(spec: Spec, train: Part) -> Callable[[Part], Any]:
    """A function part -> matrix (n, d), dense or sparse, for classical predictors; fitted on training rows if at all."""
    return lambda part: part.x.flatten(1).numpy()


def fewer(spec: Spec, most: int, rows: int, seed: int) -> list[Any]:
    """Steps of a scikit-learn pipeline that reduce wide matrices, for predictors that cannot take them as they are."""
    from sklearn.decomposition import PCA

    return [PCA(min(64, rows - 1), random_state=seed)] if int(np.prod(spec.shape)) > most else []


def flat(x: Tensor, spec: Spec) -> np.ndarray:
    """(n, d) numbers of encoded rows, for comparing sets of rows."""
    return x.flatten(1).double().numpy()


def scaled_alike(parts: list[np.ndarray], dimensions: int, *, one_unit: bool) -> list[np.ndarray]:
    """Sets of rows (n, d) standardised by what all of them are; more columns than `dimensions` become that many components.

    `one_unit` says that columns share a unit (pixels, steps), so that constant places are not blown up before reducing.
    """
    from sklearn.decomposition import PCA

    whole = np.concatenate(parts)
    centre, spread = whole.mean(axis=0), whole.std(axis=0)
    keep = spread > 1e-9
    scaled = [(values[:, keep] - centre[keep]) / spread[keep] for values in parts]
    if int(keep.sum()) > dimensions and len(whole) > dimensions:
        if one_unit:
            scaled = [values[:, keep] - centre[keep] for values in parts]
        fitted = PCA(dimensions, random_state=0, svd_solver="randomized").fit(np.concatenate(scaled))
        scaled = [fitted.transform(values) for values in scaled]
        unit = np.concatenate(scaled).std()
        scaled = [values / unit for values in scaled]
    return scaled


def input_features(parts: list[Any], dimensions: int) -> list[np.ndarray]:
    """(n, d) numbers of several sets of rows (each with `part.x` and `spec`), scaled and reduced alike."""
    return scaled_alike([flat(rows.part.x, rows.spec) for rows in parts], dimensions, one_unit=True)


def tables(spec: Spec, train: Part, most: int, generator: Generator) -> tuple[Tensor, ...]:
    """What `vectors` adds up: random projections where a row holds more than `most` numbers, else nothing."""
    import torch

    width = train.x[0].numel()
    if width <= most:
        return ()
    return (torch.randn(width, most, generator=generator, dtype=torch.float64) / max(1, width) ** 0.5,)


def vectors(x: Tensor, spec: Spec, tables: tuple[torch.Tensor, ...]) -> Tensor:
    """(n, d) float64: rows as short vectors, through the `tables`."""
    flat = x.flatten(1).double()
    return flat @ tables[0] if tables else flat
