"""Slot `generate`: ``entry(x, noise, budget, ...) -> prior``, a model of the rows themselves; labels play no part.

`x` are clean training rows (n, ...), `noise` is the standard deviation of the white noise that will have to be removed, `budget`
the gradient steps and the batch size of the training, which is done when `entry` returns. What it returns is asked for

- ``restore(b, operator) -> x``: rows from b = A x + noise, for a `probatum.numerics.images.restoration.Operator` (what is known of A:
  ``apply``, ``adjoint``, and the kind ``"denoise"``, ``"inpaint"`` or ``"blur"``); rows are independent problems,
- ``denoise(y) -> x``, the same with A = I, in one pass where that is possible.

It may ask by name for `spec`, `generator`, and `parameters`: how many weights the baseline's network has, which a prior should
have as well. Arena generate calls nothing else yet; ``sample`` and ``log_prob`` are kept for models that have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from probatum.numerics.images.restoration import Operator
    from probatum.spec import Budget

ARENA = "generate"
TRAINED = False
FIXED: tuple[str, ...] = ("x", "noise", "budget")
OFFERED: tuple[str, ...] = ("parameters",)


class Prior(Protocol):
    """Rows (n, ...) in, restored rows of the same shape out; both leave what they are given as it was."""

    def denoise(self, y: Tensor) -> Tensor: ...

    def restore(self, b: Tensor, operator: Operator) -> Tensor: ...


class Fit(Protocol):
    """Learn from clean rows."""

    def __call__(self, x: Tensor, noise: float, budget: Budget) -> Prior: ...
