"""Slot `explain`: ``entry(model, inputs, target, ...) -> Explanation`` with values shaped like the inputs.

`model` is in evaluation mode and returns logits (n, classes); `target` (n,) int64 says which output to explain. A
function that claims completeness returns the per-example gap |sum of values - (F(x) - F(baseline))|.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from probatum.spec import Explanation

ARENA = "explain"
TRAINED = False
FIXED: tuple[str, ...] = ("inputs", "target")
OFFERED: tuple[str, ...] = ()


class Explainer(Protocol):
    """(model, inputs, target) -> attributions."""

    def __call__(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Explanation: ...
