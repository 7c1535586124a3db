"""The layer that techniques on the bench are given as the last one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probatum.errors import InputError
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.train.run import last_layer

pytestmark = pytest.mark.fast


class HeadFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(8, 2), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and float(x.sum()) > 1e9:  # cannot be traced
            return x
        return self.head(self.body(x))


def test_the_layer_that_runs_last_and_none() -> None:
    model = HeadFirst()
    assert last_layer(model, torch.randn(3, 6)) is model.head
    with pytest.raises(InputError, match="no linear or convolution layer"):
        last_layer(nn.Sequential(nn.ReLU()))


def test_a_last_layer_that_stands_earlier_as_well() -> None:
    shared = nn.Linear(4, 4)
    plain = nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), shared)
    nested = nn.Sequential(
        shared, nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Sequential(nn.ReLU(), shared, nn.Identity())
    )
    for net in (plain, nested):
        assert find_last_layer(net, torch.randn(3, 4)) is shared
        assert find_last_layer(net) is shared
