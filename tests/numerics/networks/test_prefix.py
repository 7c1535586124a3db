"""Prefixes: in place and cut out give the same, statistics are each sub-network's own, nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.numerics.networks.prefix import Prefix, kept_units
from probatum.spec import Spec
from probatum.train.baselines import build

pytestmark = pytest.mark.fast


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = CausalSelfAttention(16, 4)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        h = h + self.attention(self.norm(h))
        return self.head(h + self.mlp(h))


def networks() -> list[tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.LayerNorm(9), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
    cnn = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    )
    images, x = Spec("image", "classes", (1, 8, 8), 3), torch.randn(7, 1, 8, 8)
    tokens = torch.randint(11, (4, 6))
    return [(mlp, torch.randn(7, 5)), (cnn, x), (build(images), x), (Transformer(), tokens)]


def test_units_are_rounded_up() -> None:
    assert [kept_units(share, 10) for share in (0.01, 0.1, 0.11, 0.5, 1.0)] == [1, 1, 2, 5, 10]
    assert kept_units(1 / 3, 9) == 3


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_cut_out_and_in_place_are_the_same(which: int, share: float) -> None:
    net, x = networks()[which]
    net.train()
    for _ in range(3) if x.is_floating_point() else ():
        net(x)  # running statistics worth having
    net.eval()
    whole = net(x)
    prefix = Prefix(net, x, 0.3)
    with prefix.running():
        assert torch.equal(net(x), whole), "the full network is what it was, bit for bit"
        with prefix.at(share):
            inside = net(x)
    outside = prefix.extract(share)
    torch.testing.assert_close(outside(x), inside, atol=1e-6, rtol=1e-6)
    mine, theirs = dict(net.named_parameters()), dict(outside.named_parameters())
    for name, value in theirs.items():
        assert torch.equal(value, mine[name][tuple(slice(size) for size in value.shape)]), f"{name} is no prefix"
    sizes = [sum(p.numel() for p in m.parameters()) for m in (outside, net)]
    assert sizes[0] < sizes[1] or share == 1.0
    assert not any("forward" in vars(module) for m in (net, outside) for module in m.modules())


def test_smaller_prefixes_lie_in_larger_ones() -> None:
    net, x = networks()[2]
    prefix = Prefix(net, x, 0.25)
    small, large = (dict(prefix.extract(share).named_parameters()) for share in (0.25, 0.5))
    for name, value in small.items():
        assert torch.equal(value, large[name][tuple(slice(size) for size in value.shape)])


def test_heads_are_cut_whole() -> None:
    net, x = networks()[3]
    made = Prefix(net, x, 0.25).extract(0.5)
    assert made.attention.heads == 2
    assert made.attention.query.weight.shape == (8, 16)
    assert made.attention.out.weight.shape == (16, 8)
    assert made.mlp[0].out_features == 12


def test_statistics_are_the_sub_networks_own() -> None:
    net, _ = networks()[1]
    x = torch.randn(64, 1, 8, 8) * 2 + 1
    prefix = Prefix(net, x[:2], 0.5)
    with prefix.running(), prefix.at(0.5):
        prefix.recalibrate(0.5, [x[:32], x[32:]])
        net.eval()
        inside = net(x)
    hidden = net[0](x)[:, :3].detach()
    made = prefix.extract(0.5).eval()
    torch.testing.assert_close(made[1].running_mean, hidden.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(made[1].running_var, hidden.var(dim=(0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(x), inside)
    assert torch.equal(net[1].running_mean, torch.zeros(6)), "the full network's are left alone"


def test_depth_keeps_the_first_blocks() -> None:
    blocks = nn.ModuleDict({"body": nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), "head": nn.Linear(4, 2)})
    net = nn.Sequential(blocks["body"], blocks["head"])
    x = torch.randn(5, 4)
    prefix = Prefix(net, x, 0.5, layers=[], blocks="0")
    made = prefix.extract(0.5)
    assert len(made[0]) == 2
    torch.testing.assert_close(made(x), net[1](net[0][1](net[0][0](x))))


def test_training_at_a_share_reaches_the_prefix_alone() -> None:
    net, x = networks()[0]
    prefix = Prefix(net, x, 0.5)
    with prefix.running(), prefix.at(0.5):
        net(x).square().sum().backward()
    assert net[0].weight.grad[5:].abs().sum() == 0
    assert net[0].weight.grad[:5].abs().min() > 0
    touched = {id(value): part for value, part in prefix.touched()}
    assert touched[id(net[3].weight)] == (slice(4), slice(5))


class Attention(nn.Module):
    """Two heads: of one packed projection, or of three, cut by the number of heads."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.into = nn.Linear(4, 16)
        self.project = nn.ModuleList([nn.Linear(16, 48)] if packed else [nn.Linear(16, 16) for _ in range(3)])
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.into(x)
        parts = self.project[0](h).chunk(3, dim=-1) if self.packed else [layer(h) for layer in self.project]
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        return self.head((q @ k.mT).softmax(dim=-1).matmul(v).transpose(1, 2).flatten(2))


class Halves(nn.Module):
    """One half of the units gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.GLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("make", [lambda: Attention(True), lambda: Attention(False), Halves])
def test_units_that_are_split_by_number_are_refused(make, share: float) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="do not fit together when cut"):
        Prefix(make(), torch.randn(2, 5, 4), share)


class Mixed(nn.Module):
    """Operations that mix all units and leave them in order; `noisy` gives other values every time."""

    def __init__(self, noisy: bool) -> None:
        super().__init__()
        self.noisy = noisy
        self.a, self.b, self.norm = nn.Linear(4, 16), nn.Linear(16, 12), nn.LayerNorm(12)
        self.c, self.d = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.normalize(self.a(x), dim=-1)
        x = nn.functional.normalize(self.b(x).relu(), dim=-1)
        x = self.c(self.norm(x)).relu()
        return self.d(nn.functional.dropout(x, 0.5) if self.noisy else x)


@pytest.mark.parametrize("noisy", [False, True])
def test_units_that_are_mixed_in_order_are_cut(noisy: bool) -> None:
    torch.manual_seed(0)
    assert list(Prefix(Mixed(noisy), torch.randn(3, 4), 0.25).cut) == ["a", "b", "c"]


ACTIVATIONS = {
    "relu by where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "steps": lambda x: (x > 0).to(x.dtype),
    "signs": torch.sign,
    "whole numbers": lambda x: (127 * x).round().clamp(-128, 127).to(torch.int8).to(x.dtype) / 127,
}


class Activated(nn.Module):
    """Two layers behind activations by comparison; `side` concatenates or splits in between."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor], side: str = "") -> None:
        super().__init__()
        self.activation, self.side = activation, side
        self.a, self.b, self.norm = nn.Linear(4, 16), nn.Linear(16, 8), nn.LayerNorm(8)
        self.c = nn.Linear({"concatenated": 24, "halved": 4}.get(side, 8), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.activation(self.a(x))
        second = self.activation(self.norm(self.b(first)))
        if self.side == "halved":
            one, other = second.chunk(2, dim=-1)
            return self.c(one * other)
        return self.c(torch.cat([first, second], dim=-1) if self.side else second)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_that_make_numbers_of_nan_are_no_obstacle(name: str, rows: int) -> None:
    torch.manual_seed(0)
    net, x = Activated(ACTIVATIONS[name]), torch.randn(rows, 4)
    prefix = Prefix(net, x, 0.5)
    assert list(prefix.cut) == ["a", "b"]
    with prefix.running(), prefix.at(0.5):
        inside = net(x)
    torch.testing.assert_close(prefix.extract(0.5)(x), inside)
    for side in ("concatenated", "halved"):
        with pytest.raises(ValueError, match="do not fit together when cut"):
            Prefix(Activated(ACTIVATIONS[name], side), x, 0.5)


def test_batch_norm_kept_in_evaluation_keeps_its_statistics() -> None:
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
    )
    net[1].running_mean.fill_(3.0)
    net.train()
    net[1].eval()
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    prefix = Prefix(net, x, 0.5)
    with prefix.running():
        prefix.recalibrate(0.5, [x])
    made = prefix.extract(0.5).eval()
    assert torch.equal(made[1].running_mean, torch.full((3,), 3.0))
    hidden = made[3](made[2](made[1](made[0](x)))).detach()
    torch.testing.assert_close(made[4].running_mean, hidden.mean(dim=0))
    assert [norm.training for norm in (net[1], net[4])] == [False, True]


def test_misuse() -> None:
    x = torch.randn(4, 4, 8, 8)
    with pytest.raises(ValueError, match="groups 2"):
        Prefix(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(144, 2)), x, 0.5)
    with pytest.raises(ValueError, match="no linear layer or convolution to cut"):
        Prefix(nn.Sequential(nn.ReLU()), x, 0.5)
    with pytest.raises(ValueError, match="'9' is no linear"):
        Prefix(networks()[0][0], torch.randn(4, 5), 0.5, layers=["9"])
    with pytest.raises(ValueError, match="blocks is '0'"):
        Prefix(networks()[0][0], torch.randn(4, 5), 0.5, blocks="0")

    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.b(self.a(x)))

    with pytest.raises(ValueError, match="do not fit together"):
        Prefix(Bound(), torch.randn(3, 4), 0.5)
    net, images = networks()[1]
    prefix = Prefix(net, images, 0.5)
    with prefix.running(), pytest.raises(ValueError, match="needs training rows"):
        prefix.recalibrate(0.5, [])


class HeadFirst(nn.Module):
    """The head is registered before the body; what it gives is not cut."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.a, self.b = nn.Linear(6, 3), nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x).relu()).relu())


class Heads(nn.Module):
    """Two heads, whose outputs are joined as told."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.a, self.first, self.second, self.join = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3), join

    def forward(self, x: torch.Tensor):
        h = self.a(x).relu()
        both = (self.first(h), self.second(h))
        return {
            "cat": lambda: torch.cat(both, dim=1),
            "sum": lambda: sum(both),
            "tuple": lambda: both,
            "dict": lambda: {"one": both[0], "other": [both[1]]},
            "graphless": lambda: torch.cat(both, dim=1).detach(),
        }[self.join]()


def test_outputs_are_never_cut_wherever_their_layers_are_registered() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    assert Prefix(HeadFirst(), x, 0.5).cut == {"a": 1, "b": 1}
    for join in ("cat", "sum", "tuple", "dict"):
        net = Heads(join)
        prefix = Prefix(net, x, 0.5)
        assert prefix.cut == {"a": 1}, join
    made = Prefix(Heads("cat"), x, 0.5).extract(0.5)
    assert made(x).shape == (5, 6)
    assert made.a.weight.shape == (3, 4)
    with pytest.raises(ValueError, match="outputs change their shape"):
        Prefix(
            Heads("graphless"), x, 0.5
        )  # who gives its outputs cannot be seen: the last one, and then the look fails
    assert Prefix(Heads("graphless"), x, 0.5, layers=["a"]).cut == {"a": 1}
    with pytest.raises(ValueError, match="'first' gives outputs of the network"):
        Prefix(Heads("cat"), x, 0.5, layers=["a", "first"])


def test_a_layer_at_two_widths_is_refused_and_one_at_a_single_width_is_cut() -> None:
    torch.manual_seed(0)
    shared, x = nn.Linear(4, 4), torch.randn(3, 4)
    with pytest.raises(ValueError, match="'2' runs in several places, on 2 and on 4 inputs"):
        Prefix(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), shared, nn.ReLU(), shared), x, 0.5)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), shared, nn.Flatten())
    prefix = Prefix(nn.Sequential(*net, nn.Linear(8, 2)), x, 0.5, layers=["0"])
    assert prefix.extract(0.5)(x).shape == (3, 2)


def test_nothing_to_cut_and_no_rows_are_told() -> None:
    with pytest.raises(ValueError, match="Linear has no hidden layer to cut"):
        Prefix(nn.Linear(4, 2), torch.randn(3, 4), 0.5)
    with pytest.raises(ValueError, match="no rows"):
        Prefix(HeadFirst(), torch.zeros(0, 4), 0.5)


def test_looking_changes_neither_modes_nor_gradients_nor_the_random_stream() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.Linear(6, 2)).train()
    net[2].eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prefix = Prefix(net, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), 0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in net] == [True, True, False, True]
    assert all(p.grad is None for p in net.parameters())
    prefix.extract(0.5)
    assert int(net[2].num_batches_tracked) == 0


def test_parts_used_of_blocks_that_run_and_that_do_not() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(4, 4), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * self.linear(x)

    net = nn.Sequential(nn.Sequential(Scaled(), Scaled(), Scaled()), nn.Linear(4, 2))
    x = torch.randn(5, 4)
    prefix = Prefix(net, x, 0.3, layers=[], blocks="0")
    with prefix.running():
        net(x)
        prefix.start(0.5)
        net(x)
        parts = {id(value): part for value, part in prefix.touched()}
    assert [parts[id(block.scale)] for block in net[0]] == [(), (), None]
    assert [parts[id(block.linear.bias)] for block in net[0]] == [(slice(4),), (slice(4),), None]
    assert parts[id(net[0][2].linear.weight)] is None


def test_patching_twice_is_taken_off_once_and_what_others_put_there_is_left() -> None:
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    prefix = Prefix(net, torch.randn(2, 5, 8), 0.5, layers=["0.linear1"])
    prefix.patch()
    prefix.patch()
    assert net[0].activation_relu_or_gelu == 0
    prefix.release()
    assert net[0].activation_relu_or_gelu == 1
    net[1].forward = mine = lambda x: x
    prefix.release()
    assert net[1].forward is mine


def test_a_network_that_begins_in_place_leaves_the_rows() -> None:
    net = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x = torch.randn(6, 4)
    before = x.clone()
    prefix = Prefix(net, x, 0.5)
    with prefix.running():
        assert prefix.recalibrate(0.5, [x[:3], x[3:]]) == 6
    prefix.extract(0.5)
    assert torch.equal(x, before)
