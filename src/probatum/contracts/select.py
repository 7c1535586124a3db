"""Slot `select`: ``entry(model_factory, x, y, generator, ...) -> scores (n,)``, higher = better represented, cleaner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ARENA = "select"
TRAINED = False
FIXED: tuple[str, ...] = ("x", "y")
OFFERED: tuple[str, ...] = ("trusted",)


class Score(Protocol):
    """model_factory() gives a fresh untrained network for x; x (n, ...), y (n,) int64 -> one score a row."""

    def __call__(
        self, model_factory: Callable[[], nn.Module], x: Tensor, y: Tensor, generator: torch.Generator
    ) -> Tensor: ...
