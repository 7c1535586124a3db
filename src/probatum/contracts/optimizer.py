"""Slot `optimizer`: a `torch.optim.Optimizer`.

The bench calls ``entry.for_model(model, ...)`` where the class has that classmethod (optimizers that treat layers by
their role), else ``entry(params, ...)``. Learning rate and weight decay are the optimizer's own defaults unless set;
the schedule of the recipe multiplies every group's rate.

An optimizer that looks at the loss again in its step says so: with the class attribute ``closure = True``, or by a `step`
whose `closure` has no default. Its step is then called with one (`probatum.train.run.Run.second_pass`), which puts the
gradients of the present batch at the weights as they are then in place of those there were, clipped, and returns the loss.
All others are called without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

ARENA = "predict"
TRAINED = True
FIXED: tuple[str, ...] = ("params",)
OFFERED: tuple[str, ...] = ()


@runtime_checkable
class Optimizer(Protocol):
    """The part of `torch.optim.Optimizer` that the loop uses."""

    param_groups: list[dict[str, Any]]

    def step(self, closure: Callable[[], float] | None = None) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None: ...
