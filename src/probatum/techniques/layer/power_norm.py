"""PowerNorm: channels are divided by a running quadratic mean, with a running correction of the gradient.

Paper     Shen et al. 2020, "PowerNorm: Rethinking Batch Normalization in Transformers", arXiv:2003.07845, section 4 and
          algorithms 1 and 2
Computes  forward: xhat = x / sqrt(psi^2 + eps), y = gamma xhat + beta, then psi^2 <- a psi^2 + (1 - a) mean(x^2). Backward:
          g = gamma dy, dx = (g - nu xhat) / psi, then nu <- nu (1 - (1 - a) mean(xhat^2)) + (1 - a) mean(g xhat). In the
          first `warmup` passes psi is the batch's and the running one a plain average. "vanilla" (PN-V) is the batch's RMS
          with its exact gradient. Before all that x is divided by the RMS of its group of C / groups channels, as in the released
          code, which has a group a head of the attention; groups=0 leaves that out
Shapes    (..., C) -> (..., C); statistics over all positions but the padded ones
Departs   1. warm-up is a tenth of the steps on the bench, where the released code has 10,000 passes; in the warm-up's running
             average that code counts each batch twice, here once
          2. gradient="released" divides the gradient by the batch's psi, as the released code does; the paper divides by the
             running one, which is the default
          3. a forward pass that is computed a second time for the sake of memory (activation checkpointing) counts twice, as it
             does in torch's batch norm
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.surgery import check_plain, layers, swap
from probatum.numerics.tensors.masks import truth_values
from probatum.numerics.tensors.precision import WideBuffers, computed_wide

CARD = Card(
    paper="arXiv:2003.07845",
    title="PowerNorm: Rethinking Batch Normalization in Transformers",
    entry="apply",
    number=65,
    tags=("normalisation", "transformers", "language"),
    modalities=("text",),
    tasks=("next-token",),
    alone="its running moments belong to one network and change in the backward pass",
    tiny={"warmup": 2},
    tune={"alpha_forward": (0.8, 0.99), "alpha_backward": (0.8, 0.99), "groups": [0, 1, 4]},
    claims=("better-than-batch-norm",),
)

MODES = ("power", "vanilla")
GRADIENTS = ("paper", "released")


def group_scaled(x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """x (..., C) divided by the RMS of its group of C / groups channels at each position."""
    parts = x.unflatten(-1, (groups, -1))
    return (parts / (parts.square().mean(dim=-1, keepdim=True) + eps).sqrt()).flatten(-2)


class _Power(torch.autograd.Function):
    """x (n, C), gamma, beta (C,), valid (n,) or None -> (n, C); changes psi2 in the forward and nu in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, valid: Tensor | None, layer: PowerNorm, warming: bool
    ) -> Tensor:
        batch = x.square().mean(dim=0) if valid is None else x[valid].square().mean(dim=0)
        psi2 = batch if warming else layer.psi2.clone()
        scale = (psi2 + layer.eps).sqrt()
        hat = x / scale
        count = int(layer.seen)
        keep = (count - 1) / count if warming else layer.alpha_forward
        layer.psi2.mul_(keep).add_(batch, alpha=1 - keep)
        below = (batch + layer.eps).sqrt() if layer.gradient == "released" else scale
        ctx.save_for_backward(hat, gamma, below, valid)
        ctx.layer = layer
        return hat * gamma + beta

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        hat, gamma, below, valid = ctx.saved_tensors
        layer = ctx.layer
        g = dy * gamma
        dx = (g - layer.nu * hat) / below
        seen, pull = (hat, g) if valid is None else (hat[valid], g[valid])
        rate = 1 - layer.alpha_backward
        power, product = seen.square().mean(dim=0), (pull * seen).mean(dim=0)
        layer.nu.mul_(1 - rate * power).add_(product, alpha=rate)
        return dx, (dy * hat).sum(dim=0), dy.sum(dim=0), None, None, None


class PowerNorm(WideBuffers, nn.Module):
    """Power normalisation over the last dimension.

    Args:
        channels: C.
        alpha_forward, alpha_backward: decay of psi^2 and nu, in [0, 1).
        warmup: training passes at the batch's own statistics, at least 1.
        groups: of the scaling before it; 0 = none, otherwise a divisor of C.
        mode: "power", or "vanilla" for the exact gradient of the batch's RMS.
        gradient: "paper" or "released".
        eps: added to psi^2.

    Raises:
        ValueError: a setting outside its range; a training pass without one position that counts; a mask of another shape.
        TypeError: a mask of floating point.

    Example:
        >>> norm = PowerNorm(4, warmup=1)
        >>> x = torch.linspace(-2, 2, 24).view(2, 3, 4)
        >>> y = norm(x)
        >>> torch.allclose(y.square().mean(dim=(0, 1)), torch.ones(4), atol=1e-4), torch.equal(norm.eval()(x), norm(x))
        (True, True)
    """

    psi2: Tensor
    nu: Tensor
    seen: Tensor
    wide = ("psi2", "nu")

    def __init__(
        self,
        channels: int,
        alpha_forward: float = 0.9,
        alpha_backward: float = 0.9,
        warmup: int = 10_000,
        groups: int = 0,
        mode: str = "power",
        gradient: str = "paper",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _check(alpha_forward, alpha_backward, warmup, groups, mode, gradient, eps)
        if groups and channels % groups:
            raise ValueError(f"groups is {groups}, which does not divide {channels} channels")
        self.alpha_forward, self.alpha_backward, self.warmup = alpha_forward, alpha_backward, warmup
        self.groups, self.mode, self.gradient, self.eps = groups, mode, gradient, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("psi2", torch.ones(channels))
        self.register_buffer("nu", torch.zeros(channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @computed_wide
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (..., C); mask (...), True (or 1) at positions that count."""
        if self.groups:
            x = group_scaled(x, self.groups, self.eps)
        if not self.training:
            return x / (self.psi2 + self.eps).sqrt() * self.weight + self.bias
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask has shape {tuple(mask.shape)} for x of {tuple(x.shape)}; give one value a position")
        valid = None if mask is None else truth_values(mask).flatten()
        if valid is not None and not valid.any():
            raise ValueError("mask has no position that counts; a training batch needs one at least")
        rows = x.reshape(-1, x.shape[-1])
        if not len(rows):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; a training batch needs one position at least for its statistics"
            )
        self.seen.add_(1)  # `+=` would register the buffer anew at every pass, which torch takes its time for
        warming = int(self.seen) <= self.warmup
        if self.mode == "power":
            return _Power.apply(rows, self.weight, self.bias, valid, self, warming).view(x.shape)
        batch = (rows if valid is None else rows[valid]).square().mean(dim=0)
        count = int(self.seen)
        keep = (count - 1) / count if warming else self.alpha_forward
        with torch.no_grad():
            self.psi2.mul_(keep).add_(batch, alpha=1 - keep)
        return (rows / (batch + self.eps).sqrt() * self.weight + self.bias).view(x.shape)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, groups={self.groups}, mode={self.mode}"


def apply(
    net: nn.Module,
    alpha_forward: float = 0.9,
    alpha_backward: float = 0.9,
    warmup: int | None = None,
    groups: int | None = None,
    mode: str = "power",
    gradient: str = "paper",
    total_steps: int | None = None,
) -> int:
    """Replace every layer norm over the last dimension by a `PowerNorm` with its gamma and beta, in place.

    Args:
        net: a network.
        warmup: None = a tenth of `total_steps`, 10,000 where that is unknown.
        total_steps: steps of the training to come.
        groups: of the scaling before it, a divisor of every norm's channels; 0 = none; None = the heads of the attention in
            the norm's layer or in the network, one where there is none.
        alpha_forward, alpha_backward, mode, gradient: see `PowerNorm`.

    Returns:
        How many were replaced.

    Raises:
        ValueError: a setting outside its range; a network that is itself a layer norm.
        TypeError: a layer norm with parametrised weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> apply(net), net[1]
        (1, PowerNorm(8, groups=1, mode=power))
    """
    if warmup is None:
        warmup = 10_000 if total_steps is None else max(1, total_steps // 10)
    _check(alpha_forward, alpha_backward, warmup, groups, mode, gradient, 1e-5)
    new: dict[nn.Module, nn.Module] = {}
    for name, old in layers(net, [nn.LayerNorm]).items():
        if len(old.normalized_shape) == 1:
            check_plain(old, name)
            channels = old.normalized_shape[0]
            own = heads_near(net, name, channels) if groups is None else groups
            made = PowerNorm(channels, alpha_forward, alpha_backward, warmup, own, mode, gradient, old.eps)
            if old.elementwise_affine:
                made.to(old.weight).weight = old.weight  # itself: tied, frozen and in the optimizer where it was
                if old.bias is not None:
                    made.bias = old.bias
            new[old] = made
    return swap(net, new).count


def heads_near(net: nn.Module, path: str, channels: int) -> int:
    """Heads of the attention nearest to a norm: in what it stands in, then in what that stands in, and so on; else 1.

    Heads are told by `num_heads` or `heads` of a module, where they cut the channels into equal groups of two or more.
    """
    while path:
        path = path.rpartition(".")[0]
        for module in net.get_submodule(path).modules():
            for name in ("num_heads", "heads"):
                heads = getattr(module, name, None)
                if isinstance(heads, int) and 0 < heads < channels and channels % heads == 0:
                    return heads
    return 1


def _check(
    alpha_forward: float, alpha_backward: float, warmup: int, groups: int | None, mode: str, gradient: str, eps: float
) -> None:
    for name, value in (("alpha_forward", alpha_forward), ("alpha_backward", alpha_backward)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; it must lie in [0, 1)")
    if warmup < 1 or (groups is not None and groups < 0) or not eps > 0:
        raise ValueError(f"warmup is {warmup}, groups {groups}, eps {eps}; need warmup >= 1, groups >= 0 and eps > 0")
    for name, word, allowed in (("mode", mode, MODES), ("gradient", gradient, GRADIENTS)):
        if word not in allowed:
            raise ValueError(f"{name} is {word!r}; use one of {', '.join(allowed)}")
