"""Layer outputs, gradient norms and linear probes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.numerics.networks.watch import hidden_layers
from probatum.techniques.method.deeply_supervised_nets import gradient_norms, probe_accuracy


def test_transparency() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(30, 1, 8, 8, generator=generator), torch.arange(30) % 3
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    net[1].eval()
    F.cross_entropy(net(x), y).backward()
    norms = gradient_norms(net)
    assert list(norms) == ["0", "3"]
    assert norms["3"] == pytest.approx(float(net[3].weight.grad.norm()))
    easy = torch.eye(3)[y] + 0.01 * torch.rand(30, 3)
    assert probe_accuracy(easy, y, easy, y) == 1.0
    assert list(hidden_layers(net, x)) == [str(i) for i in range(4)]
    assert [module.training for module in net] == [True, False, True, True]  # modes are put back
