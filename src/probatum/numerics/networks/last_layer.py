"""The last layer of a network: the one that its output comes from, which is not always the one that was registered or ran last."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from probatum.numerics.networks.modes import still
from probatum.numerics.networks.surgery import OffFastPath, inside_attention

LAYERS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROWS = 2
"""Rows on which a network is run to see which layer comes last."""
SIZES = ("size", "dim", "numel", "shape", "ndim", "dtype", "device")
"""What code asks of a tensor without taking its values."""


def find_last_layer(model: nn.Module, x: Tensor | None = None) -> nn.Module | None:
    """The layer that the output comes from without another one between; of several the linear ones, and the last to run.

    None where the network has neither linear layers nor convolutions. Arguments as `last_layers`.
    """
    found = last_layers(model, x)
    return found[-1] if found else None


def last_layers(model: nn.Module, x: Tensor | None = None) -> list[nn.Module]:
    """All layers that the output comes from without another one between, in the order in which they run.

    One as a rule, several where heads are concatenated or added; convolutions are among them only where no linear layer is.
    What runs later and is not in the output (an auxiliary head) and what stands inside (squeeze and excitation) is none.

    A plain sequence, or a single linear layer that was registered last, needs no look. Otherwise the network is run on the
    first two rows of `x`, in evaluation mode; where none are given it is traced symbolically, and where that fails too
    (control flow on values) the linear layer registered last is taken, else the convolution. Of an output of several parts
    the first one counts.

    Args:
        model: the network; nothing of it changes.
        x: rows (n, ...) that it takes.
    """
    closed = inside_attention(model)
    layers = [module for module in model.modules() if isinstance(module, LAYERS) and id(module) not in closed]
    linear = [module for module in layers if isinstance(module, nn.Linear)]
    if not layers or len(layers) == 1:
        return layers
    if linear == layers[-1:] or _ends_in(model, layers[-1]):
        return layers[-1:]
    found = [] if x is None or not len(x) else _by_running(model, layers, x[:ROWS])
    found = found or _by_tracing(model, layers) or (linear or layers)[-1:]
    found = [module for module in found if isinstance(module, nn.Linear)] or found
    return list({id(module): module for module in reversed(found)}.values())[::-1]  # each once, at its last run


def head_of(model: nn.Module, x: Tensor | None = None) -> nn.Linear:
    """The last linear layer; ValueError where the network does not end in one. Arguments as `last_layers`."""
    head = find_last_layer(model, x)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear that could be its last layer; features are read there"
        )
    return head


def _ends_in(model: nn.Module, layer: nn.Module) -> bool:
    """Whether the network is a plain sequence in which this layer, registered last, also runs last.

    Behind it may stand what is no such layer; a layer that stands earlier as well may be the last without being registered so.
    """
    while isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        children = [child for child in model if any(isinstance(part, LAYERS) for part in child.modules())]
        if not children or not any(part is layer for part in children[-1].modules()):
            return False
        model = children[-1]
    return model is layer


def _by_running(model: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> list[nn.Module]:
    """Those whose outputs, each cut off from what came before, have a gradient of the network's output."""
    ran: list[tuple[nn.Module, Tensor]] = []

    def cut(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        leaf = output.detach().requires_grad_()
        ran.append((module, leaf))
        return leaf.clone()  # which may be changed in place

    try:
        with torch.inference_mode(mode=False), still(model), torch.enable_grad():
            output = next(_tensors(_run(model, layers, x, cut)), x)
            slopes = torch.autograd.grad(output.sum(), [leaf for _, leaf in ran], allow_unused=True)
        found = [module for (module, _), slope in zip(ran, slopes, strict=True) if slope is not None]
    except (RuntimeError, TypeError):  # code that takes no tensors with gradients, or an output without any
        found = []
    return found or _by_order(model, layers, x)


def _by_order(model: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> list[nn.Module]:
    """The one whose output is the network's, else the linear one that ran last, else any."""
    ran: list[tuple[nn.Module, Any]] = []
    with still(model):
        output = _run(model, layers, x, lambda module, _inputs, output: ran.append((module, output)))
    ends = [module for module, given in ran if given is output]
    linear = [module for module, _ in ran if isinstance(module, nn.Linear)]
    return (ends or linear or [module for module, _ in ran])[-1:]


def _run(model: nn.Module, layers: Sequence[nn.Module], x: Tensor, hook: Callable[..., Any]) -> Any:
    first = next(model.parameters(), None)
    slow, hooks = OffFastPath(model, layers), [layer.register_forward_hook(hook) for layer in layers]
    try:
        return model(x.clone() if first is None else x.to(first.device, copy=True))
    finally:
        for handle in hooks:
            handle.remove()
        slow.undo()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


class _Tracer(fx.Tracer):
    """Follows a network's own code down to modules of torch, and past those without any of the layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = {id(layer) for layer in layers}

    def holds(self, module: nn.Module) -> bool:
        return any(id(part) in self.layers for part in module.modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or id(m) in self.layers or not self.holds(m)


def _by_tracing(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    tracer = _Tracer(layers)
    if tracer.is_leaf_module(model, ""):
        return []
    try:
        with still(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(model)
    except Exception:  # whatever a user's code does with a value that is none
        return []
    nodes = list(graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    ends: dict[int, nn.Module] = {}
    ahead, seen = _parts(nodes[-1].args)[:1], set()
    while ahead:
        node = ahead.pop()
        if node in seen or _asks_for_a_size(node):
            continue
        seen.add(node)
        inside = [] if node.op != "call_module" else _inside(model.get_submodule(str(node.target)), layers)
        if inside:
            ends[place[node]] = inside[-1]
        else:
            ahead += node.all_input_nodes
    return [ends[number] for number in sorted(ends)]


def _inside(module: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    own = {id(part) for part in module.modules()}
    return [layer for layer in layers if id(layer) in own]


def _parts(value: Any) -> list[fx.Node]:
    """The nodes in a nested value, in order."""
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [node for part in value for node in _parts(part)] if isinstance(value, tuple | list) else []


def _asks_for_a_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in SIZES
    return node.op == "call_function" and node.target is getattr and node.args[1] in SIZES


def named_module(model: nn.Module, layer: nn.Module | str) -> nn.Module:
    """The module itself, or the one of that name; ValueError if it is no part of the model."""
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer not in modules:
            raise ValueError(f"last_layer is {layer!r}; the model has {', '.join(name for name in modules if name)}")
        return modules[layer]
    if all(layer is not module for module in modules.values()):
        raise ValueError(
            f"last_layer is a {type(layer).__name__} that is no part of the model; give one of its modules"
        )
    return layer
