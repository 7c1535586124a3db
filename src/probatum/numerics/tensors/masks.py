"""Masks: truth values, also where they come as the whole numbers 0 and 1, by which torch would index."""

from __future__ import annotations

import torch
from torch import Tensor


def truth_values(mask: Tensor, name: str = "mask") -> Tensor:
    """A mask as bool, of bool or of the whole numbers 0 and 1, as tokenisers give it.

    Raises:
        TypeError: of floating point; it may mean anything.
        ValueError: other numbers.

    Example:
        >>> torch.arange(3)[truth_values(torch.tensor([0, 1, 1]))]
        tensor([1, 2])
    """
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"{name} has dtype {mask.dtype}; give truth values, e.g. {name} > 0.5")
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(f"{name} holds {int(mask[(mask != 0) & (mask != 1)][0])}; give truth values, or 0 and 1")
    return mask.bool()
