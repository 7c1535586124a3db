"""Dynamic active learning: ask for the rows that would speed training up most.

Paper     Wang, Huang, Wu, Margenot, Tong and He 2022, "Deep Active Learning by Leveraging Training Dynamics", NeurIPS 2022,
          arXiv:2110.08611
Computes  G(S) = |sum over S of grad l_i|^2, the rate at which gradient flow lowers the summed loss of S; a row u with
          pseudo-label argmax f(u) adds D(u|S) = |grad l_u|^2 + 2 <grad l_u, sum over S of grad l_i>; the largest D are asked
Shapes    pool of n rows, count -> positions (count,)
Departs   1. `scope="last"` looks at the last linear layer alone, which the paper does not need; the default is all weights
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.labels.acquisition import top
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.tensors.targets import class_codes
from probatum.spec import Pool
from probatum.techniques.acquire.dynamic_al.row_gradients import check_rows_apart, row_products, summed_gradient

CARD = Card(
    paper="NeurIPS 2022",
    title="Deep Active Learning by Leveraging Training Dynamics",
    entry="ask",
    number=9,
    tags=("data", "few-labels", "active-learning"),
    tasks=("classes",),
    tiny={"scope": "last"},
    tune={"scope": ["all", "last"]},
    claims=("beats-random-sampling",),
    expect_fail={
        "settings_matter": "both scopes rank the few rows of the suite alike; its own tests hold the difference"
    },
)

SCOPES = ("all", "last")


class Gain(NamedTuple):
    """What each candidate (n,) adds to the rate of training: its own square, twice its product with the labelled rows'
    summed gradient, and their sum; `pseudo` (n,) are the labels that were assumed."""

    own: Tensor
    cross: Tensor
    total: Tensor
    pseudo: Tensor

    def cross_share(self) -> float:
        """Mean |cross| over mean own. Near 0 the labelled rows are fitted and the rule is expected gradient length."""
        return float(self.cross.abs().mean() / self.own.mean().clamp(min=torch.finfo(self.own.dtype).tiny))


def names_of(model: nn.Module, scope: str) -> tuple[str, ...]:
    """The trainable parameters that a scope looks at; ValueError for an unknown scope."""
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; use one of {', '.join(SCOPES)}")
    parameters = dict(model.named_parameters())
    if scope == "last":
        own = {id(p) for p in head_of(model).parameters()}
        return tuple(name for name, p in parameters.items() if id(p) in own)
    return tuple(name for name, p in parameters.items() if p.requires_grad)


def training_rate(model: nn.Module, x: Tensor, y: Tensor, scope: str = "all") -> float:
    """G(S): minus the slope of the summed loss of rows (n, ...), (n,) under gradient flow, at least 0 (equation 5)."""
    found = summed_gradient(model, x, y, names_of(model, scope))
    return float(sum(g.double().square().sum() for g in found.values()))


def gain(model: nn.Module, x: Tensor, known_x: Tensor, known_y: Tensor, scope: str = "all", chunk: int = 64) -> Gain:
    """What each of the rows x (n, ...) would add to the training rate of the labelled rows (equation 9).

    Args:
        model: in evaluation mode, (n, ...) -> logits.
        x: candidates; their labels are taken to be what the model says.
        known_x, known_y: labelled rows; losses are summed over them, not averaged.
        scope: ``"all"`` trainable weights or those of the ``"last"`` linear layer.
        chunk: gradients of single rows that exist at once.

    Raises:
        ValueError: batch norm or dropout in training mode, labels outside the classes, an unknown scope, or no linear layer
            for ``"last"``.
    """
    check_rows_apart(model)
    with torch.no_grad():
        output = torch.cat([model(rows.clone()) for rows in x.split(512)])
    pseudo, known_y = output.argmax(dim=1), class_codes(known_y, len(known_x), output.shape[1])
    direction = summed_gradient(model, known_x, known_y, names_of(model, scope))
    products = row_products(model, x, pseudo, direction, chunk)
    cross = 2 * products.cross
    return Gain(products.square, cross, products.square + cross, pseudo)


def additive_ratio(
    model: nn.Module, x: Tensor, pseudo: Tensor, known_x: Tensor, known_y: Tensor, scope: str = "all"
) -> float:
    """The summed single gains of a batch over its exact gain G(S u Q) - G(S): 1 = the rows do not interact."""
    names = names_of(model, scope)
    direction = summed_gradient(model, known_x, known_y, names)
    products = row_products(model, x, pseudo, direction)
    batch = summed_gradient(model, x, pseudo, names)
    exact = sum((g.double().square().sum() + 2 * (g * direction[name]).double().sum()) for name, g in batch.items())
    return float((products.square + 2 * products.cross).double().sum() / exact)


def ask(pool: Pool, count: int, *, scope: str = "all", chunk: int = 64) -> Tensor:
    """The `count` open rows with the largest gain.

    Args:
        pool: rows, labels so far, and the network trained on them (in evaluation mode).
        count: rows to ask for.
        scope: ``"all"`` or ``"last"``, see `gain`.
        chunk: gradients of single rows that exist at once, at least 1.

    Raises:
        ValueError: settings out of range, more rows asked for than are open, batch norm in training mode.

    Example:
        >>> net = nn.Linear(2, 3).eval()
        >>> none = torch.zeros(0, dtype=torch.int64)
        >>> pool = Pool(torch.randn(9, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), net, none, none, 0, 4)
        >>> ask(pool, 2).shape
        torch.Size([2])
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk is {chunk!r}; give a whole number of at least 1")
    rows = pool.open()
    if not 1 <= count <= len(rows):
        raise ValueError(f"{count} rows are asked for and {len(rows)} are open; ask for 1 or more, at most those")
    known = torch.cat([pool.labelled, pool.machine])
    found = gain(pool.model, pool.x[rows], pool.x[known], torch.cat([pool.y, pool.guesses]), scope, chunk)
    return rows[top(found.total, count)]
