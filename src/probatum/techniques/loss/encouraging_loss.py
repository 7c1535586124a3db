"""Encouraging loss: keep rewarding examples that are already right.

Paper     Zhao et al. 2021, arXiv:2110.06537, sections 3.2 and 4
Computes  L = -log p_y + bonus(p_y); normal bonus log(1 - p); conservative bonus log(1 - p) up to the log-end e and its
          tangent log(1 - e) - (p - e) / (1 - e) beyond, so that the loss is bounded below
Shapes    output (n, classes), target (n,) int64 or (n, classes) probabilities -> loss (n,)
Departs   1. log(1 - p_k) is the log-sum-exp over the other logits less that over all, never log(1 - softmax): the
             published code clamps 1 - p at 1e-5 and so loses the gradient it was made for
          2. log_end=None switches the bonus off, so that the loss is cross-entropy bit for bit
          3. soft targets and smoothing use sum_k q_k (bonus_k - log p_k), the natural extension of the paper's one-hot form
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import class_targets

CARD = Card(
    paper="arXiv:2110.06537",
    title="Well-classified Examples are Underestimated in Classification with Deep Neural Networks",
    entry="EncouragingLoss",
    number=126,
    tags=("imbalance", "ood", "training"),
    separable=True,
    tasks=("classes", "next-token"),
    neutral={"log_end": None},
    tiny={"log_end": 0.75},
    tune={"log_end": [0.25, 0.5, 0.75]},
    claims=("accuracy-and-margin",),
)


def log_not(output: Tensor) -> Tensor:
    """log(1 - softmax(output)) for every class, from logits: output (n, classes) -> (n, classes)."""
    classes = output.shape[1]
    others = output.unsqueeze(1).expand(-1, classes, -1)  # (n, classes, classes)
    own = torch.eye(classes, dtype=torch.bool, device=output.device)
    others = others.masked_fill(own, float("-inf"))
    return others.logsumexp(dim=2) - output.logsumexp(dim=1, keepdim=True)  # (n, classes)


def bonus(log_p: Tensor, log_rest: Tensor, log_end: float) -> Tensor:
    """The bonus b(p) of probabilities given as log p and log(1 - p), any shape; log_end in [0, 1], 1 = never linear."""
    if log_end == 1.0:
        return log_rest
    p = log_p.exp()
    linear = math.log1p(-log_end) - (p - log_end) / (1 - log_end)
    return torch.where(p <= log_end, log_rest, linear)


@computed_wide
def encouraging_loss(
    output: Tensor,
    target: Tensor,
    *,
    log_end: float | None = 0.75,
    smoothing: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Encouraging loss of every example (arXiv:2110.06537, eq. 4 to 6).

    Args:
        output: logits (n, classes).
        target: classes (n,) or (n, 1) int64, or probabilities (n, classes).
        log_end: where the logarithmic bonus gives way to its tangent, in [0, 1]; 1 = normal bonus; None = no bonus.
        smoothing: share of the target spread over all classes, in [0, 1).
        weight: factor per class (classes,).
        ignore_index: targets to leave out; their loss is 0.

    Returns:
        Loss per example (n,).

    Raises:
        ValueError: shapes that do not go together, fewer than two classes, a label outside them.
    """
    target = class_targets(output, target, ignored=ignore_index, soft=True)
    log_p = output.log_softmax(dim=1)
    per_class = -log_p
    if target.ndim == 1 and smoothing == 0.0:
        kept = target != ignore_index
        column = torch.where(kept, target, 0).unsqueeze(1)  # (n, 1)
        own = log_p.gather(1, column).squeeze(1)
        loss = -own
        if log_end is not None:
            masked = output.scatter(1, column, float("-inf"))  # only the true class's rest is needed
            rest = masked.logsumexp(dim=1) - output.logsumexp(dim=1)
            loss = loss + bonus(own, rest, log_end)
        if weight is not None:
            loss = loss * weight[column.squeeze(1)]
        return torch.where(kept, loss, 0.0)
    if log_end is not None:
        per_class = per_class + bonus(log_p, log_not(output), log_end)
    if target.ndim == 1:
        kept = target != ignore_index
        soft = F.one_hot(torch.where(kept, target, 0), output.shape[1]).to(output.dtype) * kept.unsqueeze(1)
    else:
        soft, kept = target.to(output.dtype), torch.ones_like(output[:, 0], dtype=torch.bool)
    soft = (1 - smoothing) * soft + smoothing / output.shape[1] * kept.unsqueeze(1)
    if weight is not None:
        soft = soft * weight
    return (soft * per_class).sum(dim=1)


class EncouragingLoss(nn.Module):
    """Encouraging loss, (output (n, classes), target) -> scalar mean.

    Args:
        log_end: see `encouraging_loss`; the paper uses 0.75, and 0.5 where accuracy is low.
        smoothing: label smoothing in [0, 1).
        weight: factor per class; the mean divides by the targets' weights, as in `F.cross_entropy`.
        ignore_index: targets to leave out of the mean.

    Raises:
        ValueError: `log_end` or `smoothing` outside its range; fewer than two classes.

    Example:
        >>> loss = EncouragingLoss(log_end=0.75)
        >>> round(float(loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))), 4)
        -1.7826
    """

    def __init__(
        self,
        log_end: float | None = 0.75,
        smoothing: float = 0.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if log_end is not None and not 0.0 <= log_end <= 1.0:
            raise ValueError(f"log_end is {log_end}; it must lie in [0, 1], or be None for no bonus")
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing is {smoothing}; it must lie in [0, 1)")
        if log_end == 1.0:
            warnings.warn("log_end=1 makes the loss unbounded below: lower the learning rate", stacklevel=2)
        self.log_end = log_end
        self.smoothing = smoothing
        self.ignore_index = ignore_index
        self.weight: Tensor | None
        self.register_buffer("weight", weight)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if self.log_end is None:
            target = class_targets(output, target, ignored=self.ignore_index, soft=True)
            return F.cross_entropy(
                output, target, self.weight, ignore_index=self.ignore_index, label_smoothing=self.smoothing
            )
        return self._mean(output, target)

    @computed_wide
    def _mean(self, output: Tensor, target: Tensor) -> Tensor:
        target = class_targets(output, target, ignored=self.ignore_index, soft=True)
        loss = encouraging_loss(
            output,
            target,
            log_end=self.log_end,
            smoothing=self.smoothing,
            weight=self.weight,
            ignore_index=self.ignore_index,
        )
        if target.ndim == 1:
            kept = target != self.ignore_index
            if self.weight is None:
                return loss.sum() / kept.sum().clamp(min=1)
            return loss.sum() / self.weight[target[kept]].sum()  # as `F.cross_entropy` does
        return loss.mean()
