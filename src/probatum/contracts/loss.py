"""Slot `loss`: an `nn.Module`, (output, target) -> scalar or per-example loss.

A loss with per-example state takes a third argument `index` (positions in the training part). A loss whose outputs are
scores rather than log-probabilities sets the class attribute ``probabilistic = False``; the bench then fits a
temperature on validation rows before it measures probabilities. Parameters of a loss are trained with the network's;
beside an optimizer that treats a network's parameters by their role they are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

ARENA = "predict"
TRAINED = True
FIXED: tuple[str, ...] = ()
OFFERED: tuple[str, ...] = ()


@runtime_checkable
class Loss(Protocol):
    """output (n, outputs), target (n,) int64 or (n, outputs) float -> () or (n,)."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor: ...
