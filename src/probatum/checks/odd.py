"""Networks as users have them: in-place activations, one module in two places, tied, frozen and parametrised weights, heads
registered before bodies, concatenated branches, torch's encoder layer with its fast path."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

INNER = 8
"""Features inside of the small networks."""


class HeadFirst(nn.Module):
    """A head that is registered before the body that runs before it."""

    def __init__(self, body: nn.Module, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(INNER, outputs)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, outputs)."""
        return self.head(self.body(x))


class Twice(nn.Module):
    """One module under two names, run at both."""

    def __init__(self, body: nn.Module, outputs: int) -> None:
        super().__init__()
        self.first = body
        self.second = body
        self.head = nn.Linear(INNER, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, outputs)."""
        return self.head(self.first(x) + self.second(0.5 * x))


class Branches(nn.Module):
    """Two branches side by side, concatenated."""

    def __init__(self, left: nn.Module, right: nn.Module, outputs: int) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.head = nn.Linear(2 * INNER, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, outputs)."""
        return self.head(torch.cat([self.left(x), self.right(x)], dim=1))


class Encoder(nn.Module):
    """Torch's encoder layer over the features, whose evaluation without gradients reads weights past patches and hooks."""

    def __init__(self, body: nn.Module, outputs: int) -> None:
        super().__init__()
        self.body = body
        self.layer = nn.TransformerEncoderLayer(INNER, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(INNER, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, outputs)."""
        features = self.body(x)
        tokens = torch.stack([features, features.roll(1, dims=1), features.flip(1)], dim=1)
        return self.head(self.layer(tokens).mean(dim=1))


def body(shape: tuple[int, ...], *, inplace: bool = False) -> nn.Sequential:
    """Rows of a shape -> INNER features, with a norm and two layers on the way; nothing but plain modules of torch.

    No bias stands before a batch norm: its gradient would be rounding noise, which Adam makes steps of.
    """
    if len(shape) == 3:
        return nn.Sequential(
            nn.Conv2d(shape[0], INNER, 3, padding=1, bias=False),
            nn.BatchNorm2d(INNER),
            nn.ReLU(inplace=inplace),
            nn.Conv2d(INNER, INNER, 3, padding=1),
            nn.ReLU(inplace=inplace),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    if len(shape) == 2:
        return nn.Sequential(
            nn.Conv1d(shape[0], INNER, 5, padding=2, bias=False),
            nn.BatchNorm1d(INNER),
            nn.ReLU(inplace=inplace),
            nn.Conv1d(INNER, INNER, 5, padding=2),
            nn.ReLU(inplace=inplace),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
    return nn.Sequential(
        nn.Linear(shape[0], 12, bias=False),
        nn.BatchNorm1d(12),
        nn.ReLU(inplace=inplace),
        nn.LayerNorm(12),
        nn.Linear(12, INNER),
        nn.ReLU(inplace=inplace),
    )


def plain(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """What nothing is odd about."""
    return nn.Sequential(body(shape), nn.Linear(INNER, outputs))


def in_place(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """`plain` with activations that work in place."""
    return nn.Sequential(body(shape, inplace=True), nn.Linear(INNER, outputs))


def in_two_places(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """One body under two names."""
    return Twice(body(shape), outputs)


def tied(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two bodies whose weights are the same parameters."""
    left = body(shape)
    right = copy.deepcopy(left)
    for (_, mine), (_, theirs) in zip(left.named_modules(), right.named_modules(), strict=True):
        for name, value in list(mine._parameters.items()):
            theirs._parameters[name] = value
    return Branches(left, right, outputs)


def frozen(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A body whose weights are not trained, and whose norm is kept in evaluation by its owner."""
    net = plain(shape, outputs)
    net[0].requires_grad_(False)  # type: ignore[index]
    return net


def parametrised(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Weights that are computed from others."""
    net = plain(shape, outputs)
    for module in list(net.modules()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            parametrizations.weight_norm(module)
    return net


def head_first(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A head registered before its body."""
    return HeadFirst(body(shape), outputs)


def branches(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two bodies, concatenated."""
    return Branches(body(shape), body(shape), outputs)


def encoder(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A body under torch's encoder layer."""
    return Encoder(body(shape), outputs)


ODD: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "activations in place": in_place,
    "one module in two places": in_two_places,
    "tied weights": tied,
    "frozen weights": frozen,
    "parametrised weights": parametrised,
    "a head registered before its body": head_first,
    "concatenated branches": branches,
    "torch's encoder layer": encoder,
}
"""What is odd about a network, and how one is made of rows' shape and outputs."""


def odd(what: str, shape: tuple[int, ...], outputs: int, seed: int = 0) -> nn.Module:
    """A network of a kind of `ODD`, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ODD[what](shape, outputs)
