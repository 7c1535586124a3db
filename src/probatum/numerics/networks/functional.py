"""A network's pass with other weights in the place of its own, whatever stands in two places or is tied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(net: nn.Module, values: Mapping[str, Tensor], *inputs: Any) -> Any:
    """The network's output with `values` in place of the parameters and buffers of these names; the network is as before.

    Every slot of every module is filled once. torch's own tying (2.13.0) fills the slot of a module that stands in two places
    twice, and leaves the second value behind in place of the parameter.

    Args:
        net: the network.
        values: by names of `named_parameters()` and `named_buffers()`; what is not named stays the network's own. Tied
            parameters are named once.
        inputs: of its `forward`.

    Raises:
        KeyError: a name that the network does not have.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> net = nn.Sequential(layer, layer)
        >>> call_with(net, {"0.weight": 2 * torch.eye(2)}, torch.ones(1, 2))
        tensor([[4., 4.]])
        >>> [name for name, _ in net.named_parameters()], isinstance(layer.weight, nn.Parameter)
        (['0.weight'], True)
    """
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    unknown = next((name for name in values if name not in own), None)
    if unknown is not None:
        raise KeyError(f"{type(net).__name__} has no parameter or buffer {unknown!r}; it has {', '.join(own)}")
    given = {id(own[name]): value for name, value in values.items()}
    filled = {
        f"{path}.{name}" if path else name: given[id(slot)]
        for path, module in net.named_modules()
        for name, slot in (*module._parameters.items(), *module._buffers.items())
        if slot is not None and id(slot) in given
    }
    return functional_call(net, filled, inputs, tie_weights=False)
