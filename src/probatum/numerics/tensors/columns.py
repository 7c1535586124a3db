"""Columns of tables in units of any size: which of them vary, and so may be divided by their deviation."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 1e-6
"""Deviations up to which a column is asked whether it varies by more than the rounding of its own numbers."""


def varying(x: Tensor) -> Tensor:
    """(d,) bool: whether the columns of rows (n, d), one row or more, vary by more than rounding, whatever their unit.

    Example:
        >>> varying(torch.tensor([[1e-9, 0.3, 5e11], [3e-9, 0.3 + 3e-8, 5e11], [2e-9, 0.3, 5e11]]))
        tensor([ True, False, False])
    """
    spread = x.std(dim=0, correction=0)
    rounding = 8 * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
    equal = (x == x[:1]).all(dim=0)
    return ~equal & (spread > 0) & ((spread > SMALL) | (spread > rounding))
