"""Random streams: what draws from torch's global streams draws from a technique's own instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def streams_kept() -> Iterator[None]:
    """A block after which the global streams of every device stand where they stood."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextmanager
def own_draws(generator: torch.Generator) -> Iterator[None]:
    """A block whose draws from torch's global streams (dropout, initial weights) come from `generator` alone."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with streams_kept():
        torch.manual_seed(seed)  # seeds every device, so that every device's stream is kept
        yield
