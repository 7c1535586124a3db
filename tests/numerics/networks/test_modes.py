"""Modes of modules: which stay in evaluation, and what blocks give back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.numerics.networks.frozen import freeze
from probatum.numerics.networks.modes import evaluating, kept_in_evaluation, modes_kept, trained_modules

pytestmark = pytest.mark.fast


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), nn.Linear(3, 2)))


def test_what_is_in_evaluation_inside_a_network_in_training_stays_so() -> None:
    net = network()
    assert kept_in_evaluation(net) == set()
    net[2].eval()
    assert kept_in_evaluation(net) == {3, 4, 5}  # the network itself, its first two, and these
    assert [name for name, _ in trained_modules(net)] == ["", "0", "1"]
    assert kept_in_evaluation(net.eval()) == set()  # of one in evaluation as a whole


def test_frozen_norms_stay_whatever_the_network_is_in() -> None:
    net = network()
    freeze(net, [net[2]])
    for mode in (True, False):
        net.train(mode)
        assert 2 in kept_in_evaluation(net)


def test_blocks_give_every_modules_own_mode_back() -> None:
    net = network()
    net[2][0].eval()
    modes = [module.training for module in net.modules()]
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == modes
    with modes_kept(net):
        net.train()
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(ValueError, match="got 4D input"), modes_kept(net):
        net.train()(torch.ones(2, 2, 2, 2))
    assert [module.training for module in net.modules()] == modes
