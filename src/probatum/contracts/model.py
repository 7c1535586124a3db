"""Slot `model`: ``build(spec, ...) -> nn.Module`` with x as in `probatum.spec` and outputs (n, spec.outputs).

In training mode a model may return something richer than its prediction (members of an ensemble, reconstructions). It
then has a method ``objective(x, output, target, loss) -> Tensor`` that turns that into the training loss with the help
of the recipe's loss, a function (output (m, outputs), target (m,)) -> scalar. In evaluation mode it returns
(n, outputs): logits (or log-probabilities) for classes, values for reals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from probatum.spec import Spec

ARENA = "predict"
TRAINED = True
FIXED: tuple[str, ...] = ()
OFFERED: tuple[str, ...] = ()


class Build(Protocol):
    """spec -> network; layer initialisation may draw from the global torch stream, which the bench seeds."""

    def __call__(self, spec: Spec) -> nn.Module: ...
