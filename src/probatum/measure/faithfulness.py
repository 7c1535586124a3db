"""How faithful an explanation is to the model: what happens when the features it names are taken away.

Source: deletion curves, Petsiuk et al. 2018 (arXiv:1806.07421); log-odds drop, Shrikumar et al. 2017 (arXiv:1704.02685);
max-sensitivity, Yeh et al. 2019 (arXiv:1901.09392).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from probatum.measure.base import Measure

_CLASSES = ("classes",)
MEASURES = (
    Measure(
        "deletion-drop",
        "faithfulness",
        True,
        0.1,
        tasks=_CLASSES,
        about="fall of the target's log-odds when the top 20 % of features go",
    ),
    Measure(
        "deletion-area",
        "faithfulness",
        False,
        0.01,
        tasks=_CLASSES,
        about="mean probability of the target while the top half goes, least first kept",
    ),
    Measure(
        "completeness-gap",
        "faithfulness",
        False,
        0.01,
        tasks=_CLASSES,
        about="attributions' sum against the change of the output, relative",
    ),
    Measure(
        "max-sensitivity",
        "faithfulness",
        False,
        0.02,
        tasks=_CLASSES,
        about="largest relative change of the explanation under small noise",
    ),
    Measure(
        "explain-time-ratio",
        "speed",
        False,
        0.0953,
        "ratio",
        tasks=_CLASSES,
        about="time of an explanation, timed interleaved",
    ),
)


def erase(x: Tensor, values: Tensor, share: float, neutral: Tensor) -> Tensor:
    """x (n, ...) with the `share` of features of largest value replaced by `neutral` (broadcast to x's shape)."""
    flat = values.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    top = flat.topk(count, dim=1).indices
    gone = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top, True).view_as(x)
    return torch.where(gone, neutral.expand_as(x), x)


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """log p / (1 - p) of the target class: (n, c), (n,) -> (n,)."""
    own = logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], float("-inf")).logsumexp(dim=1)
    return own - others


def deletion(
    predict: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, values: Tensor, neutral: Tensor
) -> dict[str, float]:
    """ "deletion-drop" and "deletion-area" of explanations `values`, which rank features by signed contribution."""
    with torch.no_grad():
        drop = log_odds(predict(x), target) - log_odds(predict(erase(x, values, 0.2, neutral)), target)
        curve = [
            predict(erase(x, values, share, neutral)).softmax(dim=1).gather(1, target[:, None]).mean()
            for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
        ]
    return {"deletion-drop": float(drop.mean()), "deletion-area": float(torch.stack(curve).mean())}


def max_sensitivity(
    explain: Callable[[Tensor], Tensor], x: Tensor, values: Tensor, generator: torch.Generator, draws: int = 3
) -> float:
    """Mean over rows of the largest ||E(x + noise) - E(x)|| / ||E(x)||; noise uniform within 2 % of x's spread."""
    radius = 0.02 * float(x.std())
    norm = values.flatten(1).norm(dim=1).clamp_min(1e-12)
    worst = torch.zeros(len(x))
    for _ in range(draws):
        noise = radius * (2 * torch.rand(x.shape, generator=generator) - 1)
        change = (explain(x + noise) - values).flatten(1).norm(dim=1) / norm
        worst = torch.maximum(worst, change)
    return float(worst.mean())
