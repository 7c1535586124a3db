"""Claims of the randomization tests (arXiv:1611.03530): networks fit random labels, regularised or not.

Rate and steps were set on seed 1, so that true and random labels are both fitted; all runs of a seed share them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.open import open_dataset
from probatum.techniques.probe.randomization_tests.interpolation import memorise
from probatum.techniques.probe.randomization_tests.randomization_tests import randomization_tests
from probatum.train.rng import generator_for, seeded

CORRUPTION = (0.25, 0.5, 0.75)


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = open_dataset("digits").prepare(seed)
        with seeded(seed, "initial weights"):
            found = randomization_tests(
                _network,
                data,
                generator_for(seed, "randomization"),
                corruption=CORRUPTION,
                regularisers=("weight-decay", "dropout"),
                max_steps=6000,
                lr=3e-3,
            )
        errors = [found["true labels: test error"], *(found[f"{p:g} corrupted: test error"] for p in CORRUPTION)]
        errors.append(found["random labels: test error"])
        x, y = data.train.x.flatten(1), torch.randint(10, (len(data.train),), generator=generator_for(seed, "labels"))
        exact = memorise(x[:200], y[:200], generator_for(seed, "construction"))
        row = {"seed": float(seed), "monotone": float(errors == sorted(errors))}
        row["construction_error"] = float((exact(x[:200]) - y[:200]).abs().max())
        rows.append(row | {key.replace(": ", "_").replace(" ", "_"): value for key, value in found.items()})
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    regularised = [f"random_labels,_{kind}_train_accuracy" for kind in ("weight_decay", "dropout")]
    holds = (
        all(row["random_labels_train_accuracy"] >= 0.99 for row in rows)
        and abs(measured["random_labels_test_error"] - measured["chance_error"]) <= 0.03
        and all(row["random_labels_slowdown"] <= 20 for row in rows)
        and measured["monotone"] == 1.0
        and all(row[name] >= 0.99 for row in rows for name in regularised)
    )
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="random-labels-are-learned",
        says="The same network fits random labels as well as true ones, and explicit regularisers do not prevent it.",
        threshold=(
            "random labels: at least 99 % of the training rows, mean test error within 3 points of chance, at most 20 "
            "times the steps of true labels; test error rises with the corrupted share; weight decay 5e-4 and dropout "
            "0.2 still reach 99 %; all but the mean on every seed"
        ),
        data="digits, an MLP with one hidden layer of 512",
        run=_run,
        minutes=2.0,
    ),
)
