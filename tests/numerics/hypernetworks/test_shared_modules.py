"""Weights lent to a network in which one module stands in two places are given back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.numerics.hypernetworks.hypernet import call

pytestmark = pytest.mark.fast


def test_a_module_in_two_places_has_its_own_weights_again() -> None:
    layer = nn.Linear(2, 2, bias=False)
    net = nn.Sequential(layer, layer)
    own = layer.weight
    given = {name: 2 * torch.eye(2) for name, _ in net.named_parameters()}
    assert torch.equal(call(net, given, torch.ones(1, 2)), torch.full((1, 2), 4.0))
    assert layer.weight is own
    assert isinstance(layer.weight, nn.Parameter)
