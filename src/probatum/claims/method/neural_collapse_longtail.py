"""Claim of neural collapse in long-tailed learning: learned means far apart help the rare classes.

Long-tailed digits: 100 training rows in the first class, falling to 2 in the last; the test is balanced by weighing classes
alike. Both arms have deferred re-weighting from 80 % of the steps. Optimizer and settings are the release's (SGD of rate 0.1,
momentum 0.9 and weight decay 5e-4), but for batches of 64 and a rate that falls along a half cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import interval, mean
from probatum.data.open import open_dataset
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.watch import last_features
from probatum.recipe import Training
from probatum.spec import Data, Part, Spec
from probatum.techniques.method.neural_collapse_longtail import NeuralCollapse, geometry
from probatum.train.assemble import budget_for
from probatum.train.loop import outputs, train
from probatum.train.rng import generator_for, seeded
from probatum.train.run import Run

HEAD, RATIO = 100, 50
TRAINING = Training(steps=1500, batch_size=64, select="last")
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"within": 0.0, "between": 0.0},
    "collapse": {},
    "each": {"variant": "each"},
}
NOTE = (
    "On development seeds 1 to 5 re-weighting alone had 0.861 and the two terms gained 1.9 points (standard error 1.1), at class means "
    "half as wide apart again. Under AdamW (rate 0.002, 600 and 1,500 steps) the geometry is the same and nothing is gained."
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


def fitted(data: Data, seed: int, settings: dict[str, Any]) -> nn.Module:
    """Trained by SGD with deferred re-weighting, and with the two terms as they are set."""
    with seeded(seed, "initial weights"):
        net = _network(data.spec)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    budget = budget_for(TRAINING, len(data.train))
    run = Run(net, nn.CrossEntropyLoss(), optimizer, data.spec, data.train, data.valid, budget)
    own = generator_for(seed, "technique", "neural-collapse-longtail")
    method = NeuralCollapse(head_of(net), data.spec.outputs, own, drw=0.8, **settings)
    with seeded(seed, "training"):
        train(run, [method], generator_for(seed, "order"), schedule=TRAINING.schedule, select=TRAINING.select)
    return net


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = _long_tailed(open_dataset("digits").prepare(seed), seed)
        row = {"seed": float(seed)}
        for name, settings in ARMS.items():
            model = fitted(data, seed, settings)
            right = outputs(model, data.test.x).argmax(dim=1) == data.test.y
            each = [float(right[data.test.y == c].float().mean()) for c in range(10)]
            row[name], row[f"{name}_rare"] = mean(each), mean(each[-3:])
            found = geometry(last_features(model, data.train.x).features, data.train.y, head_of(model).weight.detach())
            row |= {f"{name}_angle": found.angle, f"{name}_within": found.within, f"{name}_spread": found.spread}
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    gain = interval([row["collapse"] - row["plain"] for row in rows])
    wider = interval([row["collapse_angle"] - row["plain_angle"] for row in rows])
    measured |= gain.told("gain") | wider.told("angle_gain")
    measured |= interval([row["each"] - row["plain"] for row in rows]).told("each_gain")
    holds = gain.mean >= 0.01 and gain.low > 0
    return Evidence(holds, measured, tuple(rows), NOTE, {"class means stand wider apart": wider.low > 0})


CLAIMS = (
    Claim(
        id="balanced-geometry",
        says="Tight classes around means at wide angles help rare classes, beside deferred re-weighting.",
        threshold="balanced accuracy at least 1 point above re-weighting alone in the mean, its 90 % interval above 0",
        data="digits, 100 to 2 training rows a class; two hidden layers",
        run=_run,
        minutes=2.0,
        seeds=tuple(range(201, 221)),
    ),
)
