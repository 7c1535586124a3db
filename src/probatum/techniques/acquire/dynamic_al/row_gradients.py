"""Gradients of single rows' losses: their squared norms and their products with a given direction, a few rows at a time.

Those of networks of half precision are computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from probatum.numerics.networks.substitute import call_with, wide_values
from probatum.numerics.tensors.precision import widened

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd


class Products(NamedTuple):
    """Squared norm of every row's gradient and its product with a direction, both (n,)."""

    square: Tensor
    cross: Tensor


def check_rows_apart(model: nn.Module) -> None:
    """ValueError where a row has no gradient of its own: batch norm in training mode mixes rows, dropout draws anew."""
    if any(isinstance(m, _BATCH_NORMS) and m.training for m in model.modules()):
        raise ValueError(
            "the network has batch norm in training mode, so that no row has a gradient of its own; call model.eval() first"
        )
    if any(isinstance(m, _DROPOUTS) and m.training and m.p > 0 for m in model.modules()):
        raise ValueError(
            "the network has dropout in training mode, so that a row's gradient is another one every time; call model.eval() first"
        )


def summed_gradient(
    model: nn.Module, x: Tensor, y: Tensor, names: tuple[str, ...], block: int = 256
) -> dict[str, Tensor]:
    """Gradient of the *sum* of cross-entropies of rows (n, ...), (n,) in the parameters named; the model's own stay as they are."""
    weights, wide = {name: p for name, p in model.named_parameters() if name in names}, wide_values(model)
    if not all(p.requires_grad for p in weights.values()):
        raise ValueError("a parameter that the gradient is asked for is frozen (requires_grad is False)")
    weights = {name: wide[name].requires_grad_() if name in wide else p for name, p in weights.items()}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    x = widened(x) if wide else x
    for rows, labels in zip(x.split(block), y.split(block), strict=True):
        output = call_with(model, wide, rows.clone())  # a network may begin by changing them in place
        loss = F.cross_entropy(output, labels, reduction="sum")
        for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True):
            if g is not None:  # the output need not use all parameters
                total[name] += g
    return {name: g.detach() for name, g in total.items()}


def row_products(model: nn.Module, x: Tensor, y: Tensor, direction: Mapping[str, Tensor], chunk: int = 64) -> Products:
    """Squared norm of each row's cross-entropy gradient and its product with `direction`.

    At most `chunk` gradients exist at once. Networks that `torch.func.vmap` refuses are taken row by row.

    Args:
        model: in evaluation mode, (n, ...) -> logits (n, classes).
        x, y: rows and labels.
        direction: one tensor for every parameter that is to be looked at, by name.
        chunk: rows at once.
    """
    wide = wide_values(model)
    x = widened(x) if wide else x
    looked = {name: wide.get(name, p.detach()) for name, p in model.named_parameters() if name in direction}
    named = (*model.named_parameters(), *model.named_buffers())
    fixed = {name: wide.get(name, t.detach()) for name, t in named if name not in looked}

    def loss(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(call_with(model, {**weights, **fixed}, row[None].clone()), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    squares, crosses = [], []
    for rows, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        try:
            gradients = each(looked, rows, labels)
        except RuntimeError:  # data-dependent control flow or an operation without a batching rule
            single = [grad(loss)(looked, row, label) for row, label in zip(rows, labels, strict=True)]
            gradients = {name: torch.stack([one[name] for one in single]) for name in looked}
        squares.append(sum(g.flatten(1).square().sum(dim=1) for g in gradients.values()))
        crosses.append(sum(g.flatten(1) @ direction[name].flatten() for name, g in gradients.items()))
    empty = x.new_zeros(0)
    return Products(torch.cat([empty, *squares]), torch.cat([empty, *crosses]))  # type: ignore[list-item]
