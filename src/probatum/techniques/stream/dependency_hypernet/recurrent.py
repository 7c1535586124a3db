"""Hypernetworks that make a weight vector chunk by chunk: from an LSTM, each chunk after the others, or each by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from probatum.numerics.hypernetworks.hypernet import Trunk


def drawn(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter of uniform draws in [-bound, bound]."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


class Chunks(nn.Module):
    """What both kinds share: embeddings of the chunks, one readout for all of them, scales of the values.

    Args:
        centres, deviations: mean and standard deviation (numel,) that each value should have at first.
        task_size: numbers of a task's embedding.
        chunk: values made at one time, at least 1.
        chunk_size: numbers of a chunk's embedding.
        generator: for all first values.
    """

    centres: Tensor
    deviations: Tensor

    def __init__(
        self,
        centres: Tensor,
        deviations: Tensor,
        task_size: int,
        chunk: int,
        chunk_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.numel, self.inputs = len(centres), task_size + chunk_size
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("deviations", deviations, persistent=False)
        self.chunks = nn.Parameter(torch.randn(math.ceil(self.numel / chunk), chunk_size, generator=generator))
        self.readouts = nn.ParameterList()
        self.bias = nn.Parameter(torch.zeros(chunk))

    def states(self, task: Tensor) -> Tensor:
        """(tasks, task_size) -> (tasks, chunks, units)."""
        raise NotImplementedError(f"{type(self).__name__} has no states")

    def conditions(self, task: Tensor) -> Tensor:
        """Each task beside each chunk: (tasks, chunks, task_size + chunk_size)."""
        tasks, chunks = len(task), len(self.chunks)
        return torch.cat([task[:, None].expand(-1, chunks, -1), self.chunks.expand(tasks, -1, -1)], dim=2)

    def forward(self, task: Tensor) -> tuple[Tensor, Tensor]:
        """(tasks, task_size) -> values (tasks, numel) and states (tasks, chunks, units)."""
        states = self.states(task)
        made, start = self.bias.expand(*states.shape[:2], -1), 0
        for readout in self.readouts:  # one after another, laid out as ever: what is grown adds zeros exactly
            units = readout.shape[1]
            made = made + states[..., start : start + units].contiguous() @ readout.T
            start += units
        return self.centres + self.deviations * made.flatten(1)[:, : self.numel], states

    @torch.no_grad()
    def draw_readout(self, generator: torch.Generator) -> None:
        """A first readout that gives values of variance 1 for tasks drawn from N(0, 1), by the states' own length."""
        states = self.states(torch.randn(8, self.inputs - self.chunks.shape[1], generator=generator))
        length = float(states.square().sum(dim=2).mean())
        weights = torch.randn(len(self.bias), states.shape[2], generator=generator) / math.sqrt(max(length, 1e-12))
        self.readouts.append(nn.Parameter(weights))


class RecurrentChunks(Chunks):
    """Chunk after chunk from one LSTM: s_l = LSTM([task; chunk l], s_(l-1)), chunk l = readout of s_l.

    Units come in blocks, the first and those grown later. A grown block reads from all units; older blocks read from it, and
    the readout too, through weights that are zero at first, so that all values made stay as they are, to the bit.

    Args:
        centres, deviations, task_size, chunk, chunk_size, generator: see `Chunks`.
        hidden: units at first, at least 1.
        independent: start every chunk from a state of zeros.
        grows: whether units may be added later; where they may not, all chunks are one fused operation of torch, many times
            as fast and equal to rounding.
    """

    def __init__(
        self,
        centres: Tensor,
        deviations: Tensor,
        task_size: int,
        hidden: int,
        chunk: int,
        chunk_size: int,
        generator: torch.Generator,
        independent: bool = False,
        grows: bool = True,
    ) -> None:
        super().__init__(centres, deviations, task_size, chunk, chunk_size, generator)
        self.independent, self.grows = independent, grows
        self.sizes: list[int] = []
        self.inward, self.offsets = nn.ParameterList(), nn.ParameterList()
        self.across = nn.ModuleList()  # across[k][j]: gates of block k from units of block j
        self._add_block(hidden, generator)
        self.draw_readout(generator)

    def _add_block(self, units: int, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(sum(self.sizes) + units)
        place = self.bias.device
        self.inward.append(drawn((4 * units, self.inputs), 1 / math.sqrt(self.inputs), generator).to(place))
        offset = torch.zeros(4 * units)
        offset[units : 2 * units] = 1.0  # what is in a cell is kept at first
        self.offsets.append(nn.Parameter(offset.to(place)))
        for row, old in zip(self.across, self.sizes, strict=True):
            row.append(nn.Parameter(torch.zeros(4 * old, units, device=place)))
        self.sizes.append(units)
        self.across.append(nn.ParameterList([drawn((4 * units, j), bound, generator).to(place) for j in self.sizes]))

    def grow(self, units: int, generator: torch.Generator) -> None:
        """Add units; every value made stays as it is, to the bit.

        Raises:
            ValueError: units below 1, or made with grows=False, which keeps values to rounding alone.
        """
        if units < 1:
            raise ValueError(f"units is {units}; growth needs at least 1")
        if not self.grows:
            raise ValueError("grows is False, so that no units can be added to the bit; make it with grows=True")
        self._add_block(units, generator)
        self.readouts.append(nn.Parameter(torch.zeros(len(self.bias), units, device=self.bias.device)))

    def states(self, task: Tensor) -> Tensor:
        """(tasks, task_size) -> (tasks, chunks, units)."""
        given = self.conditions(task)
        if not self.grows and not self.independent:
            return self._fused(given)
        gates = [given @ w.T + b for w, b in zip(self.inward, self.offsets, strict=True)]
        zeros = [given.new_zeros(len(task), size) for size in self.sizes]
        hidden, cells, found = zeros, list(zeros), []
        for step in range(given.shape[1]):
            if self.independent:
                hidden, cells = zeros, list(zeros)
            fresh = []
            for k, row in enumerate(self.across):
                total = gates[k][:, step]
                for j, weights in enumerate(row):
                    total = total + hidden[j] @ weights.T
                enter, keep, new, leave = total.chunk(4, dim=1)
                cells[k] = keep.sigmoid() * cells[k] + enter.sigmoid() * new.tanh()
                fresh.append(leave.sigmoid() * cells[k].tanh())
            hidden = fresh
            found.append(torch.cat(hidden, dim=1))
        return torch.stack(found, dim=1)

    def _fused(self, given: Tensor) -> Tensor:
        zeros = given.new_zeros(1, len(given), self.sizes[0])
        weights = [self.inward[0], self.across[0][0], self.offsets[0], torch.zeros_like(self.offsets[0])]  # type: ignore[index]
        # biases, one layer, no dropout, training (for the backward pass), one direction, rows first
        return torch.lstm(given, (zeros, zeros), weights, True, 1, 0.0, True, False, True)[0]


class IndependentChunks(Chunks):
    """Every chunk by itself from one MLP of [task; chunk] (von Oswald et al. 2020, arXiv:1906.00695, section 2.2).

    Args:
        centres, deviations, task_size, chunk, chunk_size, generator: see `Chunks`.
        hidden: widths of the MLP's layers.
    """

    def __init__(
        self,
        centres: Tensor,
        deviations: Tensor,
        task_size: int,
        hidden: tuple[int, ...],
        chunk: int,
        chunk_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(centres, deviations, task_size, chunk, chunk_size, generator)
        self.trunk = Trunk(self.inputs, hidden, generator=generator)
        self.draw_readout(generator)

    def states(self, task: Tensor) -> Tensor:
        """(tasks, task_size) -> (tasks, chunks, last width)."""
        return self.trunk(self.conditions(task))


def recurrent_size(numel: int, task_size: int, hidden: int, chunk: int, chunk_size: int) -> int:
    """Parameters of `RecurrentChunks` of one block."""
    lstm = 4 * hidden * (task_size + chunk_size + hidden + 1)
    return lstm + math.ceil(numel / chunk) * chunk_size + chunk * (hidden + 1)


def independent_size(numel: int, task_size: int, width: int, chunk: int, chunk_size: int) -> int:
    """Parameters of `IndependentChunks` with two hidden layers of one width."""
    mlp = (task_size + chunk_size + 1) * width + (width + 1) * width
    return mlp + math.ceil(numel / chunk) * chunk_size + chunk * (width + 1)
