"""What a model costs: size, operations, memory and interleaved timing."""

from __future__ import annotations

import gc
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probatum.measure.base import Measure
from probatum.numerics.cost.operations import counted
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.tensors.draws import random_state_kept

_TENTH = math.log(1.1)

MEASURES = (
    Measure("parameters", "size", False, _TENTH, "ratio", about="trainable numbers in the model"),
    Measure("trainable-parameters", "size", False, _TENTH, "ratio", about="numbers that training changes"),
    Measure(
        "stored-parameters", "size", False, _TENTH, "ratio", about="numbers to store beside the pretrained network"
    ),
    Measure("nonzero-parameters", "size", False, _TENTH, "ratio", about="trainable numbers that are not zero"),
    Measure("macs", "speed", False, _TENTH, "ratio", about="multiply-adds for one example"),
    Measure(
        "training-passes", "speed", False, _TENTH, "ratio", about="examples passed forward and backward in training"
    ),
    Measure(
        "step-time-ratio",
        "speed",
        False,
        _TENTH,
        "ratio",
        about="time of a training step, timed interleaved over a whole training of 32 to 128",
    ),
    Measure(
        "latency-ratio", "speed", False, _TENTH, "ratio", about="time of a prediction when trained, timed interleaved"
    ),
    Measure("peak-memory", "size", False, _TENTH, "ratio", "bytes", about="most bytes of tensors held at once"),
)


@dataclass(frozen=True)
class Interleaved:
    """Timings of two calls in turn: log(a / b) of each pair (below 0 = a is faster), and median seconds of each."""

    log_ratios: tuple[float, ...]
    a_seconds: float
    b_seconds: float


def parameters(model: nn.Module, *, frozen: bool = False) -> int:
    """Return how many trainable numbers the model has, shared ones counted once; with `frozen`, those that are not too."""
    return sum(p.numel() for p in model.parameters() if frozen or p.requires_grad)


def nonzero(model: nn.Module, *, frozen: bool = False) -> int:
    """Return how many of the trainable numbers are not zero; with `frozen`, of all."""
    return sum(int(torch.count_nonzero(p.detach())) for p in model.parameters() if frozen or p.requires_grad)


def flops(fn: Callable[[], Any]) -> int:
    """Run `fn` once and return its floating-point operations; see `numerics.cost.operations.counted` for what counts.

    Forward and backward count, whatever `fn` runs, a multiply-add as two; elementwise operations do not. Results are
    those of a usual run, time is not.
    """
    with counted() as operations:
        fn()
    return operations.total


def macs(model: nn.Module, x: Tensor) -> int:
    """Return the multiply-adds of one forward pass on the first example of x, in evaluation mode."""
    if not len(x):
        raise ValueError("x has no rows; give at least one example")
    with evaluating(model), random_state_kept(), torch.no_grad():
        return flops(lambda: model(x[:1])) // 2


def latency(model_a: nn.Module, model_b: nn.Module, x: Tensor, pairs: int = 30, warmup: int = 5) -> Interleaved:
    """Time forward passes of two models on x in turn, in evaluation mode and without gradients; see `interleave`."""
    with evaluating(model_a, model_b), random_state_kept(), torch.no_grad():
        return interleave(lambda: model_a(x), lambda: model_b(x), pairs, warmup)


def interleave(
    a: Callable[[], Any],
    b: Callable[[], Any],
    pairs: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Interleaved:
    """Call a, b, a, b ... and time each call, so that a drift of the machine meets both alike.

    Work queued on CUDA is waited for; garbage is collected before, not during, the calls.

    Args:
        a: first callable.
        b: second callable.
        pairs: timed calls of each, at least 1.
        warmup: calls of each before that are not timed.
        clock: seconds, growing from call to call.

    Raises:
        ValueError: for fewer than one pair or a negative warmup.
    """
    if pairs < 1 or warmup < 0:
        raise ValueError(f"pairs is {pairs} and warmup {warmup}; use at least 1 and 0")
    seconds: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(warmup + pairs):
            for call, taken in zip((a, b), seconds, strict=True):
                _wait()
                start = clock()
                call()
                _wait()
                end = clock()
                if turn >= warmup:
                    taken.append(end - start)
    finally:
        if collecting:
            gc.enable()
    return Interleaved(
        tuple(math.log(first / second) for first, second in zip(*seconds, strict=True)),
        statistics.median(seconds[0]),
        statistics.median(seconds[1]),
    )


def peak_memory(fn: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Run `fn` once and return the most bytes that tensors made by it held at one time, beyond those there before.

    CPU: sums the storages of all operations' results while they live, so the number is the same on every run; scratch
    space inside one operation is not seen. CUDA: the allocator's own peak, on an otherwise idle device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise ValueError(f"device is {device}; memory is measured on cpu and cuda")
    with _Storages() as storages:
        fn()
    return storages.peak


class _Storages(TorchDispatchMode):
    """Adds up the bytes of live storages that operations make; those first seen as an input were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._known.add(storage)
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            yield leaf.untyped_storage()


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
