"""Draws from torch's global streams, by code that can draw from nowhere else: made to come from a seed or a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Made = TypeVar("Made")
_BESIDE = 0x1C6E_F372_FE94_F82A


@contextmanager
def random_state_kept() -> Iterator[None]:
    """A block after which the global streams of every device that is in use stand where they stood."""
    with torch.random.fork_rng(devices=_devices()):
        yield


@contextmanager
def draws_of(seed: int) -> Iterator[None]:
    """A block whose draws from torch's global streams (dropout, initial weights) are those of this seed."""
    with random_state_kept():
        if _devices():
            torch.manual_seed(seed)  # of every device, so that every device's stream is kept
        else:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would leave a seed for a device yet to come
        yield


@contextmanager
def own_draws(generator: torch.Generator) -> Iterator[None]:
    """A block whose draws from torch's global streams come from `generator` alone."""
    with draws_of(int(torch.randint(2**62, (), generator=generator, device=generator.device))):
        yield


@contextmanager
def draws_beside(generator: torch.Generator) -> Iterator[None]:
    """A block whose draws from torch's global streams are told by where `generator` stands, which stays there."""
    twin = torch.Generator(generator.device)
    twin.set_state(generator.get_state())
    seed = int(torch.randint(2**62, (), generator=twin, device=twin.device))
    with draws_of(seed ^ _BESIDE):  # not the seed that `own_draws` would take from the same place
        yield


def fresh(make: Callable[[], Made], generator: torch.Generator) -> Made:
    """What `make` makes, its draws (initial weights) told by where `generator` stands: the global streams stay where they are.

    A factory that seeds itself makes what it would have made.
    """
    with draws_beside(generator):
        return make()


def in_forward(generator: torch.Generator) -> torch.Generator:
    """The generator, for draws in a forward pass that gradients are taken through.

    Passes without gradients, as of a hook that looks at the network meanwhile, may draw what they like.

    Raises:
        RuntimeError: in a pass that is computed anew while gradients are taken (activation checkpointing, reversible
            networks): it would draw something else than the pass whose gradient is wanted, and nobody would see.
    """
    if torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled():
        raise RuntimeError(
            "a forward pass is computed anew for its gradient (activation checkpointing), and what it draws from a stream of "
            "its own would differ; leave the layers that draw out of the checkpointed part"
        )
    return generator


def _devices() -> range:
    """Accelerators in use; looking at the stream of one that is not would start it."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
