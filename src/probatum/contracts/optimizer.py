"""Slot `optimizer`: a `torch.optim.Optimizer`.

The bench calls ``entry.for_model(model, ...)`` where the class has that classmethod (optimizers that treat layers by
their role), else ``entry(params, ...)``. Learning rate and weight decay are the optimizer's own defaults unless set;
the schedule of the recipe multiplies every group's rate.
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
