"""Traced graphs against networks whose graph is known, and shortest paths against a search by hand."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.kinds.image.network import SmallResNet
from probatum.spec import Spec
from probatum.techniques.method.ghn2 import net_graph
from probatum.techniques.method.ghn2.net_graph import KINDS, NetGraph, trace

pytestmark = pytest.mark.fast


class Branches(nn.Module):
    """relu(conv(x)) + x, twice by the same convolution, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)) + x
        x = torch.cat([self.conv(x), x], dim=1)
        return self.head(x.mean(dim=(2, 3)))


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled = x.relu()
        return doubled if doubled.sum() > 0 else -doubled


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


def random_graph(n: int, seed: int) -> NetGraph:
    generator = torch.Generator().manual_seed(seed)
    edges = [(int(torch.randint(v, (1,), generator=generator)), v) for v in range(1, n)]
    edges += [(u, v) for u in range(n) for v in range(u + 1, n) if float(torch.rand(1, generator=generator)) < 0.1]
    names = tuple(f"n{i}" for i in range(n))
    edges = sorted(set(edges))
    return NetGraph(names, torch.zeros(n).long(), torch.zeros(n, 4), torch.tensor(edges), ("",) * n, (False,) * n)


def test_kinds_edges_and_shared_parameters() -> None:
    graph = trace(Branches())
    assert [KINDS[kind] for kind in graph.kinds] == [
        "input", "convolution", "rectifier", "sum", "convolution", "concatenation", "global pool", "linear", "output",
    ]  # fmt: skip
    assert graph.edges.tolist() == [
        [0, 1], [1, 2], [2, 3], [0, 3], [3, 4], [4, 5], [3, 5], [5, 6], [6, 7], [7, 8],
    ]  # fmt: skip
    assert graph.modules == ("", "conv", "", "", "", "", "", "head", "")
    assert graph.sizes[1].tolist() == pytest.approx([1.0, 1.0, 1.5849625, 1.5849625])
    assert graph.before_rectifier[1]
    assert not graph.before_rectifier[7]


def test_all_parameters_of_the_built_in_network_have_a_node() -> None:
    net = SmallResNet(Spec("image", "classes", (1, 8, 8), 10))
    graph = trace(net)
    held = {
        f"{path}.{name}" for path in graph.modules if path for name, _ in net.get_submodule(path).named_parameters()
    }
    assert held == {name for name, _ in net.named_parameters()}
    first = graph.modules.index("stem.0")
    assert graph.before_rectifier[first]  # through its norm
    assert not graph.before_rectifier[graph.modules.index("head")]


@pytest.mark.parametrize("seed", range(4))
def test_paths_and_depths_by_search(seed: int) -> None:
    graph = random_graph(14, seed)
    follow = {u: [v for a, v in graph.edges.tolist() if a == u] for u in range(14)}
    paths = graph.paths
    for start in range(14):
        reached, ahead, length = {start: 0}, [start], 0
        while ahead:
            length += 1
            ahead = sorted({v for u in ahead for v in follow[u]} - set(reached))
            reached |= dict.fromkeys(ahead, length)
        assert [int(paths[start, v]) for v in range(14)] == [reached.get(v, 0) for v in range(14)]
    depths = [0] * 14
    for u, v in sorted(graph.edges.tolist(), key=lambda edge: edge[1]):
        depths[v] = max(depths[v], depths[u] + 1)
    assert graph.depths.tolist() == depths


def test_relabelling_moves_everything() -> None:
    graph = trace(Branches())
    order = torch.randperm(len(graph), generator=torch.Generator().manual_seed(0))
    other = graph.relabelled(order)
    assert torch.equal(other.paths, graph.paths[order][:, order])
    assert torch.equal(other.depths, graph.depths[order])
    named = {(graph.names[u], graph.names[v]) for u, v in graph.edges.tolist()}
    assert {(other.names[u], other.names[v]) for u, v in other.edges.tolist()} == named
    assert other.modules[other.names.index("conv")] == "conv"


def test_cycles_unknown_operations_and_untraceable_networks_are_told() -> None:
    graph = trace(nn.Sequential(nn.ReLU()))
    cycle = NetGraph(graph.names, graph.kinds, graph.sizes, torch.tensor([[0, 1], [1, 0]]), graph.modules, (False,) * 3)
    with pytest.raises(ValueError, match="cycle"):
        _ = cycle.depths
    with pytest.raises(ValueError, match=r"node 'fft_fft' is .*none of input"):
        trace(Odd())
    with pytest.raises(ValueError, match="node '_0' is LSTM"):
        trace(nn.Sequential(nn.LSTM(3, 3)))
    with pytest.raises(TypeError, match=r"Deciding cannot be traced behind node '.+': symbolically traced variables"):
        trace(Deciding())


def test_example() -> None:
    assert doctest.testmod(net_graph).failed == 0
