"""Claim of the perceptual score: as a hint grows reliable, a network looks at the hint and no longer at the image.

Digits as 64 pixels beside ten columns that code a class: the right one with probability `reliability`, else another. The network
(one hidden layer, 600 steps) sees both; its settings were set on seed 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.open import open_dataset
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.spec import Part
from probatum.techniques.probe.perceptual_score import Draws, perceptual_scores
from probatum.train.rng import generator_for, seeded

RELIABLE = (0.1, 0.3, 0.5, 0.7, 0.9)
GROUPS = {"image": range(64), "hint": range(64, 74)}


def _with_hint(part: Part, reliability: float, generator: torch.Generator) -> Tensor:
    right = torch.rand(len(part.y), generator=generator) < reliability
    other = (part.y + torch.randint(1, 10, part.y.shape, generator=generator)) % 10
    return torch.cat([part.x.flatten(1), F.one_hot(torch.where(right, part.y, other), 10).float()], dim=1)


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data, row = open_dataset("digits").prepare(seed), {"seed": float(seed)}
        for reliability in RELIABLE:
            own = generator_for(seed, "hints", str(reliability))
            x, test = (_with_hint(part, reliability, own) for part in (data.train, data.test))
            with seeded(seed, "initial weights"):
                net = nn.Sequential(nn.Linear(74, 128), nn.ReLU(), nn.Linear(128, 10))
            fit_network(net, x, data.train.y, 600, 64, 2e-3, generator_for(seed, "order"))
            draws = Draws.of(len(test), 10, generator_for(seed, "draws"))
            with torch.no_grad():
                found = perceptual_scores(net, test, data.test.y, GROUPS, draws)
            for name, score in found.items():
                row[f"{name}_{reliability}"] = score.value
        for name in GROUPS:
            row[f"rank_{name}"] = float(spearmanr(RELIABLE, [row[f"{name}_{r}"] for r in RELIABLE]).statistic)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    means = {name: [measured[f"{name}_{r}"] for r in RELIABLE] for name in GROUPS}
    image = measured["rank_of_means_image"] = float(spearmanr(RELIABLE, means["image"]).statistic)
    hint = measured["rank_of_means_hint"] = float(spearmanr(RELIABLE, means["hint"]).statistic)
    return Evidence(image <= -0.9 and hint >= 0.9, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="the-hint-takes-over",
        says="The score of a modality rises with how much it tells and falls with how much another one tells.",
        threshold="over reliabilities 0.1 to 0.9, Spearman correlation at least 0.9 for the hint and at most -0.9 for the image "
        "(means of the seeds)",
        data="digits beside a class hint",
        run=_run,
        minutes=0.5,
    ),
)
