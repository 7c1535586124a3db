"""Half precision: computed in float32, given back as it came; gradients likewise, by the casts' own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALF = (torch.float16, torch.bfloat16)
P = ParamSpec("P")
R = TypeVar("R")


def widened(x: Tensor) -> Tensor:
    """x in float32 if it is of half precision, else as it is."""
    return x.float() if x.dtype in HALF else x


def as_weights(net: nn.Module, x: Tensor) -> Tensor:
    """Rows in the precision of the network's weights where the one or the other is half; as they are where weights differ."""
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()} if isinstance(net, nn.Module) else set()
    if len(dtypes) != 1 or not x.is_floating_point() or not ({x.dtype} | dtypes) & set(HALF):
        return x
    return x.to(dtypes.pop())


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """x / |x| along a dimension, zeros where x is zero, in x's precision.

    Half precision is widened inside: the least length that torch divides by, 1e-12, is 0 in float16, and zeros would be NaN.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float16))
        tensor([[0.6001, 0.7998],
                [0.0000, 0.0000]], dtype=torch.float16)
    """
    return F.normalize(widened(x), dim=dim).to(x.dtype)


def computed_wide(function: Callable[P, R]) -> Callable[P, R]:
    """The function with half-precision tensors widened, and its results in the precision that torch promotes the arguments to.

    So they are of half precision only where all tensors of floating point were of the same one; those without a dimension
    decide nothing beside others. Other precisions pass as they are. Autocast is off inside for all of them, since it would
    round products of float32 tensors; under it results stay in float32, as those of torch's own losses do.

    Example:
        >>> @computed_wide
        ... def log_rest(p: Tensor) -> Tensor:
        ...     return (1 - p).log()
        >>> log_rest(torch.tensor(1e-4, dtype=torch.bfloat16))  # 1 - 1e-4 is 1 in bfloat16
        tensor(-0.0001, dtype=torch.bfloat16)
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        given = [value for value in tensors if value.is_floating_point()]
        rounding = bool(tensors) and _autocast(tensors[0].device.type)
        if not rounding and not any(value.dtype in HALF for value in given):
            return function(*args, **kwargs)
        with torch.autocast(tensors[0].device.type, enabled=False):
            found: Any = function(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})  # type: ignore[arg-type]
        if rounding:
            return found
        deciding = [value.dtype for value in given if value.ndim] or [value.dtype for value in given]
        dtype = functools.reduce(torch.promote_types, deciding)
        return _narrowed(found, dtype) if dtype in HALF else found

    return run


class WideBuffers:
    """Mixed into a module: the buffers named in `wide` stay in float32 when the module is cast to, or made in, half precision.

    Running averages and tables of angles lose what they are for in eight bits.
    """

    wide: tuple[str, ...] = ()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As of any module; half precision as torch's default type is widened."""
        wide = name in self.wide and tensor is not None
        super().register_buffer(name, widened(tensor) if wide else tensor, persistent)  # type: ignore[misc, arg-type]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: getattr(self, name) for name in self.wide}
        super()._apply(fn, recurse)  # type: ignore[misc]
        for name, value in before.items():
            now = getattr(self, name)
            if now is not None and now.dtype in HALF:
                setattr(self, name, value.to(now.device))
        return self


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _wide(value: Any) -> Any:
    return widened(value) if isinstance(value, Tensor) else value


def _narrowed(found: Any, dtype: torch.dtype) -> Any:
    if isinstance(found, Tensor):
        return found.to(dtype) if found.dtype == torch.float32 else found
    if isinstance(found, tuple):
        parts = [_narrowed(part, dtype) for part in found]
        return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)
    return found
