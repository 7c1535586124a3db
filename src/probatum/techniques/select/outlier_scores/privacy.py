"""Differentially private gradients: clipping for each example, and what the noise is worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from probatum.numerics.networks.substitute import call_with

ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512)
"""Renyi orders that are looked at."""


def clipped_gradients(model: nn.Module, x: Tensor, y: Tensor, clip: float, chunk: int = 128) -> dict[str, Tensor]:
    """Sum over examples of their own cross-entropy gradients, each scaled down to norm `clip` at most.

    The model runs in evaluation mode, where rows do not depend on each other.

    Args:
        model: (n, ...) -> logits (n, classes).
        x, y: n examples (n may be 0).
        clip: largest norm, over all parameters together.
        chunk: examples at once.

    Returns:
        A gradient for every trainable parameter, by name.
    """
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {
        name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers()) if name not in trainable
    }

    def loss(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        output = call_with(model, {**parameters, **fixed}, one[None])
        return F.cross_entropy(output, label[None])

    total = {name: torch.zeros_like(p) for name, p in trainable.items()}
    each = vmap(grad(loss), in_dims=(None, 0, 0))
    for rows in torch.arange(len(y)).split(chunk) if len(y) else ():
        gradients = each(trainable, x[rows], y[rows])
        norms = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients.values()]).sum(dim=0).sqrt()
        factor = (clip / norms.clamp(min=1e-12)).clamp(max=1.0)
        for name, g in gradients.items():
            total[name] += torch.einsum("n,n...->...", factor, g)
    return total


def fit_privately(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    share: float,
    noise: float,
    clip: float,
    lr: float,
    generator: torch.Generator,
) -> nn.Module:
    """Train `model` in place by DP-SGD (Abadi et al. 2016, arXiv:1607.00133, algorithm 1) and leave it in evaluation mode.

    Args:
        steps: updates, each on rows drawn independently with probability `share`.
        noise: standard deviation of the Gaussian noise, in units of `clip`.
        clip: largest norm of an example's gradient.
        lr: learning rate of the averaged noisy gradient, momentum 0.9.
    """
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=lr, momentum=0.9)
    for _ in range(steps):
        drawn = torch.rand(len(y), generator=generator) < share
        for name, total in clipped_gradients(model, x[drawn], y[drawn], clip).items():
            noisy = total + noise * clip * torch.randn(total.shape, generator=generator, dtype=total.dtype)
            parameters[name].grad = noisy / (share * len(y))
        optimizer.step()
    return model


def epsilon(noise: float, share: float, steps: int, delta: float) -> float:
    """The epsilon of `steps` subsampled Gaussian steps at this delta, through Renyi differential privacy.

    Renyi divergence of one step by Mironov et al. 2019 (arXiv:1908.10530, section 3.3) at whole orders; conversion by
    Canonne et al. 2020 (arXiv:2004.00010, proposition 12).

    Raises:
        ValueError: noise that is not above 0; share or delta outside (0, 1].
    """
    if not noise > 0:
        raise ValueError(f"noise is {noise}; without noise there is no privacy, give a value above 0")
    if not (0 < share <= 1 and 0 < delta < 1):
        raise ValueError(f"share is {share} and delta {delta}; they must lie in (0, 1] and (0, 1)")
    best = math.inf
    for order in ORDERS:
        divergence = steps * _renyi(noise, share, order)
        term = divergence - (math.log(delta) + math.log(order)) / (order - 1) + math.log1p(-1 / order)
        best = min(best, term)
    return max(0.0, best)


def _renyi(noise: float, share: float, order: int) -> float:
    if share == 1.0:
        return order / (2 * noise**2)
    terms = []
    for k in range(order + 1):
        log_choose = math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        terms.append(log_choose + k * math.log(share) + (order - k) * math.log1p(-share) + (k * k - k) / (2 * noise**2))
    top = max(terms)
    return (top + math.log(sum(math.exp(term - top) for term in terms))) / (order - 1)
