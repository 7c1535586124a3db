"""How small a change of the input changes the answer (robustness rho of Moosavi-Dezfooli et al. 2016, arXiv:1511.04599)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from probatum.measure.base import Measure

_CLASSES = ("classes",)
MEASURES = (
    Measure(
        "adversarial-distance",
        "attack",
        False,
        math.log(1.05),
        "ratio",
        tasks=_CLASSES,
        about="median ||change|| / ||x|| (l2) of flips; rows not flipped count as the whole x",
    ),
    Measure(
        "attack-success",
        "attack",
        True,
        0.01,
        tasks=_CLASSES,
        about="share of rightly classified rows whose answer was changed",
    ),
    Measure(
        "attack-time-ratio",
        "speed",
        False,
        0.0953,
        "ratio",
        tasks=_CLASSES,
        about="time of an attack, timed interleaved",
    ),
)


def attacked(predict: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, changed: Tensor) -> dict[str, float]:
    """Measures of an attack on rows that the model has right: x and changed (n, ...), target (n,)."""
    with torch.no_grad():
        flipped = predict(changed).argmax(dim=1) != target
    size = (changed - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-12)
    distance = torch.where(flipped, size, torch.ones_like(size)).clamp_min(1e-9)
    return {"adversarial-distance": float(distance.median()), "attack-success": float(flipped.float().mean())}


def sign_line_search(
    predict: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, steps: int = 200, largest: float = 1.0
) -> Tensor:
    """The smallest of `steps` multiples of the loss gradient's sign (FGSM, Goodfellow et al. 2015) that flips each row."""
    inputs = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(predict(inputs), target, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs)
    direction, best = gradient.sign(), x.clone()
    open_rows = torch.ones(len(x), dtype=torch.bool)
    scale = largest * float(x.max() - x.min())
    with torch.no_grad():
        for step in range(1, steps + 1):
            rows = open_rows.nonzero().squeeze(1)
            if not len(rows):
                break
            tried = x[rows] + scale * step / steps * direction[rows]
            flipped = predict(tried).argmax(dim=1) != target[rows]
            best[rows[flipped]] = tried[flipped]
            open_rows[rows[flipped]] = False
    return best
