"""Frozen bodies: what still learns, and statistics that no longer move."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from probatum.numerics.networks.frozen import freeze

pytestmark = pytest.mark.fast


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
        nn.Linear(6, 2),
    )


def test_what_is_kept_learns_and_the_rest_is_counted() -> None:
    net = network()
    net[0].bias.requires_grad_(False)
    assert freeze(net, [net[3], None]) == 24 + 12 + 14
    learning = [name for name, p in net.named_parameters() if p.requires_grad]
    assert learning == ["3.0.weight", "3.0.bias", "3.1.weight", "3.1.bias"]
    assert freeze(net, [net[3]]) == 0
    assert freeze(net) == 54


def test_statistics_of_frozen_norms_stay_and_those_of_kept_ones_move() -> None:
    net, x = network(), torch.randn(8, 4) + 3
    before = copy.deepcopy(net.state_dict())
    freeze(net, [net[3]])
    assert not net[1].training  # at once, and for good
    net.train()
    assert [net[1].training, net[2].training, net[3][1].training] == [False, True, True]
    torch.manual_seed(1)
    net(x)
    after = net.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"3.1.running_mean", "3.1.running_var", "3.1.num_batches_tracked"}
    hidden = net[0](x)
    norm = net[1]
    expected = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(hidden), expected)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_every_kind_of_batch_norm_keeps_its_names_and_its_place(kind: type[nn.Module]) -> None:
    net = nn.Sequential(kind(3))
    norm, names = net[0], list(net.state_dict())
    freeze(net)
    for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        one.train()
        assert isinstance(one[0], kind)
        assert not one[0].training
        assert list(one.state_dict()) == names
    assert net[0] is norm


def test_tied_weights_of_a_kept_layer_stay_free() -> None:
    net = nn.ModuleList([nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)])
    net[1].weight = net[0].weight
    assert freeze(net, [net[1]]) == 0
    assert net[0].weight.requires_grad
