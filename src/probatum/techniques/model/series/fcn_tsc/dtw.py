"""Dynamic time warping, for many pairs of series at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def dtw(first: Array, second: Array, *, window: int | None = None) -> Array:
    """Dynamic time warping distances (Sakoe and Chiba 1978) between all pairs.

    Args:
        first: (m, channels, S) series.
        second: (n, channels, T) series.
        window: largest |i - j| that may be aligned, at least |S - T|; None = any.

    Returns:
        (m, n): the root of the least sum of squared differences along an alignment.

    Raises:
        ValueError: shapes that do not fit, or a window too narrow for any alignment.
    """
    if first.ndim != 3 or second.ndim != 3 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"series have shapes {first.shape} and {second.shape}; give (m, channels, S), (n, channels, T)"
        )
    m, _, rows = first.shape
    n, _, columns = second.shape
    reach = max(rows, columns) if window is None else window
    if reach < abs(rows - columns):
        raise ValueError(
            f"window is {window}; series of lengths {rows} and {columns} need at least {abs(rows - columns)}"
        )
    above = np.full((columns + 1, m, n), np.inf)
    above[0] = 0.0
    for i in range(rows):
        here = np.full((columns + 1, m, n), np.inf)
        for j in range(max(0, i - reach), min(columns, i + reach + 1)):
            cost = ((first[:, None, :, i] - second[None, :, :, j]) ** 2).sum(axis=2)
            here[j + 1] = cost + np.minimum(np.minimum(above[j + 1], above[j]), here[j])
        above = here
    return np.sqrt(above[columns])
