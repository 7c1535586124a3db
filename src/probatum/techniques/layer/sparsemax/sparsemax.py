"""Sparsemax: project scores onto the probability simplex instead of taking softmax, so that many become exactly zero.

Paper     Martins and Astudillo 2016, arXiv:1602.02068, algorithm 1 and eq. 2, 10, 16 and 22
Computes  p = max(z - tau, 0) with tau such that sum(p) = 1; with S its support, J v = v - mean_S(v) on S and 0 elsewhere;
          loss L = 1/2 sum_S (z_j^2 - tau^2) + |q|^2 / 2 - <q, z> for a target distribution q, with gradient p - q
Shapes    z (..., K) along any dim -> p of the same shape; loss: output (n, K), target (n,) int64 or (n, K) -> (n,)
Departs   1. computed on z - max(z), in float32 for half precision
          2. sum_S (z_j^2 - tau^2) is evaluated as <p, z> + tau, which is the same without large squares
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.surgery import layers, swap
from probatum.numerics.tensors.precision import computed_wide, widened
from probatum.numerics.tensors.targets import IGNORED, class_targets
from probatum.techniques.layer.sparsemax.simplex import threshold_below

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
    def forward(ctx: Any, z: Tensor, dim: int, k: int | None, top: Tensor) -> Tensor:
        wide = widened(z) - top
        tau, _ = threshold_below(wide, dim, k)
        p = wide.sub_(tau).clamp_min_(0)
        ctx.dim = dim
        ctx.save_for_backward(p > 0)
        return p.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        mask = inside.to(widened(gradients[0]).dtype)
        v = widened(gradients[0]) * mask
        mean = v.sum(dim=ctx.dim, keepdim=True) / mask.sum(dim=ctx.dim, keepdim=True)
        return torch.addcmul(v, mask, mean, value=-1).to(gradients[0].dtype), None, None, None


class _Loss(torch.autograd.Function):
    """Sparsemax loss of rows z (n, K), their projections p and distributions q (n, K), with its own backward p - q.

    p is an argument so that a second derivative goes on through it; the first takes nothing from it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(p, q)
        z = z - z.amax(dim=1, keepdim=True)
        tau = -p.amax(dim=1)  # the largest score is now 0
        own = torch.where(p > 0, p * z, 0.0).sum(dim=1) + tau
        gold = torch.where(q > 0, q * z, 0.0).sum(dim=1)
        return (0.5 * (own + q.square().sum(dim=1)) - gold).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        p, q = ctx.saved_tensors
        return gradients[0].unsqueeze(1) * (p - q), None, None


def sparsemax(z: Tensor, dim: int = -1, k: int | None = None) -> Tensor:
    """Sparsemax of z along `dim`, of z's shape and dtype; entries at -inf (masked) get exactly 0.

    Args:
        z: scores.
        dim: dimension along which the result sums to 1.
        k: sort the k largest scores, and all where the support is larger, in place of Newton's method; the result is the same.

    Raises:
        TypeError: z is not of floating point.
        ValueError: a NaN or +inf; a line whose entries are all -inf; k < 1.
    """
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; it must be at least 1, or None for no sort")
    return _Project.apply(z, dim, k, check_scores(z, dim))


@computed_wide
def sparsemax_loss(output: Tensor, target: Tensor) -> Tensor:
    """Sparsemax loss of every example (eq. 16 and 22), 0 once the gold score leads all others by 1.

    Args:
        output: scores (n, K).
        target: classes (n,) int64 (the loss of rows of -100 is 0), or distributions (n, K) whose rows sum to 1 (`uniform_over` for label sets).

    Returns:
        Loss (n,) >= 0.
    """
    if output.ndim != 2:
        raise ValueError(f"output has shape {tuple(output.shape)}; the loss needs (n, K)")
    p = _Project.apply(output, 1, None, check_scores(output, 1))
    if target.ndim == 2 and target.shape == output.shape and output.shape[1] > 1:
        q = target
        if bool((q < 0).any()) or bool(((q.sum(dim=1) - 1).abs() > 1e-3).any()):
            raise ValueError("target rows must be distributions over the classes; make label sets so by uniform_over")
        return _Loss.apply(output, p, q.to(output.dtype))
    codes = class_targets(output, target, ignored=IGNORED, least=1)
    kept = codes != IGNORED
    q = nn.functional.one_hot(torch.where(kept, codes, 0), output.shape[1])
    return torch.where(kept, _Loss.apply(output, p, q.to(output.dtype)), 0.0)


def uniform_over(labels: Tensor) -> Tensor:
    """Label sets (n, K) of 0 and 1 -> distributions uniform on each set; ValueError for an empty one."""
    counts = labels.sum(dim=1, keepdim=True)
    if bool((counts == 0).any()):
        raise ValueError(f"row {int((counts == 0).int().argmax())} has no label; sparsemax needs one at least")
    return labels / counts


def best_threshold(p: Tensor, labels: Tensor) -> float:
    """The p0 for which predicting the labels with p > p0 gives the best micro F1; p and labels (n, K)."""
    wanted = labels.flatten().bool()
    values, order = p.flatten().sort(descending=True)
    hits = wanted[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(hits) + 1, device=p.device) + wanted.sum())
    last = torch.cat(
        [values[1:] < values[:-1], torch.ones(1, dtype=torch.bool, device=p.device)]
    )  # end of a run of ties
    best = int(torch.where(last, f1, -1.0).argmax())
    below = float(values[best + 1]) if best + 1 < len(values) else 0.0
    return (float(values[best]) + below) / 2


def check_scores(z: Tensor, dim: int) -> Tensor:
    """The largest score of every line, `dim` kept; TypeError for integers, ValueError for NaN, +inf, or -inf throughout."""
    if not z.is_floating_point():
        raise TypeError(f"scores have dtype {z.dtype}; sparsemax needs floating point: call .float() first")
    top = z.detach().amax(dim=dim, keepdim=True)  # NaN where any is NaN
    if not bool(top.isfinite().all()):
        if bool(top.isnan().any()):
            raise ValueError("scores hold NaN; look for it in the layer before")
        masked = bool((top == float("-inf")).any())
        what = "a line masked (-inf) throughout; leave one entry open" if masked else "+inf; clip them"
        raise ValueError(f"scores hold {what}, or sparsemax has nothing to distribute over")
    return top


class Sparsemax(nn.Module):
    """`sparsemax` as a module, in place of `nn.Softmax`.

    Example:
        >>> Sparsemax(dim=1)(torch.tensor([[1.0, 0.5, -1.0], [3.0, 0.0, 0.0]]))
        tensor([[0.7500, 0.2500, 0.0000],
                [1.0000, 0.0000, 0.0000]])
    """

    def __init__(self, dim: int = -1, k: int | None = None) -> None:
        super().__init__()
        self.dim, self.k = dim, k

    def forward(self, z: Tensor) -> Tensor:
        return sparsemax(z, self.dim, self.k)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class SparsemaxLoss(nn.Module):
    """Mean of `sparsemax_loss`; predict by `sparsemax`, several labels by its entries above `best_threshold`."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = sparsemax_loss(output, target)
        if target.is_floating_point() or target.shape == output.shape:
            return loss.mean()
        kept = (target != IGNORED).sum()
        return loss.mean() if int(kept) == len(loss) else loss.sum() / kept


def apply(net: nn.Module, k: int | None = None) -> int:
    """Swap every `nn.Softmax` module inside a network for `Sparsemax` of the same dimension, in place.

    Softmax called as a function (as in `nn.MultiheadAttention`) is not reached.

    Args:
        net: the network.
        k: see `sparsemax`.

    Returns:
        How many were swapped.

    Raises:
        ValueError: a softmax without a dimension; k < 1; a network that is itself a softmax.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1))
        >>> apply(net), net[1]
        (1, Sparsemax(dim=1))
    """
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; it must be at least 1, or None for no sort")
    found = layers(net, [nn.Softmax])
    for name, child in found.items():
        if child.dim is None:
            raise ValueError(f"softmax {name!r} has dim=None; build it with the dimension it works on")
    return swap(net, {child: Sparsemax(child.dim, k) for child in found.values()}).count
