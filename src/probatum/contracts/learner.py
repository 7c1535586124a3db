"""Slot `learner`: replaces gradient training, ``fit(data, budget, generator, ...) -> Predictor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from probatum.spec import Budget, Data, Part


class Predictor(Protocol):
    """part -> probabilities (n, classes), or values (n, outputs) on the standardised scale of part.y."""

    def predict(self, part: Part) -> Tensor: ...


class Fit(Protocol):
    """Learn from data.train (data.valid for choices); data.test must not be read."""

    def __call__(self, data: Data, budget: Budget, generator: torch.Generator) -> Predictor: ...
