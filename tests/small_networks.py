"""What several test files draw and build: generators, normal numbers, a small network of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def small(outputs: int = 4, seed: int = 0) -> nn.Sequential:
    """Five numbers -> 8 -> 6 -> outputs, tanh between."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, outputs))
