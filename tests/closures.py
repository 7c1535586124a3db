"""What an optimizer of any kind does with a closure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def closure_is_called_with_gradients_and_its_loss_given_back(make: Callable[[nn.Parameter], Optimizer]) -> None:
    """Under no_grad, once a step; a step without a closure gives nothing back."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make(weight)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 4.0
    assert calls == [True]
    assert bool((weight < 1).all())
    assert optimizer.step() is None
