"""Encouraging loss: keep rewarding examples that are already right.

Paper     Zhao et al. 2021, arXiv:2110.06537, sections 3.2 and 4
Computes  L = -log p_y + bonus(p_y); normal bonus log(1 - p); conservative bonus log(1 - p) up to the log-end e and its
          tangent log(1 - e) - (p - e) / (1 - e) beyond, so that the loss is bounded below
Shapes    output (n, classes), target (n,) int64 or (n, classes) probabilities -> loss (n,)
Departs   1. log(1 - p) is exact: of p itself where the log-end keeps it below 0.9, else the log-sum-exp over the other logits
             less that over all; the published code clamps 1 - p at 1e-5 and so loses the gradient it was made for
          2. log_end=None switches the bonus off, so that the loss is cross-entropy bit for bit
          3. soft targets and smoothing use sum_k q_k (bonus_k - log p_k), the natural extension of the paper's one-hot form
          4. neither the deferred start (some epochs of cross-entropy first) nor the bonuses that mirror other losses
          5. the mean over a batch without labelled rows is 0, where torch's cross-entropy has nan; half precision is computed
             in float32
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


NEAR_ONE = 0.9
"""Probabilities up to which log(1 - p) is taken of p itself: 1 - p has then lost at most one digit."""


def log_not(output: Tensor) -> Tensor:
    """log(1 - softmax(output)) for every class, from logits: output (n, classes) -> (n, classes); linear in the classes.

    All but the largest probability are at most 1/2, so that log1p(-p) is exact; of the largest it is the log-sum-exp over
    the other logits less that over all.
    """
    top = output.argmax(dim=1, keepdim=True)
    rest = torch.log1p(-output.softmax(dim=1).scatter(1, top, 0.0))
    return rest.scatter(1, top, _log_others(output, top))


def _log_others(output: Tensor, column: Tensor) -> Tensor:
    """log(1 - softmax(output)) at one class a row, exact however near to one: output (n, classes), column (n, 1) -> (n, 1)."""
    least = torch.finfo(output.dtype).min / 2  # where the others are all -inf, -inf would leave no gradient
    others = output.scatter(1, column, least).logsumexp(dim=1, keepdim=True)
    return others - output.logsumexp(dim=1, keepdim=True)


def bonus(log_p: Tensor, log_rest: Tensor | None, log_end: float) -> Tensor:
    """The bonus b(p) of probabilities given as log p and log(1 - p), any shape; log_end in [0, 1], 1 = never linear.

    Without log(1 - p) it is taken of p, which is exact up to `NEAR_ONE` and needed up to the log-end alone.
    """
    p = log_p.exp()
    if log_end == 1.0:
        return torch.log1p(-p) if log_rest is None else log_rest
    linear = (p - log_end).relu() / (1 - log_end)
    if log_rest is None:
        return (
            torch.log1p(-p.clamp(max=log_end)) - linear
        )  # its unused side is clamped, so that no NaN comes back from it
    return torch.where(p <= log_end, log_rest, math.log1p(-log_end)) - linear


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
    if target.is_floating_point():
        return _soft(output, target, log_end, smoothing, weight)
    kept = target != ignore_index
    return torch.where(kept, _hard(output, torch.where(kept, target, 0), log_end, smoothing, weight), 0.0)


def _hard(output: Tensor, target: Tensor, log_end: float | None, smoothing: float, weight: Tensor | None) -> Tensor:
    """Loss per example (n,) of classes (n,), all of them inside."""
    if smoothing:
        return _soft(output, F.one_hot(target, output.shape[1]).to(output.dtype), log_end, smoothing, weight)
    column = target.unsqueeze(1)  # (n, 1)
    own = output.log_softmax(dim=1).gather(1, column)
    loss = -own
    if log_end is not None:
        loss = loss + bonus(own, _log_others(output, column) if log_end > NEAR_ONE else None, log_end)
    loss = loss.squeeze(1)
    return loss if weight is None else loss * weight[target]


def _soft(output: Tensor, target: Tensor, log_end: float | None, smoothing: float, weight: Tensor | None) -> Tensor:
    """Loss per example (n,) of probabilities (n, classes)."""
    log_p = output.log_softmax(dim=1)
    per_class = -log_p
    if log_end is not None:
        per_class = per_class + bonus(log_p, log_not(output) if log_end > NEAR_ONE else None, log_end)
    target = (1 - smoothing) * target.to(output.dtype) + smoothing / output.shape[1]
    return ((target if weight is None else target * weight) * per_class).sum(dim=1)


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
            weight = None if self.weight is None else self.weight.to(output.dtype)
            return F.cross_entropy(
                output, target, weight, ignore_index=self.ignore_index, label_smoothing=self.smoothing
            )
        return self._mean(output, target)

    @computed_wide
    def _mean(self, output: Tensor, target: Tensor) -> Tensor:
        target = class_targets(output, target, ignored=self.ignore_index, soft=True)
        if target.is_floating_point():
            return _soft(output, target, self.log_end, self.smoothing, self.weight).mean()
        kept = target != self.ignore_index
        target = torch.where(kept, target, 0)
        loss = torch.where(kept, _hard(output, target, self.log_end, self.smoothing, self.weight), 0.0).sum()
        if self.weight is None:
            return loss / kept.sum().clamp(
                min=1
            )  # no rows weigh nothing, so that a batch of ignored ones moves nothing
        total = torch.where(kept, self.weight[target], 0.0).sum()  # as `F.cross_entropy` does
        return loss / torch.where(total == 0, 1.0, total)
