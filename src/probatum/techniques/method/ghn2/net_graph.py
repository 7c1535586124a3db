"""A network as a graph of primitive operations, read off a symbolic trace: kinds, edges, parameters, shortest paths."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

KINDS = (
    "input",
    "output",
    "convolution",
    "grouped convolution",
    "linear",
    "norm",
    "rectifier",
    "other activation",
    "max pool",
    "mean pool",
    "global pool",
    "sum",
    "product",
    "concatenation",
    "reshape",
    "nothing",
)
"""What a node can be."""

MODULES: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("linear", (nn.Linear,)),
    ("norm", (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)),
    ("rectifier", (nn.ReLU, nn.ReLU6, nn.LeakyReLU)),
    (
        "other activation",
        (nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.ELU, nn.SELU, nn.Softmax, nn.Mish, nn.Softplus),
    ),
    ("max pool", (nn.MaxPool1d, nn.MaxPool2d)),
    ("mean pool", (nn.AvgPool1d, nn.AvgPool2d)),
    ("global pool", (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)),
    ("reshape", (nn.Flatten, nn.Unflatten)),
    ("nothing", (nn.Identity, nn.modules.dropout._DropoutNd)),
)
CALLS: dict[Any, str] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, operator.sub, torch.sub), "sum"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), "product"),
    **dict.fromkeys((torch.cat, torch.concat), "concatenation"),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), "reshape"),
    **dict.fromkeys((F.relu, torch.relu, F.leaky_relu, F.relu6), "rectifier"),
    **dict.fromkeys((F.gelu, F.silu, torch.sigmoid, torch.tanh, F.softmax, F.elu), "other activation"),
    **dict.fromkeys((F.max_pool2d, F.max_pool1d), "max pool"),
    **dict.fromkeys((F.avg_pool2d, F.avg_pool1d), "mean pool"),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_avg_pool1d, torch.mean, F.adaptive_max_pool2d), "global pool"),
    F.dropout: "nothing",
}
METHODS = {
    **dict.fromkeys(("add", "add_", "sub"), "sum"),
    **dict.fromkeys(("mul", "mul_"), "product"),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), "reshape"),
    **dict.fromkeys(("relu", "relu_"), "rectifier"),
    **dict.fromkeys(("sigmoid", "tanh", "softmax"), "other activation"),
    **dict.fromkeys(("mean", "amax"), "global pool"),
    **dict.fromkeys(("contiguous", "clone"), "nothing"),
}
SIZES = 4
"""Numbers that describe a node's weight: outputs, inputs of one output, kernel height and width."""
FURTHEST = 50


@dataclass(frozen=True)
class NetGraph:
    """Nodes in an order in which every edge leads forward.

    Attributes:
        names: of the nodes, as the trace calls them.
        kinds: places in `KINDS` (n,) int64.
        sizes: log2 of outputs, inputs, kernel height and width (n, 4), 0 where there is no weight.
        edges: (E, 2) int64, from and to.
        modules: path of the module whose parameters the node holds, "" where it holds none (a later use of shared ones too).
        before_rectifier: whether what the node gives reaches a rectifier through norms and the like at most.
    """

    names: tuple[str, ...]
    kinds: Tensor
    sizes: Tensor
    edges: Tensor
    modules: tuple[str, ...]
    before_rectifier: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.names)

    def relabelled(self, order: Tensor) -> NetGraph:
        """The same graph with node order[i] in place i."""
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        rows = order.tolist()
        return NetGraph(
            tuple(self.names[i] for i in rows),
            self.kinds[order],
            self.sizes[order],
            place[self.edges],
            tuple(self.modules[i] for i in rows),
            tuple(self.before_rectifier[i] for i in rows),
        )

    @cached_property
    def paths(self) -> Tensor:
        """Edges on the shortest way from u to v (n, n), 0 where there is none, it is longer than 50, or u is v."""
        n = len(self)
        step = torch.zeros(n, n)
        step[self.edges[:, 0], self.edges[:, 1]] = 1
        found, reach = step.clone(), step
        for length in range(2, min(n, FURTHEST) + 1):
            reach = (reach @ step).clamp(max=1)
            new = (reach > 0) & (found == 0)
            found[new] = length
            if not bool(reach.any()):
                break
        return found.fill_diagonal_(0)

    @cached_property
    def depths(self) -> Tensor:
        """Edges on the longest way to each node from one without predecessors (n,) int64.

        Raises:
            ValueError: the graph has a cycle.
        """
        depth = torch.zeros(len(self), dtype=torch.long)
        for _ in range(len(self) + 1):
            new = depth.scatter_reduce(0, self.edges[:, 1], depth[self.edges[:, 0]] + 1, "amax")
            if torch.equal(new, depth):
                return depth
            depth = new
        raise ValueError("the graph has a cycle; networks are traced to graphs without one")


def trace(net: nn.Module) -> NetGraph:
    """The graph of a network.

    Raises:
        TypeError: the network cannot be traced, since its forward branches on values; the message says where.
        ValueError: an operation that is none of `KINDS`; the message names the node.

    Example:
        >>> graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
        >>> [KINDS[kind] for kind in graph.kinds]
        ['input', 'convolution', 'norm', 'rectifier', 'reshape', 'linear', 'output']
    """
    try:
        traced = fx.Tracer().trace(net)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError) as problem:
        reached = f" behind node {_last(problem)}" if _last(problem) else ""
        raise TypeError(
            f"{type(net).__name__} cannot be traced{reached}: {problem}; give a network whose forward does not depend on values"
        ) from problem
    nodes = [node for node in traced.nodes if node.op != "placeholder" or node.users]
    place = {node: i for i, node in enumerate(nodes)}
    modules = dict(net.named_modules())
    kinds, sizes, owners, edges, seen = [], [], [], [], set()
    for node in nodes:
        kind = _kind(node, modules)
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        held = module is not None and module not in seen and any(True for _ in module.parameters(recurse=False))
        if held:
            seen.add(module)
        kinds.append(KINDS.index(kind))
        sizes.append(_sizes(module))
        owners.append(str(node.target) if held else "")
        edges += [(place[source], place[node]) for source in node.all_input_nodes]
    return NetGraph(
        tuple(node.name for node in nodes),
        torch.tensor(kinds),
        torch.tensor(sizes),
        torch.tensor(edges).reshape(-1, 2),
        tuple(owners),
        tuple(_before_rectifier(node, modules) for node in nodes),
    )


def _last(problem: BaseException) -> str:
    """The node that a failed trace had reached, where it says so."""
    back = problem.__traceback__
    while back is not None:
        proxy = back.tb_frame.f_locals.get("obj", back.tb_frame.f_locals.get("self"))
        if isinstance(proxy, fx.Proxy):
            return repr(proxy.node.name)
        back = back.tb_next
    return ""


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    kind: str | None = None
    if node.op in ("placeholder", "output"):
        kind = "input" if node.op == "placeholder" else "output"
    elif node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            kind = "convolution" if module.groups == 1 else "grouped convolution"
        else:
            kind = next((name for name, types in MODULES if isinstance(module, types)), None)
    elif node.op == "call_function":
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        kind = CALLS.get(target)
    elif node.op == "call_method":
        kind = METHODS.get(str(node.target))
    if kind is None:
        what = type(modules[str(node.target)]).__name__ if node.op == "call_module" else node.target
        raise ValueError(f"node {node.name!r} is {what} ({node.op}), which is none of {', '.join(KINDS)}")
    return kind


def _sizes(module: nn.Module | None) -> list[float]:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return [0.0] * SIZES
    shape = [*weight.shape, 1, 1, 1][:SIZES]
    return torch.tensor(shape, dtype=torch.float64).log2().tolist()


def _before_rectifier(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Follow every use through norms, sums, pools and reshapes."""
    ahead, seen = list(node.users), set()
    while ahead:
        user = ahead.pop()
        if user in seen:
            continue
        seen.add(user)
        kind = _kind(user, modules)
        if kind == "rectifier":
            return True
        if kind in ("norm", "sum", "nothing", "reshape"):
            ahead += list(user.users)
    return False
