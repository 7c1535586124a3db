"""What explainers and attacks share: checked inputs, references, and one output picked for every example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probatum.numerics.tensors.targets import class_targets


def require_eval(model: Callable[..., Any]) -> None:
    """ValueError, naming the first module, where a part of the model is in training mode, and where no gradient can be had."""
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients cannot be had under torch.inference_mode(); leave it, torch.no_grad() does no harm")
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if module.training:
                where = f"its module {name!r} ({type(module).__name__})" if name else type(module).__name__
                raise ValueError(f"the model is in training mode ({where}); call model.eval() first")


def require_float(inputs: Tensor, remedy: str) -> None:
    """TypeError for inputs that are not floating-point, with what to do instead; ValueError without examples."""
    if not inputs.is_floating_point():
        raise TypeError(f"inputs have dtype {inputs.dtype}, which carries no gradient; {remedy}")
    if inputs.ndim < 1 or len(inputs) == 0:
        raise ValueError(f"inputs have shape {tuple(inputs.shape)}; expected a batch (n, ...) with n > 0")


def at(model: Callable[..., Any], *points: Tensor) -> Any:
    """The model's output at points, which stay what they are: a network may begin by an operation in place."""
    return model(*(point.clone() for point in points))


def pick(output: Tensor, target: Tensor) -> Tensor:
    """The output of every row that `target` names: (n, outputs), (n,) int64 -> (n,).

    Raises:
        ValueError: shapes that do not fit, or targets outside 0 .. outputs-1.
    """
    target = class_targets(output, target, least=1)
    return output.gather(1, target[:, None]).squeeze(1)


def reference_like(inputs: Tensor, reference: Tensor | float | None, name: str = "baseline") -> Tensor:
    """A reference for every example: None = zeros, a number, one example (...) or (1, ...), or a batch (n, ...).

    Raises:
        ValueError: a shape that is none of these.
    """
    if reference is None:
        return torch.zeros_like(inputs)
    if not isinstance(reference, Tensor):
        return torch.full_like(inputs, float(reference))
    shape = tuple(reference.shape)
    if shape not in (tuple(inputs.shape), tuple(inputs.shape[1:]), (1, *inputs.shape[1:])):
        expected = f"{tuple(inputs.shape[1:])}, {(1, *inputs.shape[1:])} or {tuple(inputs.shape)}"
        raise ValueError(f"{name} has shape {shape} for inputs {tuple(inputs.shape)}; give {expected}")
    return reference.to(inputs).expand_as(inputs)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """values (n,) with as many trailing dimensions of size 1 as `like` (n, ...) has, for broadcasting."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))
