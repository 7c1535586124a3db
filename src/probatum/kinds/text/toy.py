"""Small texts in which a hidden class can be seen."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.rooms.kind import Toy


def toy(hidden: Tensor, generator: torch.Generator) -> Toy:
    """Eight to twelve of twenty tokens, four of which tell the class (n,) in 0 .. 2."""
    x = torch.randint(2, 20, (len(hidden), 12), generator=generator)
    for row, c in enumerate(hidden.tolist()):
        x[row, 1:5] = 3 + c
        x[row, 8 + row % 4 :] = 0
    text = tuple(" ".join(f"w{t}" for t in row.tolist() if t) for row in x)
    return Toy(x, {"shape": (12,), "vocabulary": 20}, text)
