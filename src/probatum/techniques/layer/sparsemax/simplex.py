"""Euclidean projection onto the probability simplex along one dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def simplex_threshold(z: Tensor, dim: int = -1, k: int | None = None) -> tuple[Tensor, Tensor]:
    """Threshold tau and support size of the projection max(z - tau, 0), both with `dim` of size 1.

    Args:
        z: scores, at least one finite along `dim`; -inf is never in the support.
        dim: dimension along which the result sums to 1.
        k: sort only the k largest first, and all only where the support might be larger; None = sort all.

    Source: Held, Wolfe and Crowder 1974; Martins and Astudillo 2016, alg. 1.
    """
    size = z.shape[dim]
    partial = k is not None and k < size
    top = z.topk(k, dim=dim).values if partial else z.sort(dim=dim, descending=True).values
    count = torch.arange(1, top.shape[dim] + 1, device=z.device, dtype=z.dtype)
    count = count.view([-1 if i == dim % z.ndim else 1 for i in range(z.ndim)])
    sums = top.cumsum(dim)
    inside = 1 + count * top > sums  # -inf entries: -inf > -inf is False
    support = inside.sum(dim=dim, keepdim=True)
    if partial and bool((support == k).any()):
        return simplex_threshold(z, dim)
    return (sums.gather(dim, support - 1) - 1) / support.to(z.dtype), support
