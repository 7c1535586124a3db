"""Claim of neural collapse in long-tailed learning: learned means far apart help the rare classes.

Long-tailed digits: 100 training rows in the first class, falling to 2 in the last; the test is balanced by weighing classes
alike. Both arms have deferred re-weighting from 80 % of the steps; settings are the release's but for the
optimizer (the bench's AdamW) and the steps, chosen on seeds 1 and 2 among 600 and 1500.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import fit, mean
from probatum.data.open import open_dataset
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.watch import last_features
from probatum.recipe import Training
from probatum.spec import Data, Part, Spec
from probatum.techniques.method.neural_collapse_longtail import geometry
from probatum.train.loop import outputs
from probatum.train.rng import generator_for

HEAD, RATIO = 100, 50
TRAINING = Training(steps=1500, batch_size=64, lr=2e-3, weight_decay=1e-2, select="last")
ARMS = {
    "plain": "neural-collapse-longtail(within=0.0, between=0.0, drw=0.8)",
    "collapse": "neural-collapse-longtail(drw=0.8)",
    "each": "neural-collapse-longtail(drw=0.8, variant='each')",
}

NOTE = (
    "The geometry is as promised: class means stand about half as wide apart again and classes are twenty times tighter, on every "
    "seed. Rare classes do not gain by it here (half a point less), where re-weighting alone has 0.86 and not the 0.74 of the card's "
    "check."
)


def _network(spec: Spec) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, spec.outputs)
    )


def _long_tailed(data: Data, seed: int) -> Data:
    order = torch.randperm(len(data.train), generator=generator_for(seed, "tail"))
    kept = []
    for c in range(10):
        mine = order[data.train.y[order] == c]
        kept.append(mine[: round(HEAD * RATIO ** (-c / 9))])
    rows = torch.cat(kept)
    return replace(data, train=Part(data.train.x[rows], data.train.y[rows], data.train.rows[rows]))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = _long_tailed(open_dataset("digits").prepare(seed), seed)
        row = {"seed": float(seed)}
        for name, arm in ARMS.items():
            model = fit(arm, data, seed, training=TRAINING, factory=_network).model
            right = outputs(model, data.test.x).argmax(dim=1) == data.test.y
            row[name] = mean([float(right[data.test.y == c].float().mean()) for c in range(10)])
            found = geometry(last_features(model, data.train.x).features, data.train.y, head_of(model).weight.detach())
            row |= {f"{name}_angle": found.angle, f"{name}_within": found.within, f"{name}_spread": found.spread}
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    gain = measured["gain"] = measured["collapse"] - measured["plain"]
    wider = measured["seeds_with_larger_angle"] = float(sum(row["collapse_angle"] > row["plain_angle"] for row in rows))
    return Evidence(gain >= 0.01 and wider == len(rows), measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="balanced-geometry",
        says="Tight classes around means at wide angles help rare classes, beside deferred re-weighting.",
        threshold="balanced accuracy at least 1 point above re-weighting alone (mean), the smallest angle of class means larger on "
        "every seed",
        data="digits, 100 to 2 training rows a class; two hidden layers",
        run=_run,
        minutes=0.5,
    ),
)
