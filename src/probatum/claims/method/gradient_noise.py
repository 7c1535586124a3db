"""Claims of gradient noise (arXiv:1511.06807): it frees a deep network from an initialisation without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, interval, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.rooms.arena import TrainingFailed
from probatum.spec import Data
from probatum.techniques.method.gradient_noise import GradientNoise
from probatum.train.assemble import budget_for
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded
from probatum.train.run import Run

DEPTH, WIDTH = 5, 50
TRAINING = Training(epochs=80, batch_size=64, lr=0.1, schedule="constant", select="accuracy")
ETAS = (0.01, 0.3, 1.0)
STARTS = {"zero": True, "he": False}
NOTE = (
    "eta is the one of the paper's three with the best validation accuracy, for each seed and initialisation. On development seeds 1 and "
    "2 that was 0.3 from zero weights (0.93; 0.01 alone reached 0.31, and 1 diverged) and 0.01 from He initialisation. Inputs in "
    "[0, 1] and keeping the best weights by validation accuracy are alike for all arms; training that diverges counts as accuracy 0."
)


def _network(seed: int, zero: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    with seeded(seed, "initial weights"):
        for i in range(DEPTH):
            layers += [nn.Linear(64 if i == 0 else WIDTH, WIDTH), nn.ReLU()]
        layers.append(nn.Linear(WIDTH, 10))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    if zero:
        with torch.no_grad():
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    layer.weight.zero_()
    return nn.Sequential(*layers)


def _accuracies(data: Data, seed: int, zero: bool, eta: float) -> tuple[float, float]:
    """Accuracy on validation rows and on test rows of the best weights; 0 where training diverged."""
    net = _network(seed, zero)
    optimizer = torch.optim.SGD(net.parameters(), lr=TRAINING.lr)
    budget = budget_for(TRAINING, len(data.train))
    run = Run(net, nn.CrossEntropyLoss(), optimizer, data.spec, data.train, data.valid, budget)
    noise = GradientNoise(eta, generator=generator_for(seed, "technique", "gradient-noise"))
    try:
        train(run, [noise], generator_for(seed, "order"), schedule=TRAINING.schedule, select=TRAINING.select)
    except TrainingFailed:
        return 0.0, 0.0
    return accuracy(net, data.valid), accuracy(net, data.test)


def _run(seeds: Sequence[int]) -> Evidence:
    digits = open_dataset("digits")
    rows = []
    for seed in seeds:
        data = digits.prepare(seed)
        row = {"seed": float(seed), "majority": float(data.test.y.bincount().max() / len(data.test))}
        for start, zero in STARTS.items():
            row[f"{start}_plain"] = _accuracies(data, seed, zero, 0.0)[1]
            found = {eta: _accuracies(data, seed, zero, eta) for eta in ETAS}
            row |= {f"{start}_eta_{eta:g}": test for eta, (_, test) in found.items()}
            row[f"{start}_chosen_eta"] = max(ETAS, key=lambda eta: (found[eta][0], -eta))
            row[f"{start}_chosen"] = found[row[f"{start}_chosen_eta"]][1]
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    freed, harm = (
        interval([row["zero_chosen"] for row in rows]),
        interval([row["he_plain"] - row["he_chosen"] for row in rows]),
    )
    measured |= freed.told("zero_chosen") | harm.told("he_harm")
    measured |= {"share_of_seeds_freed": mean([float(row["zero_chosen"] >= 0.85) for row in rows])}
    stuck = max(row["zero_plain"] for row in rows) <= 0.15
    return Evidence(
        freed.low >= 0.85 and harm.high <= 0.01,
        measured,
        tuple(rows),
        NOTE,
        {"without noise every seed is stuck": stuck},
    )


CLAIMS = (
    Claim(
        id="escape-from-zero-weights",
        says="A deep network whose weights all start at zero learns with gradient noise and does not without.",
        threshold="5 hidden layers of 50, SGD, eta of 0.01, 0.3 and 1 by validation accuracy: from zero weights at least 85 % accuracy "
        "(lower end of the 90 % interval); from He initialisation at most 1 point lost (upper end)",
        data="digits",
        run=_run,
        minutes=2.0,
        seeds=tuple(range(201, 209)),
    ),
)
