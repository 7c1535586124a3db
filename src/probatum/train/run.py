"""The state of one training run, as methods see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probatum.errors import InputError
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.spec import Batch, Budget, Part, Spec
from probatum.train.engine import PLAIN, Engine

if TYPE_CHECKING:
    from probatum.train.devices import Shard


class TrainingFailed(RuntimeError):
    """The loss or the outputs stopped being finite; the trial is recorded as failed with this reason."""


@dataclass
class Run:
    """What hooks may read, and (where they declare it) write.

    Attributes:
        model: the network in training.
        loss: the recipe's loss.
        optimizer: its optimizer.
        spec: description of the data.
        train: training rows.
        valid: validation rows.
        budget: steps, batch size, steps per epoch.
        step: updates done so far.
        epoch: epochs begun so far, less one.
        keep_best: whether the weights with the best validation score are kept at the end; a method whose last weights
            are the result (pruning, averaging) sets it to False in `prepare`.
        extra_passes: examples passed forward and backward beyond the loop's own; a method that takes extra passes adds
            to it, so that they are charged.
        notes: named numbers a method wants in the trial's record.
        engine: where and how it is computed; `train`, `valid` and the network are there already.
        forward: what training passes call instead of the network, None = the network.
        shard: this process's share, where several devices train one network.
    """

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    spec: Spec
    train: Part
    valid: Part
    budget: Budget
    step: int = 0
    epoch: int = -1
    keep_best: bool = True
    extra_passes: float = 0.0
    notes: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    engine: Engine = PLAIN
    forward: Callable[[Tensor], Any] | None = None
    shard: Shard | None = None

    def objective(self, batch: Batch, output: Any) -> Tensor:
        """The training loss of one batch, through the model's own `objective` where it has one.

        Task next-token: losses see every position as a row, outputs (n * length, outputs) and targets (n * length,).
        """

        def loss(output: Tensor, target: Tensor) -> Tensor:
            if self.spec.task == "next-token":
                output, target = output.flatten(0, -2), target.flatten()
            return apply_loss(self.loss, output, target, batch.index)

        own = getattr(self.model, "objective", None)
        return loss(output, batch.y) if own is None else own(batch.x, output, batch.y, loss)


def apply_loss(loss: nn.Module, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """The scalar loss; passes `index` to losses whose forward takes it."""
    if wants_index(loss):
        if len(index) != len(target):
            name = type(loss).__name__
            raise InputError(f"{name} keeps state per row, but the model turns each row into several; try them apart")
        value = loss(output, target, index)
    else:
        value = loss(output, target)
    return value.mean() if value.ndim else value


def wants_index(loss: nn.Module) -> bool:
    """Whether the loss's forward has an `index` parameter."""
    code = getattr(type(loss).forward, "__code__", None)
    return code is not None and "index" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def last_layer(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    """The linear layer that runs last, or else the convolution; see `find_last_layer`, also for rows x to run it on."""
    found = find_last_layer(model, x)
    if found is None:
        raise InputError(f"{type(model).__name__} has no linear or convolution layer that could be its last one")
    return found
