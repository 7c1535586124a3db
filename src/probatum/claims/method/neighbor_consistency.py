"""Claim of neighbour consistency: with 40 % wrong labels it keeps a network from learning them.

Settings are the card's (batches of 64, 10 neighbours, weight one half); both arms train 2000 steps by the bench's AdamW and keep
their last weights, since validation labels would be as wrong. So many steps let the plain network fit the wrong labels, as the
paper's do; stopped after 600 it had 0.924 on seeds 1 and 2 and the consistent one 0.929.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.train.rng import generator_for

NOISE = 0.4
TRAINING = Training(steps=2000, batch_size=64, lr=2e-3, weight_decay=1e-2, select="last")
ARMS = {
    "plain": None,
    "consistent": "neighbor-consistency(weight=0.5, neighbors=10)",
    "stopped": "neighbor-consistency(weight=0.5, neighbors=10, stop_gradient=True)",
    "memory": "neighbor-consistency(weight=0.5, neighbors=10, kept_rows=256)",
}


def _network(spec: Spec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, spec.outputs))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data, own = open_dataset("digits").prepare(seed), generator_for(seed, "flips")
        y = data.train.y
        flipped = torch.rand(len(y), generator=own) < NOISE
        y = torch.where(flipped, (y + torch.randint(1, 10, y.shape, generator=own)) % 10, y)
        data = replace(data, train=replace(data.train, y=y))
        row = {"seed": float(seed)}
        for name, arm in ARMS.items():
            row[name] = accuracy(fit(arm, data, seed, training=TRAINING, factory=_network).model, data.test)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    least = measured["smallest_gain"] = min(row["consistent"] - row["plain"] for row in rows)
    note = (
        "Every seed gains, 3.6 points in the mean and 2.2 at the least, where 3 on each are asked; with 256 kept rows the mean gain "
        "is 4.3. Stopping the gradient at neighbours makes no clear difference."
    )
    return Evidence(least >= 0.03, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="noisy-digits",
        says="Agreement with the nearest neighbours keeps a network from fitting wrong labels.",
        threshold="accuracy at least 3 points above plain cross-entropy on every seed",
        data="digits as images with 40 % of the training labels moved to another class; one hidden layer of 128",
        run=_run,
        minutes=0.5,
    ),
)
