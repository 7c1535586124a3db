"""The memory network that fast and slow learning trains, and the nets that predict gradients of its controllers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Weights = Mapping[str, Tensor]


class State(NamedTuple):
    """What goes from step to step: memory (n, slots, width), and output and cell of both LSTMs, (n, 2 width) each."""

    memory: Tensor
    read: Tensor
    write: Tensor


Passing = Callable[[str, Tensor], Tensor]
"""(controller, its output u) -> what goes on in its place."""


class Step(NamedTuple):
    """One step: the controllers' outputs u by name, the logits (n, classes), and the state it leaves."""

    outputs: dict[str, Tensor]
    logits: Tensor
    state: State


class MemoryNet(nn.Module):
    """The memory network.

    Args:
        features: of an input step.
        classes: of an output step.
        width: of memory rows and controllers.
        slots: rows of the memory.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> net = MemoryNet(3, 2, width=8, slots=4)
        >>> tuple(net(torch.zeros(5, 6, 3)).shape)
        (5, 6, 2)
    """

    def __init__(self, features: int, classes: int, width: int = 32, slots: int = 16) -> None:
        super().__init__()
        if min(features, classes, width, slots) < 1:
            raise ValueError(
                f"features {features}, classes {classes}, width {width}, slots {slots}; all must be at least 1"
            )
        self.width, self.slots = width, slots
        self.encoder = nn.Sequential(nn.Linear(features, width), nn.Tanh())
        self.read, self.write = nn.LSTMCell(width, width), nn.LSTMCell(width, width)
        self.compose = nn.Sequential(nn.Linear(2 * width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(2 * width, classes)
        self.first = nn.Parameter(0.1 * torch.randn(slots, width))

    def begin(self, n: int) -> State:
        """The state before the first step: the learned memory, zeros elsewhere."""
        zeros = self.first.new_zeros(n, 2 * self.width)
        return State(self.first.expand(n, -1, -1), zeros, zeros)

    def step(
        self,
        x: Tensor,
        state: State,
        fast: Mapping[str, Weights] | None = None,
        passing: Passing = lambda _name, u: u,
    ) -> Step:
        """One step on x (n, features); `fast` holds the controllers' weights of now, None = the module's own."""
        given = fast or {}
        q_cell = passing("read", self._cell("read", self.encoded(x), state.read, given))
        q = q_cell[:, : self.width]
        a = attend(state.memory, q)
        m = (a.unsqueeze(2) * state.memory).sum(dim=1)
        both = torch.cat([q, m], dim=1)
        c = functional_call(self.compose, dict(given["compose"]), (both,)) if "compose" in given else self.compose(both)
        c = passing("compose", c)
        h_cell = passing("write", self._cell("write", c, state.write, given))
        memory = write(state.memory, a, h_cell[:, : self.width])
        logits = self.head(torch.cat([c, m], dim=1))
        return Step({"read": q_cell, "compose": c, "write": h_cell}, logits, State(memory, q_cell, h_cell))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, t, features) -> logits (n, t, classes)."""
        check_sequence(x)
        state, found = self.begin(len(x)), []
        for t in range(x.shape[1]):
            done = self.step(x[:, t], state)
            state = done.state
            found.append(done.logits)
        return torch.stack(found, dim=1)

    def encoded(self, x: Tensor) -> Tensor:
        """What the controllers read of x (n, features), in the network's precision."""
        return self.encoder(x.to(self.first.dtype))

    def _cell(self, name: str, x: Tensor, before: Tensor, given: Mapping[str, Weights]) -> Tensor:
        """Output and cell side by side."""
        cell: nn.LSTMCell = getattr(self, name)
        parts = (before[:, : self.width], before[:, self.width :])
        found = functional_call(cell, dict(given[name]), (x, parts)) if name in given else cell(x, parts)
        return torch.cat(found, dim=1)


def attend(memory: Tensor, q: Tensor) -> Tensor:
    """softmax(M q) (n, slots)."""
    return (memory @ q.unsqueeze(2)).squeeze(2).softmax(dim=1)


def write(memory: Tensor, a: Tensor, h: Tensor) -> Tensor:
    """M (1 - a 1^T) + a h^T: with a one-hot a exactly that row becomes h."""
    return memory * (1 - a.unsqueeze(2)) + a.unsqueeze(2) * h.unsqueeze(1)


class Feedback(nn.Module):
    """S: predicts dL/du of each controller from u and the label; starts at zero. One may serve several networks.

    Args:
        classes: of the labels.
        width: of the memory network.
        hidden: units of each net.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, classes: int, width: int, hidden: int = 64) -> None:
        super().__init__()
        if min(classes, width, hidden) < 1:
            raise ValueError(f"classes {classes}, width {width}, hidden {hidden}; all must be at least 1")
        sizes = {"read": 2 * width, "compose": width, "write": 2 * width}
        self.label = nn.Embedding(classes, width)
        self.nets = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(s + width, hidden), nn.ReLU(), nn.Linear(hidden, s)) for n, s in sizes.items()}
        )
        for net in self.nets.values():
            nn.init.zeros_(net[2].weight)  # type: ignore[index,arg-type]
            nn.init.zeros_(net[2].bias)  # type: ignore[index,arg-type]

    def forward(self, name: str, u: Tensor, y: Tensor) -> Tensor:
        """u (n, size), y (n,) -> the gradient predicted, of u's shape."""
        return self.nets[name](torch.cat([u, self.label(y)], dim=1))


def check_sequence(x: Tensor) -> None:
    """ValueError unless x is (n, t, features)."""
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; a memory reads sequences (n, t, features)")
