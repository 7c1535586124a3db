"""One AdamW update of one tensor, for optimizers that use it for part of their parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probatum.numerics.tensors.precision import widened


@torch.no_grad()
def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update `parameter` in place by AdamW (Loshchilov and Hutter 2019, alg. 2), decay before the step.

    `state` holds step, exp_avg and exp_avg_sq, and is filled on the first call. Of half-precision parameters the moments are
    float32: in eight bits a second moment cannot decay by a thousandth.
    """
    weight, gradient = widened(parameter), widened(gradient)
    if not state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(weight)
        state["exp_avg_sq"] = torch.zeros_like(weight)
    state["step"] += 1
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    first, second = (1 - beta ** state["step"] for beta in betas)
    divisor = (state["exp_avg_sq"].sqrt() / math.sqrt(second)).add_(eps)
    weight.mul_(1 - lr * weight_decay).addcdiv_(state["exp_avg"], divisor, value=-lr / first)
    if weight is not parameter:
        parameter.copy_(weight)


def load_wide(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """`torch.optim.Optimizer.load_state_dict`, which casts all state to the weights' type, and then every tensor of the state
    again from what was saved: whole numbers as they are, others in the weights' type, at least float32."""
    torch.optim.Optimizer.load_state_dict(optimizer, state_dict)
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in state_dict["state"].get(number, {}).items():
            if isinstance(value, Tensor):
                dtype = widened(parameter.detach()).dtype if value.is_floating_point() else value.dtype
                optimizer.state[parameter][name] = value.detach().to(parameter.device, dtype, copy=True)


def dense_real(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient itself; TypeError if it is sparse or complex, which row and column statistics cannot take."""
    if gradient.is_sparse:
        raise TypeError(f"a gradient of shape {tuple(shape)} is sparse; build the embedding with sparse=False")
    if gradient.is_complex():
        raise TypeError(f"a gradient of shape {tuple(shape)} is complex; train its real and imaginary parts apart")
    return gradient


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in an optimizer's state, weights and gradients not counted."""
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim > 0)
