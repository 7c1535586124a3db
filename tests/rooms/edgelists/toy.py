"""Small graphs in which a hidden class can be seen."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.rooms.kind import Toy


def toy(hidden: Tensor, generator: torch.Generator) -> Toy:
    """Six nodes, the denser the higher the class."""
    drawn = torch.rand(len(hidden), 6, 6, generator=generator) < 0.15 + 0.3 * hidden[:, None, None]
    upper = torch.triu(drawn.float(), diagonal=1)
    return Toy(0.5 * (upper + upper.transpose(1, 2)), {"shape": (6, 6)})
