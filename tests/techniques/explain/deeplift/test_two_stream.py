"""The two-stream engine on its own: parts, multipliers and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probatum.techniques.explain.deeplift.two_stream import multipliers, trace

pytestmark = pytest.mark.fast


def ones(output: Tensor) -> Tensor:
    return torch.ones_like(output)


def test_cubes_share_their_cross_terms() -> None:
    class Cube(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.act = nn.Linear(2, 1, bias=False), nn.Softplus()
            self.sum.weight.data.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.sum(x))

    x, zero = torch.tensor([[2.0, -1.0]]).double(), torch.zeros(1, 2).double()
    values, after, before = multipliers(trace(Cube().double().eval()), x, zero, ones, lambda z: True)
    f = nn.Softplus()
    both, up, down, none = (f(torch.tensor(v).double()).item() for v in (1.0, 2.0, -1.0, 0.0))
    assert values[0].detach().tolist() == pytest.approx(
        [((up - none) + (both - down)) / 2, ((down - none) + (both - up)) / 2]
    )
    assert values.sum().item() == pytest.approx((after - before).item())


def test_two_inputs_and_dead_outputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    x = torch.ones(1, 2)
    with pytest.raises(TypeError, match="several inputs"):
        multipliers(trace(Two()), x, x, ones, lambda z: False)

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.flip(1)

    with pytest.raises(TypeError, match=r"flip .* has no rule"):
        multipliers(trace(Product()), x, x, ones, lambda z: False)
