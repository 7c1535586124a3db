"""What several test files draw and build: generators, normal numbers, a small network of classes."""

from __future__ import annotations

from collections.abc import Callable

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


class Begins(nn.Module):
    """Adds one to its input in place, as the first module of a network changes rows that are not its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


class WithObjective(nn.Module):
    """A network with an objective of its own, which tells `note` whether it is given the rows that the network was."""

    def __init__(self, net: nn.Module, note: Callable[[bool], None]) -> None:
        super().__init__()
        self.net, self.note = net, note

    def forward(self, x: Tensor) -> Tensor:
        self.given = x.detach().clone()
        return self.net(x)

    def objective(self, x: Tensor, output: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> Tensor:
        self.note(torch.equal(x, self.given))
        return loss(output, y)
