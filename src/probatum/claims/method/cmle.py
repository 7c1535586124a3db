"""Claim of counterfactual maximum likelihood (arXiv:2106.03831): a lower interventional loss than plain maximum likelihood."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.techniques.method.cmle.cmle import balanced_nll
from probatum.train.rng import generator_for, seeded

ROWS, STEPS, BATCH, RATE, LOOK = 1000, 600, 128, 1e-3, 20
WEIGHT, METRIC, DECAYS = 0.1, "transport", {"light": 0.01, "strong": 3.0}
CLIP = 20.0
NOTE = (
    "The threshold is judged at the strong weight decay, which was best for plain maximum likelihood on development seeds 1 and 2 (of "
    "0.01, 0.3, 1, 3 and 10); weight and metric were the best of 16 pairs on seeds 1 to 4 at the light one. At the light decay most of "
    "the gain is regularisation: on seeds 1 and 2 the same term with treatments shuffled inside the batch lowered the interventional loss "
    "from 0.628 to 0.587, with the true ones to 0.577, and the strong decay alone to 0.572. On the claim's own seeds the term changes "
    "nothing at the strong decay and lowers the loss by 0.02 at the light one, on 3 of 5 seeds. All arms keep the weights of least "
    "validation loss, on confounded rows."
)

Rows = tuple[Tensor, Tensor, Tensor]


def world(n: int, generator: torch.Generator, randomised: bool) -> Rows:
    """x (n, 10) normal, t (n,) Bernoulli(sigmoid(3 x_1)) or fair, y (n,) by x_1 + (2 t - 1)(1.5 x_2 + 0.5)."""
    x = torch.randn(n, 10, generator=generator)
    chance = torch.full((n,), 0.5) if randomised else torch.sigmoid(3 * x[:, 0])
    t = (torch.rand(n, generator=generator) < chance).long()
    side = (2 * t - 1).float()
    y = (torch.rand(n, generator=generator) < torch.sigmoid(x[:, 0] + side * (1.5 * x[:, 1] + 0.5))).long()
    return x, t, y


def propensity_weights(x: Tensor, t: Tensor) -> Tensor:
    """1 / p(t | x) by the true propensities, at most 20, mean 1."""
    chance = torch.sigmoid(3 * x[:, 0])
    found = (1 / torch.where(t == 1, chance, 1 - chance)).clamp_max(CLIP)
    return found / found.mean()


def train(seed: int, rows: Rows, valid: Rows, decay: float, kind: str) -> tuple[nn.Module, nn.Module]:
    """An encoder and a head, by maximum likelihood, propensity weighting, the implicit term, or that with shuffled treatments."""
    with seeded(seed, "initial weights"):
        encoder = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        head = nn.Sequential(nn.Linear(66, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=RATE, weight_decay=decay)
    order, shuffles = generator_for(seed, "order"), generator_for(seed, "shuffles")
    x, t, y = rows
    weights = propensity_weights(x, t)
    best, kept = float("inf"), (encoder, head)
    for step in range(1, STEPS + 1):
        index = torch.randint(len(y), (BATCH,), generator=order)
        if kind == "ipw":
            features = torch.cat([encoder(x[index]), F.one_hot(t[index], 2)], dim=1)
            loss = (weights[index] * F.cross_entropy(head(features), y[index], reduction="none")).mean()
        elif kind == "shuffled":
            mixed = t[index][torch.randperm(BATCH, generator=shuffles)]
            loss = balanced_nll(encoder, head, x[index], t[index], y[index], WEIGHT, METRIC, (0, 1), groups=mixed)
        else:
            weight = WEIGHT if kind == "cmle" else 0.0
            loss = balanced_nll(encoder, head, x[index], t[index], y[index], weight, METRIC, (0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOOK == 0:
            found = nll(encoder, head, valid)
            if found < best:
                best, kept = found, (copy.deepcopy(encoder), copy.deepcopy(head))
    return kept


@torch.no_grad()
def nll(encoder: nn.Module, head: nn.Module, rows: Rows) -> float:
    """Mean negative log-likelihood."""
    return float(balanced_nll(encoder, head, *rows, 0.0, among=(0, 1)))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        draws = generator_for(seed, "world")
        known, valid = world(ROWS, draws, False), world(ROWS // 2, draws, False)
        biased, fair = world(20_000, draws, False), world(20_000, draws, True)
        row = {"seed": float(seed)}
        for name, decay in DECAYS.items():
            for kind in ("mle", "cmle") if name == "light" else ("mle", "cmle", "shuffled", "ipw"):
                nets = train(seed, known, valid, decay, kind)
                row[f"{name}_{kind}_biased"], row[f"{name}_{kind}_interventional"] = (
                    nll(*nets, biased),
                    nll(*nets, fair),
                )
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    for name in DECAYS:
        better = [row[f"{name}_cmle_interventional"] < row[f"{name}_mle_interventional"] for row in rows]
        measured[f"{name}_share_of_seeds_better"] = sum(better) / len(better)
        measured[f"{name}_biased_change"] = measured[f"{name}_cmle_biased"] - measured[f"{name}_mle_biased"]
    holds = measured["strong_share_of_seeds_better"] >= 0.8 and abs(measured["strong_biased_change"]) <= 0.02
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="interventional-likelihood",
        says="Balancing representations over treatments lowers the loss where treatments are given at random, and costs little where "
        "they are not.",
        threshold="interventional negative log-likelihood below that of plain maximum likelihood (its weight decay tuned) on 4 of 5 "
        "seeds, that on confounded test rows within 0.02 on average",
        data="1,000 drawn rows: x normal in 10 dimensions, t by x_1, y by x_1, x_2 and t",
        run=_run,
        minutes=3.0,
    ),
)
