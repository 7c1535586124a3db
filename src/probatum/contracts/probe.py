"""Slot `probe`: ``entry(model_factory, data, generator, ...) -> dict of named numbers``: what the network is doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from probatum.spec import Data

ARENA = "probe"
TRAINED = False
FIXED: tuple[str, ...] = ("data",)
OFFERED: tuple[str, ...] = ()


class Probe(Protocol):
    """(fresh networks, data) -> measurements."""

    def __call__(
        self, model_factory: Callable[[], nn.Module], data: Data, generator: torch.Generator
    ) -> dict[str, float]: ...
