"""Networks that grow by an extractor a stage: what stays, what is frozen, what is counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from probatum.numerics.continual.stages import Split, class_mask, module_bytes, seen_loss, train_stage
from probatum.spec import Budget, Optimisation
from probatum.techniques.stream.class_incremental.growth import Growing, blocks, last_block
from small_networks import Begins, generator, normal, small

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("share", [False, True])
def test_growing_keeps_old_outputs_and_freezes_old_extractors(share: bool) -> None:
    net = Growing(lambda: small(6), 6, generator(), share)
    net.grow((4, 1))
    x = normal(30, 5)
    net.eval()
    first = net(x)
    assert torch.isfinite(first[:, [1, 4]]).all()
    assert (first[:, [0, 2, 3, 5]] == -math.inf).all()
    assert net.extra_bytes == 0
    net.grow((0,))
    torch.testing.assert_close(net(x)[:, [1, 4]], first[:, [1, 4]])
    plain = module_bytes(Split(small(6), 6).body)
    grown = module_bytes(net.bodies)
    assert grown == 2 * plain if not share else plain < grown < 2 * plain
    old = {name: value.clone() for name, value in net.bodies[0].state_dict().items()}
    y = torch.tensor([4, 1, 0]).repeat(10)
    net.auxiliary = None
    train_stage(net, x, y, Budget(5, 16, 2), Optimisation(), generator(), seen_loss(net, class_mask((0, 1, 4), 6)))
    changed = {name for name, value in net.bodies[0].state_dict().items() if not torch.equal(value, old[name])}
    assert changed == ({"0.weight", "0.bias"} if share else set()), "only what is shared goes on learning"


def test_frozen_statistics_stay() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    net = Growing(build, 3, generator())
    net.grow((0, 1))
    net.train()
    net(normal(16, 5))
    net.grow((2,))
    before = net.bodies[0][1].running_mean.clone()
    net.train()
    net(normal(16, 5, seed=1) + 3)
    assert torch.equal(net.bodies[0][1].running_mean, before)
    assert not torch.equal(net.bodies[1][1].running_mean, before)


def test_the_last_block_begins_at_the_last_weight_matrix() -> None:
    body = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Sequential(nn.Conv1d(2, 2, 3), nn.BatchNorm1d(2), nn.ReLU())
    )
    assert last_block(body) == blocks(body)[2:]
    with pytest.raises(ValueError, match=r"1 block\(s\)"):
        last_block(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_every_extractor_sees_the_rows_as_they_came() -> None:
    net = Growing(lambda: nn.Sequential(Begins(), small(6)), 6, generator())
    net.grow((4, 1))
    x = normal(30, 5)
    before = net.eval().features(x.clone())
    net.grow((0,))  # which begins as a copy
    assert torch.equal(net.eval().features(x), torch.cat([before, before], dim=1))
    assert torch.equal(x, normal(30, 5))
