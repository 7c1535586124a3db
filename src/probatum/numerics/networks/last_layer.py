"""The last layer of a network: the one that runs last, which is not always the one that was registered last."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from probatum.numerics.networks.modes import still
from probatum.numerics.networks.surgery import inside_attention

LAYERS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROWS = 2
"""Rows on which a network is run to see which layer comes last."""


def find_last_layer(model: nn.Module, x: Tensor | None = None) -> nn.Module | None:
    """The linear layer that runs last, else the convolution, else None.

    A single candidate, or a plain sequence, needs no look. Otherwise the network is run on the first two rows of `x`, in
    evaluation mode and without a trace; where none are given it is traced symbolically, and where that fails too (control
    flow on values) the layer registered last is taken.

    Args:
        model: the network.
        x: rows (n, ...) that it takes.
    """
    closed = inside_attention(model)
    layers = [module for module in model.modules() if isinstance(module, LAYERS) and id(module) not in closed]
    layers = [module for module in layers if isinstance(module, nn.Linear)] or layers
    if len(layers) < 2 or _ends_in(model, layers[-1]):
        return layers[-1] if layers else None
    found = None if x is None or not len(x) else _by_running(model, layers, x[:ROWS])
    return found or _by_tracing(model, layers) or layers[-1]


def head_of(model: nn.Module, x: Tensor | None = None) -> nn.Linear:
    """The last linear layer; ValueError where the network has none. Arguments as `find_last_layer`."""
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


def _by_running(model: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> nn.Module | None:
    ran: list[tuple[nn.Module, Any]] = []
    hooks = [layer.register_forward_hook(lambda module, _i, output: ran.append((module, output))) for layer in layers]
    first = next(model.parameters(), None)
    try:
        with still(model):
            output = model(x.clone() if first is None else x.to(first.device, copy=True))
    finally:
        for hook in hooks:
            hook.remove()
    ends = [module for module, given in ran if given is output]
    found = ends or [module for module, _ in ran]
    return found[-1] if found else None


class _Tracer(fx.Tracer):
    """Follows a network's own code down to modules of torch, and past those without any of the layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = {id(layer) for layer in layers}

    def holds(self, module: nn.Module) -> bool:
        return any(id(part) in self.layers for part in module.modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or id(m) in self.layers or not self.holds(m)


def _by_tracing(model: nn.Module, layers: Sequence[nn.Module]) -> nn.Module | None:
    tracer = _Tracer(layers)
    if tracer.is_leaf_module(model, ""):
        return None
    try:
        with still(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(model)
    except Exception:  # whatever a user's code does with a value that is none
        return None
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module":
            inside = {id(part) for part in model.get_submodule(str(node.target)).modules()}
            found = [layer for layer in layers if id(layer) in inside]
            if found:
                return found[-1]
    return None


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
