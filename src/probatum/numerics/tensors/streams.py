"""Random streams: what draws from torch's global streams draws from a technique's own instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def streams_kept() -> Iterator[None]:
    """A block after which the global streams of every device that is in use stand where they stood."""
    with torch.random.fork_rng(devices=_devices()):
        yield


@contextmanager
def own_draws(generator: torch.Generator) -> Iterator[None]:
    """A block whose draws from torch's global streams (dropout, initial weights) come from `generator` alone."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with streams_kept():
        if _devices():
            torch.manual_seed(seed)  # of every device, so that every device's stream is kept
        else:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would leave a seed for a device yet to come
        yield


def _devices() -> range:
    """Accelerators in use; looking at the stream of one that is not would start it."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
