"""Claims of DeepFool (arXiv:1511.04599): smaller perturbations than a line search along the sign of the gradient.

Nothing was tuned. Both line searches may go as far as needed: they find the smallest flip along their direction on a grid
of 400 lengths, refined by bisection. Only correctly classified test images count; no box, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import fit, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.attack.deepfool import fool, robustness
from probatum.train.loop import outputs


def _network(spec: Spec) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, spec.outputs)
    )


def _along(model: nn.Module, x: Tensor, y: Tensor, direction: Tensor, farthest: float = 20.0) -> Tensor:
    """Length (n,) of the shortest change along unit directions that leaves class y; farthest where none was found."""
    unit = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]

    def gone(length: Tensor) -> Tensor:
        return outputs(model, x + length[:, None, None, None] * unit).argmax(dim=1) != y

    grid = torch.linspace(0, farthest, 401)
    high = torch.full((len(x),), farthest)
    for length in grid.flip(0).tolist():
        high = torch.where(gone(torch.full_like(high, length)), torch.full_like(high, length), high)
    low = (high - farthest / 400).clamp(min=0)
    for _ in range(20):
        middle = (low + high) / 2
        flips = gone(middle)
        low, high = torch.where(flips, low, middle), torch.where(flips, middle, high)
    return high


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = open_dataset("digits").prepare(seed)
        model = fit(None, data, seed, training=Training(epochs=30), factory=_network).model
        right = outputs(model, data.test.x).argmax(dim=1) == data.test.y
        x, y = data.test.x[right][:200], data.test.y[right][:200]
        points = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(points), y, reduction="sum"), points)
        found = fool(model, x, y)
        size = x.flatten(1).norm(dim=1)
        own = (found.inputs - x).flatten(1).norm(dim=1) / size
        sign, line = (_along(model, x, y, d) / size for d in (gradient.sign(), gradient))
        row = {"seed": float(seed), "flipped": float(found.left.float().mean()), "rho": robustness(x, found)}
        row |= {
            "deepfool": float(own.median()),
            "sign_gradient": float(sign.median()),
            "gradient": float(line.median()),
        }
        rows.append({**row, "ratio": row["deepfool"] / row["sign_gradient"], "steps": float(found.steps.median())})
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    holds = all(row["ratio"] <= 0.85 and row["flipped"] == 1.0 for row in rows)
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="smaller-than-sign-gradient",
        says="DeepFool finds much smaller perturbations than moving along the sign of the gradient.",
        threshold="every image flipped, and median relative l2 norm at most 0.85 times the sign-gradient line search's, on all seeds",
        data="digits",
        run=_run,
        minutes=0.5,
    ),
)
