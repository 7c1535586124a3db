"""Freezing the body of a network: no gradients, and batch norms that go on with the statistics they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class _Still:
    """Mixed into a batch norm: it stays in evaluation mode, whatever mode the network around it is put in."""

    still = True

    def train(self, mode: bool = True) -> Any:
        """Nothing: evaluation mode is kept."""
        return super().train(False)  # type: ignore[misc]


class StillBatchNorm1d(_Still, nn.BatchNorm1d):
    """Batch norm by its running statistics, in training too."""


class StillBatchNorm2d(_Still, nn.BatchNorm2d):
    """Batch norm by its running statistics, in training too."""


class StillBatchNorm3d(_Still, nn.BatchNorm3d):
    """Batch norm by its running statistics, in training too."""


class StillSyncBatchNorm(_Still, nn.SyncBatchNorm):
    """Batch norm by its running statistics, in training too."""


NORMS: dict[type, type] = {
    nn.BatchNorm1d: StillBatchNorm1d,
    nn.BatchNorm2d: StillBatchNorm2d,
    nn.BatchNorm3d: StillBatchNorm3d,
    nn.SyncBatchNorm: StillSyncBatchNorm,
}


def freeze(net: nn.Module, keep: Sequence[nn.Module | None] = ()) -> int:
    """Freeze a network in place but for the modules in `keep`, and return how many numbers are no longer trained.

    Batch norms outside `keep` normalise by their running statistics from now on, which no longer move: statistics of
    single batches would change what the frozen weights see. Dropout stays as it is.
    """
    kept = [module for module in keep if module is not None]
    free = {id(parameter) for module in kept for parameter in module.parameters()}
    inside = {id(part) for module in kept for part in module.modules()}
    count = 0
    for parameter in net.parameters():
        if parameter.requires_grad and id(parameter) not in free:
            parameter.requires_grad_(False)
            count += parameter.numel()
    for module in net.modules():
        if type(module) in NORMS and id(module) not in inside:
            module.__class__ = NORMS[
                type(module)
            ]  # the same object: names, tensors and whoever holds it stay as they are
            module.eval()
    return count
