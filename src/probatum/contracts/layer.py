"""Slot `layer`: an `nn.Module` and, in the same file, ``apply(net, ...) -> int`` that swaps it into a built network
in place and returns how many places it changed (0 = "no effect", which the bench reports as such). A layer that adapts
pretrained networks freezes what it does not train (`numerics.networks.frozen.freeze`); the last layer, which is new, it may ask for
as `last_layer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

ARENA = "predict"
TRAINED = True
FIXED: tuple[str, ...] = ("net",)
OFFERED: tuple[str, ...] = ()


class Surgeon(Protocol):
    """net -> number of swaps."""

    def __call__(self, net: nn.Module) -> int: ...
