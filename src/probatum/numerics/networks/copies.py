"""Copies of networks as they are, also in the middle of training."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def copied(net: Net) -> Net:
    """A deep copy.

    torch's older norms of weights (`nn.utils.weight_norm`, `nn.utils.spectral_norm`) leave the weight that they computed on the
    module, graph and all, and `copy.deepcopy` refuses what is in a graph. The copy has its values, until its next pass computes
    them anew.

    Example:
        >>> import torch
        >>> net = nn.utils.spectral_norm(nn.Linear(2, 2))
        >>> x, found = torch.ones(1, 2), net(torch.ones(1, 2))
        >>> torch.equal(copied(net).eval()(x), net.eval()(x))
        True
    """
    memo = {
        id(value): value.detach().clone()
        for module in net.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(net, memo)
