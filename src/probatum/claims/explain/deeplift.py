"""Claims of DeepLIFT (arXiv:1704.02685): erasing by differences of contributions turns one digit into another.

Nothing was tuned: black reference, and for every pair of classes the erased 20 % of the pixels with the largest C_s - C_t. The
median over images of the fall of the log-odds of s against t is averaged over ten pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import fit, interval, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.explain.deeplift.deeplift import deeplift
from probatum.train.loop import outputs

PAIRS = ((8, 3), (8, 6), (9, 1), (4, 1), (3, 2), (9, 4), (5, 3), (7, 1), (6, 0), (2, 7))
SHARE = 0.2
NOTE = "Pixels are ranked nearly alike by all rules: the edge over Rescale is small beside that over the gradient."
Explain = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def _network(spec: Spec) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, spec.outputs),
    )  # fmt: skip


def _gradient(model: nn.Module, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    points = x.clone().requires_grad_()
    output = model(points)
    gap = output.gather(1, s[:, None]) - output.gather(1, t[:, None])
    return torch.autograd.grad(gap.sum(), points)[0]


def _lift(rule: str) -> Explain:
    return lambda model, x, s, t: deeplift(model, x, s, contrast=t, rule=rule).values


METHODS: dict[str, Explain] = {
    "mixed": _lift("mixed"),
    "reveal_cancel": _lift("reveal-cancel"),
    "rescale": _lift("rescale"),
    "gradient": _gradient,
    "gradient_times_input": lambda model, x, s, t: x * _gradient(model, x, s, t),
}


def _fall(model: nn.Module, x: Tensor, s: int, t: int, explain: Explain) -> float:
    """Median fall of logit s less logit t when the highest-ranked pixels turn black."""
    source, wanted = torch.full((len(x),), s), torch.full((len(x),), t)
    pixels = explain(model, x, source, wanted).flatten(1).topk(round(SHARE * x[0].numel()), dim=1).indices
    erased = x.flatten(1).scatter(1, pixels, 0.0).view_as(x)
    before, after = outputs(model, x), outputs(model, erased)
    return float(((before[:, s] - before[:, t]) - (after[:, s] - after[:, t])).median())


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = open_dataset("digits").prepare(seed)
        model = fit(None, data, seed, training=Training(epochs=20), factory=_network).model
        row = {"seed": float(seed)}
        for name, explain in METHODS.items():
            falls = [_fall(model, data.test.x[data.test.y == s], s, t, explain) for s, t in PAIRS]
            row[name] = mean(falls)
        row["gap"] = float(deeplift(model, data.test.x, data.test.y).gap.max())
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    edges = {other: interval([row["mixed"] - row[other] for row in rows]) for other in METHODS if other != "mixed"}
    for other, edge in edges.items():
        measured |= edge.told(f"edge_over_{other}")
    holds = all(edges[other].low > 0 for other in ("rescale", "gradient"))
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="conversion-of-digits",
        says="Erasing pixels by contributions with RevealCancel on dense layers converts digits better than by gradients.",
        threshold=(
            "median fall of the log-odds over ten class pairs, with RevealCancel behind dense layers and Rescale behind "
            "convolutions, above that of Rescale alone and of the gradient: 90 % intervals of the paired edges above 0"
        ),
        data="digits",
        run=_run,
        minutes=1.0,
        seeds=tuple(range(201, 221)),
    ),
)
