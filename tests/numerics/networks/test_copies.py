"""Copies of networks in the middle of training, with weights that torch's older norms computed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from probatum.numerics.networks.copies import copied

pytestmark = pytest.mark.fast


def network() -> nn.Sequential:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many a network
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(3, 5)), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(5, 5)), nn.Linear(5, 2)
        )


def test_a_copy_has_the_outputs_and_weights_of_its_own() -> None:
    net, x = network(), torch.randn(4, 3)
    net(x).sum().backward()
    other = copied(net)
    assert other[0].weight.grad_fn is None  # nothing of what it is holds the original's graph
    torch.testing.assert_close(other.eval()(x), net.eval()(x), rtol=0, atol=0)
    assert list(other.state_dict()) == list(net.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2.0)
    assert not torch.allclose(other(x), net(x))
    other.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())


def test_what_stands_in_two_places_or_is_tied_stays_so() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 3))
    net[3].weight = layer.weight
    other = copied(net)
    assert other[0] is other[2]
    assert other[3].weight is other[0].weight
    assert other[0].weight is not layer.weight
