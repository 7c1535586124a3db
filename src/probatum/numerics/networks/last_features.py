"""What a network hands to its last linear layer, in blocks of rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from probatum.numerics.networks.roles import find_last_layer


class Seen(NamedTuple):
    """Inputs of the last linear layer (n, d) and the network's outputs (n, outputs), both detached."""

    features: Tensor
    logits: Tensor


def head_of(model: nn.Module) -> nn.Linear:
    """The last linear layer; ValueError where the network has none."""
    head = find_last_layer(model)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear that could be its last layer; features are read there"
        )
    return head


def last_features(model: nn.Module, x: Tensor, head: nn.Linear | None = None, block: int = 512) -> Seen:
    """Features before the last linear layer and outputs, in evaluation mode and without gradients.

    Args:
        model: (n, ...) -> (n, outputs); its mode is put back.
        x: rows.
        head: the layer whose inputs are read; None = the last `nn.Linear`.
        block: rows at once.

    Raises:
        ValueError: no such layer, one that does not run, or one that does not see one vector a row.
    """
    head = head or head_of(model)
    caught: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0].detach()))
    was_training = model.training
    model.eval()
    outputs = []
    try:
        with torch.no_grad():
            outputs = [model(rows) for rows in x.split(block)]
    finally:
        handle.remove()
        model.train(was_training)
    if len(caught) != len(outputs):
        raise ValueError(f"the last layer of {type(model).__name__} ran {len(caught)} times for {len(outputs)} blocks")
    features = torch.cat(caught) if caught else x.new_zeros(0, head.in_features)
    if features.ndim != 2 or len(features) != len(x):
        raise ValueError(f"the last layer sees {tuple(features.shape)} for {len(x)} rows; one vector a row is needed")
    return Seen(features, torch.cat(outputs) if outputs else x.new_zeros(0, head.out_features))
