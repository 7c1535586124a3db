"""Which entries of rows are measurements that may be moved or drawn anew, and which say what is there."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.spec import Spec


def free_entries(spec: Spec | None, x: Tensor) -> Tensor | None:
    """Where rows hold numbers that may take other values: (n, ...) bool, None where all of them may.

    Codes of categories are no numbers; a mask says what was observed, and what stands where nothing was is no measurement.

    Args:
        spec: what the rows are; None = unknown, all may be moved.
        x: rows (n, ...).
    """
    if spec is None or not (spec.masked or spec.cardinalities):
        return None
    free = torch.ones_like(x, dtype=torch.bool)
    if spec.masked:
        free &= (x[:, -1:] > 0) & (torch.arange(x.shape[1], device=x.device)[:, None] < x.shape[1] - 1)
    else:
        free[:, spec.numeric :] = False
    return free
