"""Sparsemax: project scores onto the probability simplex instead of taking softmax, so that many become exactly zero.

Paper     Martins and Astudillo 2016, arXiv:1602.02068, algorithm 1 and eq. 2, 10, 16 and 22
Computes  p = max(z - tau, 0) with tau such that sum(p) = 1; its loss L = 1/2 sum_S (z_j^2 - tau^2) + |q|^2 / 2 - <q, z> for a
          target distribution q, S the support of p; gradient p - q; Jacobian-vector product v - mean_S(v) on S, 0 elsewhere
Shapes    z (..., K) along any dim -> p of the same shape; loss: output (n, K), target (n,) int64 or (n, K) -> (n,)
Departs   1. computed on z - max(z), in float32 for half precision
          2. the loss is evaluated as 1/2 sum_j (p_j - q_j)(2 z_j - p_j - q_j) + rest, which is the same and does not cancel
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.matrices import widened
from probatum.numerics.simplex import simplex_threshold

CARD = Card(
    paper="arXiv:1602.02068",
    title="From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification",
    entry="apply",
    number=225,
    tags=("attention", "sparsity", "multi-label"),
    claims=("sparse-attention", "label-proportions"),
)


class _Project(torch.autograd.Function):
    """Forward: the projection; backward: the Jacobian-vector product on the support, without a sort in the graph."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dim: int, k: int | None) -> Tensor:
        wide = widened(z)
        wide = wide - wide.amax(dim=dim, keepdim=True)
        tau, support = simplex_threshold(wide, dim, k)
        p = (wide - tau).clamp(min=0)
        ctx.dim = dim
        ctx.save_for_backward(p > 0, support)
        return p.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        inside, support = ctx.saved_tensors
        v = gradients[0] * inside
        centred = v - v.sum(dim=ctx.dim, keepdim=True) / inside.sum(dim=ctx.dim, keepdim=True).to(v.dtype)
        return centred * inside, None, None


class _Loss(torch.autograd.Function):
    """Sparsemax loss of rows z (n, K) against distributions q (n, K), with its own backward p - q."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor) -> Tensor:
        wide, q = widened(z), widened(q)
        wide = wide - wide.amax(dim=1, keepdim=True)
        tau, _ = simplex_threshold(wide, 1)
        p = (wide - tau).clamp(min=0)
        ctx.save_for_backward(p - q)
        # sum_S (z^2 - tau^2) = <p, z> + tau, since z - tau = p and z + tau = 2 tau + p on S
        finite = torch.where(wide.isfinite(), wide, 0.0)
        loss = 0.5 * ((p * finite).sum(dim=1) + tau.squeeze(1) + q.square().sum(dim=1)) + 0.5 - (q * finite).sum(dim=1)
        return loss.clamp(min=0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return (gradients[0].unsqueeze(1) * difference).to(gradients[0].dtype), None
