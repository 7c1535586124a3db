"""Claim of dynamic active learning: rows that speed training up teach more than random ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from probatum.claims.acquisition import curve
from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec

RULES = {"start": 20, "query": 20, "rounds": 6}
TRAINING = Training(steps=300, batch_size=32, lr=2e-3, weight_decay=1e-4)
ARMS = {
    "random": "random sampling",
    "margin": "margin sampling",
    "all": "dynamic-al",
    "last": "dynamic-al(scope='last')",
}

NOTE = (
    "On these seeds it ends 0.7 points above random sampling where 1 is asked (3.4 on seeds 1 and 2, on which nothing was "
    "tuned but the steps); the smallest margin, which costs a forward pass alone, ends 2.9 points above."
)


def network(spec: Spec) -> nn.Module:
    """A perceptron of one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, spec.outputs))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data, row = open_dataset("digits").prepare(seed), {"seed": float(seed)}
        for name, arm in ARMS.items():
            found = curve(arm, data, seed, RULES, TRAINING, network)
            row |= {f"{name}_last": found.measures["last-label-accuracy"], f"{name}_area": found.measures["label-auc"]}
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["gain"] = measured["all_last"] - measured["random_last"]
    return Evidence(measured["gain"] >= 0.01, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="beats-random-sampling",
        says="Asking for the rows that speed training up most ends with a better network than asking at random.",
        threshold="mean accuracy after 140 labels at least 1 point above random sampling's",
        data="digits as images; 20 labels, then 6 rounds of 20; a perceptron with 128 hidden units",
        run=_run,
        minutes=1.0,
    ),
)
