"""Rows in batches, for networks whose outputs hang on which rows come together."""

from __future__ import annotations

from torch import Tensor, nn


def batches_of(x: Tensor, size: int) -> list[Tensor]:
    """Rows in batches of this size, the last smaller, but none of one row.

    Example:
        >>> import torch
        >>> [len(batch) for batch in batches_of(torch.zeros(9, 2), 4)]
        [4, 5]
    """
    sizes = [size] * (len(x) // size) + ([len(x) % size] if len(x) % size else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [size + 1]
    return list(x.split(sizes))


def of_its_rows(module: nn.Module, training: bool) -> bool:
    """Whether a batch norm takes its statistics from the rows it is given."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return False
    return training or (module.running_mean is None and module.running_var is None)
