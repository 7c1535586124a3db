"""Claim of off-the-shelf features: a layer of a network trained on other classes beats pixels, and training anew, with few labels.

A small convolutional network learns the digits 0 to 4 of MNIST; its frozen layers serve 5 to 9 with 3 or 10 labels a class.
Beside it: the same machines on pixels, the same network trained from scratch on the few labels (400 steps), and, as a null, the
whole procedure on an untrained network. Layer and C are those that the method chooses, by cross-validation on the few labels;
what each layer gives at that C is measured beside it. The network's training was set on seed 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import interval, mean
from probatum.data.library import library, subset
from probatum.numerics.networks.backbone import Backbone
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.techniques.learner.off_the_shelf_features import PENULTIMATE, Machines, extract, off_the_shelf, unit
from probatum.train.rng import generator_for, seeded

LABELS = (3, 10)
LAYERS = {"conv1": "1", "conv2": "4", "dense": PENULTIMATE}
"""What the method tries: all activations."""
RIVALS = ("pixels", "scratch")


def _network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 5)),
    )


def _row(seed: int) -> dict[str, float]:
    data = subset(library("mnist"), 12_000, seed).prepare(seed)
    old, new = data.train.y < 5, data.train.y >= 5
    with seeded(seed, "initial weights"):
        net = fit_network(_network(), data.train.x[old], data.train.y[old], 500, 64, 2e-3, generator_for(seed, "order"))
    with seeded(seed, "untrained"):
        untrained = _network().eval()
    x, y = data.train.x[new], data.train.y[new] - 5
    late = data.test.y >= 5
    test, truth = data.test.x[late], data.test.y[late] - 5

    def right(scores: Tensor) -> float:
        return float((scores.argmax(dim=1) == truth).double().mean())

    row: dict[str, float] = {"seed": float(seed)}
    order = torch.randperm(len(y), generator=generator_for(seed, "labels"))
    for each in LABELS:
        few = torch.cat([order[y[order] == c][:each] for c in range(5)])
        for name, features in (
            ("chosen", Backbone(net)),
            ("untrained", Backbone(untrained)),
            ("pixels", Backbone(None)),
        ):
            found = off_the_shelf(features, x[few], y[few], 5)
            row[f"{name}_{each}"] = right(found.scores(test))
            if name == "chosen":
                penalty = found.choice.penalty
        for name, layer in LAYERS.items():
            machines = Machines(unit(extract(net, x[few], layer)), y[few], 5, penalty)
            row[f"{name}_{each}"] = right(machines.scores(unit(extract(net, test, layer))))
        with seeded(seed, "from scratch"):
            own = fit_network(_network(), x[few], y[few], 400, 32, 2e-3, generator_for(seed, "few"))
        with torch.no_grad():
            row[f"scratch_{each}"] = right(own(test))
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    rows = [_row(seed) for seed in seeds]
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    holds, controls = True, {}
    for each in LABELS:
        for rival in (*RIVALS, "untrained"):
            gain = interval([row[f"chosen_{each}"] - row[f"{rival}_{each}"] for row in rows])
            measured |= gain.told(f"gain_over_{rival}_{each}")
            if rival in RIVALS:
                holds &= gain.low > 0
            else:
                controls[f"an untrained network serves worse, {each} labels a class"] = gain.low > 0
    return Evidence(holds, measured, tuple(rows), controls=controls)


CLAIMS = (
    Claim(
        id="features-beat-pixels-with-few-labels",
        says="A layer of a network trained on other classes, with linear machines, beats pixels and training anew on few labels.",
        threshold="with 3 and with 10 labels a class, the 90 % interval of the gain of the layer that the method chooses is above 0, "
        "over machines on pixels and over training anew",
        data="MNIST: trained on 0 to 4, asked for 5 to 9",
        run=_run,
        minutes=3.0,
        needs_library=True,
        seeds=tuple(range(201, 211)),
    ),
)
