"""Slot `learner`: replaces gradient training, ``fit(data, budget, generator, ...) -> Predictor``.

It may ask for ``model_factory`` (fresh networks of the kind that the baseline trains, each with weights of its own) and
``optimisation`` (how the baseline takes its steps), so that several networks are compared with one at equal gradient steps.

A predictor that is many networks also has

- ``samples(part) -> Tensor``: (S, n, classes) probabilities of every draw, or (S, n, outputs) means; their mean over S is
  what ``predict`` gives, to 1e-5,
- ``noise`` (real targets): standard deviation of an observation: a number, a tensor that expands to (S, n, outputs), or a
  function part -> such a tensor. It is no part of epistemic uncertainty.

Any predictor may have ``passes``, the examples it was trained on counted with repetition, and ``report() -> dict`` of
named numbers for the trial's record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from probatum.spec import Budget, Data, Part

ARENA = "predict"
TRAINED = False
FIXED: tuple[str, ...] = ("data", "budget")
OFFERED: tuple[str, ...] = ("optimisation",)


class Predictor(Protocol):
    """part -> probabilities (n, classes), or values (n, outputs) on the standardised scale of part.y."""

    def predict(self, part: Part) -> Tensor: ...


class Fit(Protocol):
    """Learn from data.train (data.valid for choices); data.test must not be read."""

    def __call__(self, data: Data, budget: Budget, generator: torch.Generator) -> Predictor: ...
