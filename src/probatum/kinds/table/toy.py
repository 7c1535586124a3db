"""A small table in which a hidden class can be seen."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.rooms.kind import Toy


def toy(hidden: Tensor, generator: torch.Generator) -> Toy:
    """Five numbers, two of which tell the class (n,) in 0 .. 2, and a category that does not."""
    numbers = torch.randn(len(hidden), 5, generator=generator)
    numbers[:, 0] += 2.0 * (hidden - 1)
    numbers[:, 1] -= 1.5 * (hidden == 1)
    codes = torch.randint(4, (len(hidden), 1), generator=generator)
    x = torch.cat([numbers, codes.float()], dim=1)
    return Toy(x, {"shape": (6,), "numeric": 5, "cardinalities": (4,)})
