"""Small series in which a hidden class can be seen."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.rooms.kind import Toy


def toy(hidden: Tensor, generator: torch.Generator) -> Toy:
    """Noisy waves of 32 steps, whose pace tells the class (n,) in 0 .. 2."""
    time = torch.arange(32) / 32
    waves = torch.stack([torch.sin(6.28 * (c + 1) * time) for c in hidden.tolist()])
    x = (waves + 0.3 * torch.randn(len(hidden), 32, generator=generator))[:, None, :]
    return Toy(x, {"shape": (1, 32)})
