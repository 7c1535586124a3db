"""Slot `posthoc`: fitted on held-out outputs, ``fit(logits, target) -> self``, then logits -> probabilities.

A class attribute ``keeps_argmax = True`` claims that accuracy cannot change; the contract suite holds it to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

ARENA = "predict"
TRAINED = False
FIXED: tuple[str, ...] = ()
OFFERED: tuple[str, ...] = ()


class Calibrator(Protocol):
    """logits (n, c), target (n,) -> map from logits (m, c) to probabilities (m, c)."""

    def fit(self, logits: Tensor, target: Tensor) -> Calibrator: ...

    def __call__(self, logits: Tensor) -> Tensor: ...
