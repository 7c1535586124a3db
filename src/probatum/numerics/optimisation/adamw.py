"""One AdamW update of one tensor, for optimizers that use it for part of their parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


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

    `state` holds step, exp_avg and exp_avg_sq, and is filled on the first call.
    """
    if not state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    first, second = (1 - beta ** state["step"] for beta in betas)
    divisor = (state["exp_avg_sq"].sqrt() / math.sqrt(second)).add_(eps)
    parameter.mul_(1 - lr * weight_decay).addcdiv_(state["exp_avg"], divisor, value=-lr / first)


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
