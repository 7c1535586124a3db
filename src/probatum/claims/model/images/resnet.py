"""Claims of ResNet (arXiv:1512.03385): depth harms a plain network and not its residual twin.

Widths 8, 16, 32; SGD with rate 0.1, momentum 0.9 and weight decay 1e-4, constant for 8 epochs in batches of 64, as in the
pilot that set the threshold; nothing else was tuned. The training loss is the mean over the last epoch's batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Batch, Data
from probatum.techniques.model.images.resnet import build, response_std
from probatum.train.assemble import budget_for
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded
from probatum.train.run import Run

ARMS = {"plain_20": (20, True), "plain_56": (56, True), "residual_56": (56, False)}
EPOCHS, BATCH, WIDTH = 8, 64, 8


class _Losses:
    """Keeps every batch's loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def loss(self, run: Run, batch: Batch, output: Tensor, loss: Tensor) -> Tensor:
        self.values.append(float(loss.detach()))
        return loss


def trained(data: Data, seed: int, depth: int, plain: bool) -> tuple[nn.Module, float]:
    """A trained network and its mean training loss over the last epoch."""
    with seeded(seed, "initial weights"):
        model = build(data.spec, depth, WIDTH, plain=plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    budget = budget_for(Training(epochs=EPOCHS, batch_size=BATCH), len(data.train))
    run = Run(model, nn.CrossEntropyLoss(), optimizer, data.spec, data.train, data.valid, budget)
    losses = _Losses()
    train(run, [losses], generator_for(seed, "order"), schedule="constant", select="last")
    return model, mean(losses.values[-budget.steps_per_epoch :])


def _run(seeds: Sequence[int]) -> Evidence:
    digits, rows = open_dataset("digits"), []
    for seed in seeds:
        data = digits.prepare(seed)
        row = {"seed": float(seed)}
        for name, (depth, plain) in ARMS.items():
            model, row[f"{name}_loss"] = trained(data, seed, depth, plain)
            row[f"{name}_accuracy"] = accuracy(model, data.test)
            row[f"{name}_response"] = mean(response_std(model, data.valid.x))
        row["loss_ratio"] = row["plain_56_loss"] / row["residual_56_loss"]
        row["accuracy_lost_to_depth"] = row["plain_20_accuracy"] - row["plain_56_accuracy"]
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["least_loss_ratio"] = min(row["loss_ratio"] for row in rows)
    measured["least_accuracy_lost_to_depth"] = min(row["accuracy_lost_to_depth"] for row in rows)
    holds = measured["least_loss_ratio"] >= 3 and measured["least_accuracy_lost_to_depth"] >= 0.2
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="depth-helps-only-with-shortcuts",
        says="A deep plain network trains worse than a shallow one; with identity shortcuts the deep one trains well.",
        threshold=(
            "on every seed the 56-layer plain network's final training loss is at least 3 times the residual one's, and its "
            "test accuracy at least 20 points below the 20-layer plain network's"
        ),
        data="digits, 8 x 8",
        run=_run,
        minutes=4.0,
    ),
)
