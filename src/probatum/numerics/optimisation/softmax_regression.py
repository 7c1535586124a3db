"""Multinomial logistic regression by full-batch L-BFGS, exact to tolerance, along a path of penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.numerics.tensors.targets import class_codes

LEAST_SCALE = 1e-6
"""Deviations up to this share of the largest one (or of 1, if that is less) are taken for none."""


@dataclass(frozen=True)
class Linear:
    """A linear classifier on standardised features: logits = ((x - mean) / scale) W^T + b, all float64.

    Attributes:
        mean: (d,).
        scale: (d,), positive.
        weight: (classes, d).
        bias: (classes,).
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, classes) float64."""
        return F.linear((features.double() - self.mean) / self.scale, self.weight, self.bias)


def standardiser(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (d,) float64 of features (n, d); 1 where they do not vary, beside the most varying of them."""
    values = features.double()
    spread = values.std(dim=0, correction=0)
    least = LEAST_SCALE * min(1.0, float(spread.max())) if spread.numel() else 0.0  # features may all be small
    return values.mean(dim=0), torch.where(spread > least, spread, torch.ones_like(spread))


def fit_softmax(
    features: Tensor,
    y: Tensor,
    classes: int,
    penalties: Sequence[float],
    standard: tuple[Tensor, Tensor] | None = None,
    steps: int = 200,
) -> list[Linear]:
    """For each penalty the classifier that minimises mean cross-entropy + penalty / 2 |W|^2; the bias is not penalised.

    Args:
        features: (n, d); no gradient goes to them.
        y: (n,) or (n, 1) classes, of which some may have no rows.
        classes: how many.
        penalties: all above 0; each starts where the one before ended, largest first, and comes back in the order given.
        standard: mean and deviation; None = of these features.
        steps: most iterations of L-BFGS for a penalty.

    Raises:
        ValueError: no penalties, or one that is not above 0; no rows; a label that is none of the classes.
    """
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties are {list(penalties)}; give one or more, all above 0")
    if not len(features) or len(features) != len(y):
        raise ValueError(f"there are {len(features)} rows of features and {len(y)} classes; give as many, one or more")
    mean, scale = standardiser(features) if standard is None else standard
    z = ((features.detach().double() - mean) / scale).contiguous()
    y = class_codes(y, len(z), classes).to(z.device)
    weight = torch.zeros(classes, z.shape[1], dtype=torch.float64, device=z.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=z.device, requires_grad=True)
    found: dict[float, Linear] = {}
    for penalty in sorted(set(penalties), reverse=True):
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(z, weight, bias), y) + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        found[penalty] = Linear(mean, scale, weight.detach().clone(), bias.detach().clone())
    return [found[penalty] for penalty in penalties]
