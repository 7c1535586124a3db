"""Blocks and stages found in module trees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probatum.kinds.image.network import SmallResNet
from probatum.numerics.networks.residual_blocks import adds, blocks_in, followers, pairs_in, stages_of, step_of
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


class Listed(nn.Module):
    """Convolutions first, norms behind them: what follows what is in the code alone."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2, self.act = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(self.one(x)).relu()
        if self.branches and float(x.sum()) > 0:
            inner = inner + 1
        return self.act(x + self.norm2(self.two(inner)))


def test_what_follows_what_is_read_from_the_code() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Listed(), nn.Flatten(), nn.Linear(144, 3))
    block = net[1]
    assert [(p.convolution, p.norm) for p in pairs_in(net)] == [(block.one, block.norm1), (block.two, block.norm2)]
    assert [b.path for b in blocks_in(net)] == ["1"]
    before = torch.get_rng_state()
    assert followers(block, nn.BatchNorm2d) == []  # a function or an addition stands between
    assert torch.equal(torch.get_rng_state(), before)


def test_code_that_cannot_be_followed_goes_by_the_order_of_registration() -> None:
    block = Listed(branches=True)
    assert [(p.convolution, p.name) for p in pairs_in(block)] == [(block.two, "norm1")]
    assert followers(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.ReLU)[0][1] == "1"


def test_norms_before_convolutions_and_shortcuts_among_the_children() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)
            self.norm2, self.conv2 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)
            self.short = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.short(x) + self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())

    net = Before()
    assert [(p.convolution, p.name) for p in pairs_in(net)] == [(net.conv1, "norm2")]


def test_sizes_that_are_compared_are_no_residual_step() -> None:
    class Up(nn.Module):
        """As in a U-Net: padded up to the size of what it is joined to."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor, beside: Tensor) -> Tensor:
            x = self.body(x)
            more = [0, beside.size(3) - x.shape[3], 0, beside.size()[2] - x.size()[2]]
            return torch.cat([nn.functional.pad(x, more), beside], dim=1)

    assert adds(Up()) is False


@pytest.mark.parametrize("step", [torch.subtract, torch.rsub, Tensor.subtract, torch.add, torch.sub])
def test_steps_by_functions_of_other_names(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x.subtract(self.body(x)) if step is Tensor.subtract else step(x, self.body(x))

    assert adds(Own()) is True


class Inner(nn.Module):
    """Two pairs without a shortcut of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.two, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.two(self.norm1(self.one(x)).relu()))


class Around(nn.Module):
    """Adds what goes into it to what its parts make of it, one after another."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x)


def test_the_step_is_the_module_around_one_block_and_none_where_it_goes_round_several() -> None:
    alone, several = Around(Inner()), Around(Inner(), Inner())
    for net, expected in ((nn.Sequential(alone), ["0"]), (nn.Sequential(several), [None, None])):
        found = blocks_in(net)
        steps = [step_of(net, block, found) for block in found]
        assert [None if step is None else step.path for step in steps] == expected
