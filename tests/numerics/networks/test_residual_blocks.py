"""Blocks and stages found in module trees."""

from __future__ import annotations

import pytest
from torch import nn

from probatum.kinds.image.network import SmallResNet
from probatum.numerics.networks.residual_blocks import blocks_in, pairs_in, stages_of
from probatum.spec import Spec

pytestmark = pytest.mark.fast


def test_the_baseline_has_three_stages_of_one_block() -> None:
    net = SmallResNet(Spec("image", "classes", (1, 8, 8), 10))
    assert [[block.path for block in stage] for stage in stages_of(blocks_in(net))] == [
        ["stages.0"],
        ["stages.1"],
        ["stages.2"],
    ]
    assert [pair.path for pair in pairs_in(net)][:3] == ["stem.1", "stages.0.norm1", "stages.0.norm2"]
    assert [block.width for block in blocks_in(net)] == [16, 32, 64]


def test_a_plain_stack_has_a_block_for_each_pair() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)]
    net = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    assert [[block.path for block in stage] for stage in stages_of(blocks_in(net))] == [["1", "3"], ["5"]]
    assert all(block.module is None for block in blocks_in(net))
    assert blocks_in(nn.Linear(2, 2)) == []
