"""Claims of early-learning regularization (arXiv:2007.00151): accuracy under wrong labels that cross-entropy memorises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.train.loop import outputs
from probatum.train.rng import generator_for

NOISE = 0.4
TRAINING = Training(epochs=150, batch_size=64, lr=3e-4, weight_decay=0.0, schedule="constant", select="last")


def _mlp(spec: Spec) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, spec.outputs)
    )


def _with_noise(y: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Labels of which a share NOISE is replaced by a label drawn evenly from the other classes."""
    wrong = torch.rand(len(y), generator=generator) < NOISE
    shift = torch.randint(1, classes, (len(y),), generator=generator)
    return torch.where(wrong, (y + shift) % classes, y)


def _run(seeds: Sequence[int]) -> Evidence:
    digits = open_dataset("digits")
    rows = []
    for seed in seeds:
        clean = digits.prepare(seed)
        noisy = _with_noise(clean.train.y, clean.spec.outputs, generator_for(seed, "label noise"))
        wrong = noisy != clean.train.y
        data = replace(clean, train=replace(clean.train, y=noisy))
        row: dict[str, float | str] = {"seed": float(seed), "wrong_labels": float(wrong.float().mean())}
        for name, arm, select in (
            ("cross_entropy", None, "last"),
            ("regularized", "early-learning-regularization(lam=3.0, beta=0.7)", "last"),
            ("cross_entropy_stopped", None, "accuracy"),
        ):
            model = fit(arm, data, seed, training=replace(TRAINING, select=select), factory=_mlp).model
            predicted = outputs(model, data.train.x).argmax(dim=1)
            row[f"{name}_accuracy"] = accuracy(model, data.test)
            row[f"{name}_memorised"] = float((predicted == noisy)[wrong].float().mean())
        rows.append(row)
    measured = {name: mean([float(row[name]) for row in rows]) for name in rows[0] if name != "seed"}
    gains = [float(row["regularized_accuracy"]) - float(row["cross_entropy_accuracy"]) for row in rows]
    shares = [float(row["regularized_memorised"]) / float(row["cross_entropy_memorised"]) for row in rows]
    measured |= {"least_gain": min(gains), "mean_gain": mean(gains), "largest_share_memorised": max(shares)}
    return Evidence(min(gains) >= 0.05 and max(shares) < 0.5, measured, tuple(rows), NOTE)


NOTE = (
    "A multi-layer perceptron of two hidden layers; the rate is the best of three for the last epoch of "
    "cross-entropy on development seeds. Cross-entropy stopped early on clean validation rows is given for comparison and has no part in the threshold."
)

CLAIMS = (
    Claim(
        id="withstands-noisy-labels",
        says="With 40 % wrong labels the regularizer keeps accuracy up where cross-entropy memorises them.",
        threshold="after 150 epochs at least 5 points above cross-entropy on every seed, and less than half as many wrong "
        "training labels memorised",
        data="digits, 40 % of the training labels replaced evenly by others",
        run=_run,
        minutes=1.5,
    ),
)
