"""What a model writes for some rows: its likeliest tokens, their log-probabilities, and a state inside it with its cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from probatum.numerics.cost.operations import counted
from probatum.numerics.networks.surgery import inside_attention
from probatum.numerics.networks.watch import look, pass_through
from probatum.numerics.tensors.precision import as_weights, widened
from probatum.spec import Part

CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
STATES = (nn.Linear, nn.LayerNorm, nn.Embedding, *CHANNELS_FIRST)
"""Modules whose outputs serve as states of a network."""


class Middle(NamedTuple):
    """A module inside a network, the share of the network's cost until its output is there, and which of its runs gives it.

    `rows` is the dimension of that output that counts rows: 1 behind layers that take time first, torch's default.
    """

    module: nn.Module
    share: float
    run: int = 0
    rows: int = 0


def flops(model: nn.Module, x: Tensor) -> float:
    """Operations of one forward pass a row, or the network's parameters where none are counted."""
    with counted() as operations:
        look(model, x, {})
    return operations.total / len(x) or float(sum(p.numel() for p in model.parameters()))


def middle_of(model: nn.Module, x: Tensor, share: float = 0.5) -> Middle:
    """The first module inside whose output comes after this share of the operations, with the share it really takes.

    A module that runs several times is taken and charged at the run that comes after the share. Where none does, as before
    a head that is no module (tied weights), it is the last to run. Runs without a state for every row are passed over, as
    those on numbers of places or on all places of all rows at once.

    Raises:
        ValueError: a network without any layer of a known kind that gives a state for every row.
    """
    found, total = _runs(model, x)
    rows = [0 if run.shape[:1] == (len(x),) else -1 for run in found]  # where layers run by row
    # with a row twice, what counts rows is one more, and nothing else, as the length that texts are cut to
    more, _ = _runs(model, torch.cat([x, x[:1]]))
    if len(more) == len(found):
        rows = [_counting(a.shape, b.shape, len(x)) for a, b in zip(found, more, strict=True)]
    usable = [k for k, dim in enumerate(rows) if dim >= 0]
    if not usable:
        raise ValueError(
            "the large network has no linear, convolutional, embedding or norm layer that gives a state for every row; "
            "leave embed-1+2 out"
        )
    spent = [run.spent for run in found]
    if not total:  # in order of the layers instead
        spent, total = [k + 1.0 for k in range(len(found))], float(len(found))
    place = next((k for k in usable if spent[k] >= share * total), usable[-1])
    module = found[place].module
    return Middle(module, spent[place] / total, sum(run.module is module for run in found[:place]), rows[place])


class _Run(NamedTuple):
    module: nn.Module
    spent: float
    shape: tuple[int, ...]


def _runs(model: nn.Module, x: Tensor) -> tuple[list[_Run], float]:
    """The runs of layers with the operations until each is done and the shape of what it gives, and all operations."""
    found: list[_Run] = []
    closed = inside_attention(model)  # these never run by themselves
    inner = {n: m for n, m in model.named_modules() if isinstance(m, STATES) and id(m) not in closed}

    def note(name: str, _inputs: object, output: Tensor) -> None:
        found.append(_Run(inner[name], float(operations.total), tuple(output.shape)))

    with counted() as operations:
        look(model, x, inner, note)
    return found, float(operations.total)


def _counting(shape: tuple[int, ...], more: tuple[int, ...], rows: int) -> int:
    """The dimension, 0 or 1, that counts rows, of which the second shape has one more; -1 = none."""
    for dim in range(min(2, len(shape))):
        if shape[dim] == rows and more == (*shape[:dim], rows + 1, *shape[dim + 1 :]):
            return dim
    return -1


class Written(NamedTuple):
    """A model's outputs for some rows: log-probabilities and correctness (n, length), and a pooled state (n, width)."""

    log_p: np.ndarray
    right: np.ndarray
    state: np.ndarray

    def quality(self, mask: np.ndarray) -> np.ndarray:
        """Share of an output's tokens that are right, (n,)."""
        return (self.right * mask).sum(axis=1) / mask.sum(axis=1)


@torch.no_grad()
def write(
    model: nn.Module, part: Part, lengths: Tensor, inside: nn.Module | None = None, run: int = -1, rows_in: int = 0
) -> Written:
    """Likeliest tokens of each row, and the state that `inside` gives at this run, pooled over what belongs to the output.

    `rows_in` is the dimension of that state that counts rows.
    """
    logs, right, states = [], [], []
    for rows in torch.arange(len(part)).split(64):
        x = as_weights(model, widened(part.x[rows]))
        if inside is None:
            output = model(x)
        else:
            output, seen = pass_through(model, x, inside)
            states.append(_pooled(inside, seen[run].movedim(rows_in, 0), lengths[rows], part.y.ndim > 1))
        top = widened(output).log_softmax(dim=-1).max(dim=-1)
        logs.append(top.values.reshape(len(rows), -1))
        right.append((top.indices == part.y[rows].reshape(top.indices.shape)).reshape(len(rows), -1))
    state = torch.cat(states) if states else torch.zeros(len(part), 0)
    log_p, hits = (torch.cat(found).double().numpy() for found in (logs, right))
    return Written(log_p, hits, state.double().numpy())


def _pooled(module: nn.Module, state: Tensor, lengths: Tensor, by_token: bool) -> Tensor:
    state = widened(state)  # sums over many tokens leave float16
    if isinstance(module, CHANNELS_FIRST) and state.ndim > 2:
        if not by_token or state.ndim > 3:
            return state.flatten(2).mean(dim=2)
        state = state.transpose(1, 2)
    if by_token and state.ndim == 3:
        mask = (torch.arange(state.shape[1]) < lengths[:, None])[:, :, None]
        return (state * mask).sum(dim=1) / mask.sum(dim=1)
    return state.flatten(1, -2).mean(dim=1) if state.ndim > 2 else state
