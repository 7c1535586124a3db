"""Whether a stack computes what its networks compute: outputs and gradients on first batches, replica by replica."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum.numerics.tensors.draws import draws_of
from probatum.train.replica import Replica
from probatum.train.stack import DROPOUTS, CannotStackError, Stack


def same_step(stack: Stack, replicas: Sequence[Replica]) -> None:
    """CannotStackError where the stack's outputs or gradients on first batches are not those of its networks.

    All replicas are compared in training mode, with the random draws each would have alone; the first and the last one
    on a batch of the size that ends an epoch, and in evaluation mode, too. Weights, statistics and streams are as before
    afterwards. What differs in single precision is compared again in double: where a rounding switches a ReLU, gradients
    differ by more than roundings. A network that remembers rows or counts passes outside its buffers is refused.
    """
    before, name = stack.memory(), type(stack.models[0]).__name__
    try:
        _compare_all(stack, replicas)
    except CannotStackError as problem:
        if any(stacked.dtype != torch.float32 for stacked, _ in stack.parameters):
            raise
        try:
            doubled = _doubled(replicas)
            exact = Stack([replica.run.model for replica in doubled])
            exact.fold.generators = [generator.clone_state() for generator in stack.fold.generators]
            _compare_all(exact, doubled)
        except (TypeError, RuntimeError):  # it knows single precision only
            raise problem from None
    if stack.memory() != before:
        raise CannotStackError(f"{name} remembers its passes outside its buffers")


def _compare_all(stack: Stack, replicas: Sequence[Replica]) -> None:
    first, ends = replicas[0].run, (0, len(replicas) - 1)
    size, rest = first.budget.batch_size, len(first.train) % first.budget.batch_size
    set_mode(stack, True)
    with _without_draws(stack) if first.train.y.device.type != "cpu" else nullcontext():
        _compare(stack, replicas, range(len(replicas)), [replica.run.train.x[:size] for replica in replicas])
        if rest > 1 and len(first.train) > size:
            _compare(stack, replicas, ends, [replica.run.train.x[:rest] for replica in replicas])
        set_mode(stack, False)
        with torch.no_grad():
            _compare(stack, replicas, ends, [replica.run.held.x[:size] for replica in replicas])


def _doubled(replicas: Sequence[Replica]) -> list[Replica]:
    """Copies of the replicas with networks and inputs in double precision."""

    def tensor(value: Tensor) -> Tensor:
        return value.detach().double() if value.is_floating_point() else value.detach().clone()

    found = []
    for replica in replicas:
        run = replica.run
        memo: dict[int, Any] = {id(v): nn.Parameter(tensor(v), v.requires_grad) for v in run.model.parameters()}
        memo |= {id(value): tensor(value) for value in run.model.buffers()}
        train, valid = (replace(part, x=tensor(part.x)) for part in (run.train, run.held))
        model = copy.deepcopy(run.model, memo)
        found.append(replace(replica, run=replace(run, model=model, train=train, held=valid)))
    return found


def _compare(stack: Stack, replicas: Sequence[Replica], which: Sequence[int], x: Sequence[Tensor]) -> None:
    """CannotStackError unless the stack and some of its networks, in the stack's mode, agree on these rows."""
    fold, training, name = stack.fold, stack.net.training, type(stack.models[0]).__name__
    device, differs = x[0].device, f"{name} gives other outputs or gradients when it is stacked"
    kept = [stacked.detach().clone() for stacked in stack.buffers()]
    states = [generator.get_state() for generator in fold.generators]
    drawn = global_state(device)
    try:
        output = fold.split(stack.net(fold.fold(x)))
        if global_state(device) != drawn:
            raise CannotStackError(f"{differs}: it draws random numbers outside its modules")
        weight = torch.linspace(-1, 1, output[0].numel(), dtype=output.dtype, device=device).view(output[0].shape)
        trained = [stacked for stacked, _ in stack.parameters] if training else []
        gradients = torch.autograd.grad((output * weight).sum(), trained, allow_unused=True) if training else ()
        for k in which:
            _put(stack.buffers(), kept)
            with draws_of(replicas[k].draws):
                alone = stack.models[k](x[k])
            if not torch.isfinite(alone).all():
                continue  # it will fail, and is told of then
            if alone.shape != output[k].shape or not _close([output[k]], [alone]):
                raise CannotStackError(differs)
            if training:
                peers = [peers[k] for _, peers in stack.parameters]
                own = torch.autograd.grad((alone * weight).sum(), peers, allow_unused=True)
                if not _close([None if gradient is None else gradient[k] for gradient in gradients], own):
                    raise CannotStackError(differs)
    finally:
        _put(stack.buffers(), kept)
        for generator, state in zip(fold.generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def _without_draws(stack: Stack) -> Iterator[None]:
    """Dropout off, in the stack and in its networks: an accelerator draws in another way where it has a generator."""
    dropouts = [m for net in (stack.net, *stack.models) for m in net.modules() if isinstance(m, DROPOUTS)]
    rates = [module.p for module in dropouts]
    try:
        for module in dropouts:
            module.p = 0.0
        yield
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate


def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.detach().copy_(value)


def _close(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> bool:
    """Whether all differences are small beside the largest value wanted (None counts as zero)."""
    values = [value for value in wanted if value is not None and value.numel()]
    scale = max((float(value.detach().abs().max()) for value in values), default=0.0)
    bound = (1e-8 if values and values[0].dtype == torch.float64 else 2e-4) * scale
    for a, b in zip(found, wanted, strict=True):
        gap = a if b is None else b if a is None else a - b
        if gap is not None and gap.numel() and not bool(gap.detach().abs().max() <= bound):
            return False
    return True


def global_state(device: torch.device) -> list[bytes]:
    """Where the global streams stand, the CPU's and that of the rows' device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [state.numpy().tobytes() for state in states]


def set_mode(stack: Stack, training: bool) -> None:
    """Training or evaluation mode for the stack and its networks."""
    stack.net.train(training)
    for model in stack.models:
        model.train(training)
