"""Euclidean projection onto the probability simplex along one dimension."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_STEPS = 24
"""Steps of Newton's method before the sort takes over; it needs about five, and as many as there are scores at worst."""


def simplex_threshold(z: Tensor, dim: int = -1, k: int | None = None) -> tuple[Tensor, Tensor]:
    """Threshold tau and support size of the projection max(z - tau, 0), both with `dim` of size 1.

    Args:
        z: scores, at least one finite along `dim`; -inf is never in the support.
        dim: dimension along which the result sums to 1.
        k: sort the k largest, and all where the support might be larger; None = no sort but Newton's method, in time linear
            in the scores.

    Source: Held, Wolfe and Crowder 1974; Martins and Astudillo 2016, alg. 1; Newton's method as Michelot 1986.
    """
    top = z.amax(dim=dim, keepdim=True)
    tau, support = threshold_below(z - top, dim, k)
    return tau + top, support


def threshold_below(z: Tensor, dim: int, k: int | None = None) -> tuple[Tensor, Tensor]:
    """`simplex_threshold` of scores whose largest is 0 on every line, so that tau lies from -1 to 0."""
    z = z.clamp_min(-1)  # what lies below is never in the support
    inside, size = _support_by_newton(z, dim) if k is None else _support_by_sort(z, dim, k)
    return (inside.mul_(z).sum(dim=dim, keepdim=True) - 1) / size, size.long()


def _support_by_newton(z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """1 at the scores in the support and 0 elsewhere, and how many they are.

    sum(max(z - tau, 0)) = 1 is solved from tau = -1, where the sum is 1 or more. It is convex and falling, so that tau only
    rises and the support only shrinks; once it stays as it is, tau is exact.
    """
    left = z + 1
    inside = left.sign()  # numbers, which add up faster than truth values
    size = inside.sum(dim=dim, keepdim=True)
    tau = torch.full_like(size, -1.0)
    for _ in range(MOST_STEPS):
        tau += (left.sum(dim=dim, keepdim=True) - 1) / size
        torch.sub(z, tau, out=left).clamp_min_(0)
        torch.sign(left, out=inside)
        smaller = inside.sum(dim=dim, keepdim=True)
        if bool((smaller >= size).all()):  # it grows by rounding alone, where a score is at the threshold
            return inside, smaller
        size = smaller
    return _support_by_sort(z, dim, z.shape[dim])


def _support_by_sort(z: Tensor, dim: int, k: int) -> tuple[Tensor, Tensor]:
    partial = k < z.shape[dim]
    top = z.topk(k, dim=dim).values if partial else z.sort(dim=dim, descending=True).values
    count = torch.arange(1, top.shape[dim] + 1, device=z.device, dtype=z.dtype)
    count = count.view([-1 if i == dim % z.ndim else 1 for i in range(z.ndim)])
    fits = 1 + count * top > top.cumsum(dim)  # -inf entries: -inf > -inf is False
    support = fits.sum(dim=dim, keepdim=True)
    if partial and bool((support == k).any()):
        return _support_by_sort(z, dim, z.shape[dim])
    inside = (z >= top.gather(dim, support - 1)).to(z.dtype)  # what ties with the smallest one is in the support, too
    return inside, inside.sum(dim=dim, keepdim=True)
