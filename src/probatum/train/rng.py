"""Random numbers: every draw comes from a generator derived from (seed, purpose), so nothing disturbs the pairing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from probatum.numerics.tensors.draws import draws_of


def derive(seed: int, *purpose: str) -> int:
    """A 63-bit seed for one purpose, the same in every process."""
    text = "\x1f".join((str(seed), *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator_for(3, "order")`` or ``generator_for(3, "technique", "gradient-noise")``."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str) -> Iterator[None]:
    """Run a block on its own global torch state, for code that can only draw from there (layer initialisation,
    dropout); the caller's state is put back, also after an exception."""
    with draws_of(derive(seed, *purpose)):
        yield
