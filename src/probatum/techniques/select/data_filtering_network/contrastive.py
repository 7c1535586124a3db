"""Two towers that bring both sides of a pair together and everything else in the batch apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.networks.modes import evaluating
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import unit

LARGEST_SCALE = math.log(100.0)
"""The learned inverse temperature may not pass 100 (Radford et al. 2021)."""


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE: the mean of the cross-entropies over rows and over columns of ``scale * a b^T``.

    Args:
        a, b: (n, d) of unit length, pairs by row.
        scale: inverse temperature.

    Returns:
        A scalar.
    """
    logits = scale * a @ b.T
    own = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class TwoTowers(nn.Module):
    """An encoder for each side, vectors of unit length, one learned inverse temperature.

    Args:
        left, right: (n, ...) -> (n, d), the same d.
        temperature: where the learned one begins, above 0.
    """

    def __init__(self, left: nn.Module, right: nn.Module, temperature: float = 0.07) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.left, self.right = left, right
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The loss of a batch of pairs."""
        scale = self.log_scale.clamp(max=LARGEST_SCALE).exp()
        return info_nce(unit(self.left(x.clone())), unit(self.right(t.clone())), scale)  # they may begin in place

    @torch.no_grad()
    def scores(self, x: Tensor, t: Tensor, block: int = 1024) -> Tensor:
        """Cosine of each pair, (n,), in evaluation mode."""
        with evaluating(self):
            found = [
                (unit(self.left(rows.clone())) * unit(self.right(texts.clone()))).sum(dim=1)  # they may begin in place
                for rows, texts in zip(x.split(block), t.split(block), strict=True)
            ]
        return torch.cat([self.log_scale.new_zeros(0), *found])

    @torch.no_grad()
    def classify(self, x: Tensor, prompts: Tensor, block: int = 1024) -> Tensor:
        """Zero-shot: cosines (n, classes) to the prompts (classes, ...), in evaluation mode."""
        with evaluating(self):
            to = unit(self.right(prompts.clone()))
            return torch.cat([unit(self.left(rows.clone())) @ to.T for rows in x.split(block)])


def fit_pairs(
    model: TwoTowers,
    x: Tensor,
    t: Tensor,
    seen: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    weight_decay: float = 1e-2,
) -> TwoTowers:
    """Train on pairs until `seen` of them were seen (epochs differ with the size of the data, this does not), in place.

    AdamW, rate along a half cosine; batches are drawn from shuffled passes; the global random state is put back.
    """
    steps = max(1, math.ceil(seen / batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.zeros(0, dtype=torch.int64)
    model.train()
    with own_draws(generator):
        for _ in range(steps):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(x), generator=generator)])
            rows, order = order[:batch_size], order[batch_size:]
            optimizer.zero_grad()
            model(x[rows], t[rows]).backward()
            optimizer.step()
            rate.step()
    return model.eval()
