"""Slot `attack`: ``entry(model, inputs, target, ...) -> inputs`` changed so that the model's answer leaves `target`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

ARENA = "attack"
TRAINED = False
FIXED: tuple[str, ...] = ("inputs", "target")
OFFERED: tuple[str, ...] = ()


class Attack(Protocol):
    """model in evaluation mode returning logits; inputs (n, ...), target (n,) int64 -> adversarial inputs (n, ...)."""

    def __call__(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor: ...
