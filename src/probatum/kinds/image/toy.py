"""Small images in which a hidden class can be seen."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.rooms.kind import Toy


def toy(hidden: Tensor, generator: torch.Generator) -> Toy:
    """Noise of 8 x 8 pixels with two bright columns, whose place tells the class (n,) in 0 .. 2."""
    x = 0.3 * torch.rand(len(hidden), 1, 8, 8, generator=generator)
    for row, c in enumerate(hidden.tolist()):
        x[row, 0, :, 2 * c : 2 * c + 2] += 0.6
    return Toy(x, {"shape": (1, 8, 8)})
