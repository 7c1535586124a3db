"""What part a parameter plays in a network: hidden matrix, embedding, last layer or vector."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.utils import parametrize

from probatum.numerics.networks.last_layer import last_layers, named_module

ROLES = ("matrix", "embedding", "last", "vector")


def parameter_roles(
    model: nn.Module, last_layer: nn.Module | str | None = None, override: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The role of every trainable parameter, by name, in the model's order.

    Parameters with fewer than two dimensions are vectors; weights of embeddings are embeddings; the weight of
    `last_layer` (by default of all that `last_layers` finds) is last, also where it is tied to an embedding; all others
    are matrices. `override` maps names to roles and wins.

    Raises:
        ValueError: a name in `override` that the model lacks, or an unknown role.
    """
    override = dict(override or {})
    last = last_layers(model) if last_layer is None else [named_module(model, last_layer)]
    last_weights = {id(weight) for layer in last for weight in _weights(layer)}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, role in override.items():
        if name not in parameters:
            raise ValueError(f"roles names {name!r}; trainable parameters are {', '.join(parameters)}")
        if role not in ROLES:
            raise ValueError(f"roles gives {name!r} the role {role!r}; use one of {', '.join(ROLES)}")
    roles = {}
    for name, parameter in parameters.items():
        if parameter.ndim < 2:
            role = "vector"
        elif id(parameter) in last_weights:
            role = "last"
        else:
            role = "embedding" if id(parameter) in embeddings else "matrix"
        roles[name] = override.get(name, role)
    return roles


def _weights(layer: nn.Module | None) -> list[nn.Parameter]:
    """The weight of a layer; what it is computed from where it is parametrised."""
    if layer is not None and parametrize.is_parametrized(layer, "weight"):
        return list(layer.parametrizations["weight"].parameters())  # type: ignore[union-attr,index,operator]
    weight = getattr(layer, "weight", None)
    return [] if weight is None else [weight]
