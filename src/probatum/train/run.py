"""The state of one training run, as methods see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from probatum.engine import PLAIN, Engine
from probatum.errors import InputError
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.rooms.task import task
from probatum.spec import Batch, Budget, Part, Spec
from probatum.train.asked import Asked
from probatum.train.rng import seeded

PassHook = Callable[["Run", Batch], None]
LossHook = Callable[["Run", Batch, Any, Tensor], Tensor]


class Share(Protocol):
    """One process's share of every batch, where several devices train one network (`train.devices.Shard`)."""

    def part(self, batch: Batch) -> Batch: ...

    def weighted(self, loss: Tensor) -> Tensor: ...

    def average(self, parameters: Iterable[nn.Parameter]) -> None: ...

    def total(self, loss: Tensor) -> float: ...

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor: ...


@dataclass
class Run:
    """What hooks may read, and (where they declare it) write.

    Attributes:
        model: the network in training.
        loss: the recipe's loss.
        optimizer: its optimizer.
        spec: description of the data.
        train: training rows.
        held: validation rows, as the loop takes them; others say `valid`.
        budget: steps, batch size, steps per epoch.
        step: updates done so far.
        epoch: epochs begun so far, less one.
        keep_best: whether the weights with the best validation score are kept at the end; a method whose last weights
            are the result (pruning, averaging) sets it to False in `prepare`.
        passes: examples passed forward and backward by the loop itself.
        extra_passes: examples passed beyond that; `second_pass` counts its own, and a method that takes other passes adds
            to it, so that they are charged.
        notes: named numbers a method wants in the trial's record.
        curve: the learning curve.
        engine: where and how it is computed; `train`, `valid` and the network are there already.
        forward: what training passes call instead of the network, None = the network.
        shard: this process's share, where several devices train one network.
        clip: global gradient norm to clip at, or None.
        draws: seed of what second passes draw.
        batch: the batch of the present step, of several devices this process's share.
        whole: rows of the present step's batch over all devices.
        pass_hooks: the methods' `before_pass` hooks, in order.
        loss_hooks: their `loss` hooks, in order.
        asked: whether anything but the loop has asked for the validation rows, of this or of a copy.
    """

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    spec: Spec
    train: Part
    held: Part
    budget: Budget
    step: int = 0
    epoch: int = -1
    keep_best: bool = True
    passes: float = 0.0
    extra_passes: float = 0.0
    notes: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    engine: Engine = PLAIN
    forward: Callable[[Tensor], Any] | None = None
    shard: Share | None = None
    clip: float | None = None
    draws: int = 0
    batch: Batch | None = None
    whole: int = 0
    pass_hooks: Sequence[PassHook] = ()
    loss_hooks: Sequence[LossHook] = ()
    asked: Asked = field(default_factory=Asked)
    _seconds: int = 0

    @property
    def valid(self) -> Part:
        """Validation rows. That somebody asked for them is noted in `asked`: then more than the loop may hang on them."""
        self.asked.yes = True
        return self.held

    @valid.setter
    def valid(self, part: Part) -> None:
        self.held = part

    def objective(self, batch: Batch, output: Any) -> Tensor:
        """The training loss of one batch, through the model's own `objective` where it has one.

        Losses see one row for everything that is foretold: next-token outputs (n * length, outputs), targets (n * length,).
        """

        def loss(output: Tensor, target: Tensor) -> Tensor:
            return apply_loss(self.loss, *task(self.spec.task).as_rows(output, target), batch.index)

        own = getattr(self.model, "objective", None)
        return loss(output, batch.y) if own is None else own(batch.x, output, batch.y, loss)

    def loss_of(self, batch: Batch) -> Tensor:
        """What is differentiated for a batch: forward pass, objective and every method's `loss` hook, under autocast."""
        for before in self.pass_hooks:
            before(self, batch)
        forward = self.model if self.forward is None else self.forward
        with self.engine.autocast():
            output = forward(batch.x.clone())  # a network may begin in place; hooks and second passes see the rows too
            loss = self.objective(batch, output)
            for hook in self.loss_hooks:
                loss = hook(self, batch, output, loss)
        return loss

    def backward(self, loss: Tensor) -> Tensor:
        """Gradients of a batch's loss, over all devices and clipped; the loss of this process's share."""
        if self.shard is not None:
            loss = self.shard.weighted(loss)
        loss.backward()
        if self.shard is not None:
            self.shard.average(self.loss.parameters())
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        return loss

    def second_pass(self, batch: Batch | None = None) -> Tensor:
        """Gradients at the weights as they are now, in place of those of the first pass; the loss, detached.

        For methods that move the weights and look again (SAM and its kin), in their `gradients` hook or in an optimizer's
        closure. It is the same pass as the loop's: objective, `loss` hooks, autocast, clipping. It draws (dropout) from a
        stream of its own, so that seeds can be stacked, moves no buffers (running statistics, what a loss keeps a row), and
        is charged.

        Args:
            batch: rows to look at; None = the present step's.
        """
        rows = batch or self.batch
        if rows is None:
            raise RuntimeError("there is no batch before the first step; a second pass belongs into a step's hooks")
        self._seconds += 1
        self.optimizer.zero_grad(set_to_none=True)
        with (
            torch.enable_grad(),
            seeded(self.draws, "second pass", str(self._seconds)),
            buffers_kept(self.model, self.loss),
        ):
            loss = self.loss_of(rows)
            self.backward(loss)
        self.extra_passes += self.whole if rows is self.batch and self.shard is not None else len(rows.y)
        return loss.detach()


@contextmanager
def buffers_kept(*modules: nn.Module) -> Iterator[None]:
    """A block after which running statistics, power iterations and states a row are what they were before."""
    inner = [part for module in modules for part in module.modules()]
    held = [(part, dict(part._buffers)) for part in inner]
    values = {
        id(buffer): (buffer, buffer.detach().clone())
        for _, own in held
        for buffer in own.values()
        if buffer is not None
    }
    try:
        yield
    finally:
        for part, own in held:  # a buffer may have been replaced, or made, as well as written to
            part._buffers.clear()
            part._buffers.update(own)
        with torch.no_grad():
            for buffer, value in values.values():
                if not torch.equal(buffer, value):  # what was not moved is not touched: it may be shared, or in a graph
                    buffer.copy_(value)


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
