"""The modes of a network's modules: put into evaluation for a while, every one's own given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from probatum.numerics.tensors.draws import random_state_kept


@contextmanager
def modes_kept(*nets: nn.Module) -> Iterator[None]:
    """A block after which every module is in the mode it was in, frozen ones in evaluation among them."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training  # not train(), which sets what is inside too


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """A block in evaluation mode, afterwards every module in its own."""
    with modes_kept(*nets):
        for net in nets:
            net.eval()
        yield


def kept_in_evaluation(net: nn.Module) -> set[int]:
    """Positions, in the order of `net.modules()`, of the modules that stay in evaluation when the network is trained.

    Those in evaluation in a network in training were put there on purpose; of a network that is in evaluation as a whole
    nothing is kept but frozen batch norms.
    """
    return {
        k
        for k, module in enumerate(net.modules())
        if getattr(module, "still", False) or (net.training and not module.training)
    }


def trained_modules(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules by name but those that stay in evaluation when the network is trained."""
    kept = kept_in_evaluation(net)
    return [named for k, named in enumerate(net.named_modules()) if k not in kept]


def begin_training(net: nn.Module) -> None:
    """Training mode, but for the modules that stay in evaluation."""
    kept = kept_in_evaluation(net)
    net.train()
    for k, module in enumerate(net.modules()):
        if k in kept:
            module.training = False


@contextmanager
def still(net: nn.Module) -> Iterator[None]:
    """A block without gradients in which a look at the network changes nothing of it: no statistics, no random stream, no mode.

    The flags are set one by one, so that a `train` of the network's own is not called.
    """
    with modes_kept(net), random_state_kept(), torch.no_grad():
        for module in net.modules():
            module.training = False
        yield
