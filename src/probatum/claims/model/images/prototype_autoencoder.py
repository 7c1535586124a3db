"""Claims of the prototype autoencoder (arXiv:1710.04806): as accurate as a dense head, with prototypes one can read.

All arms have the same encoder, elastic deformation and 100 epochs. The learning rate of each was chosen from the same four
(3e-3, 1e-2, 3e-2, 1e-1) by validation accuracy on seeds 1 and 2. The judge of decoded prototypes is the bench's image
baseline, trained on the same rows without deformation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.open import open_dataset
from probatum.numerics.images.codes import make_encoder
from probatum.recipe import Training
from probatum.spec import Data, Spec
from probatum.techniques.model.images.prototype_autoencoder import (
    Deform,
    PrototypeAutoencoder,
    prototype_report,
)

ARMS = {
    "dense": None,
    "prototypes": "prototype-autoencoder",
    "without_r1": "prototype-autoencoder(near_example=0.0)",
}
RATES = {"dense": 3e-2, "prototypes": 3e-2, "without_r1": 3e-2}
EPOCHS = 100


class DenseHead(nn.Module):
    """The same deformation and encoder, then an ordinary linear layer."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.deform = Deform()
        self.encoder = make_encoder((spec.shape[0], spec.shape[1], spec.shape[2]), 32, "relu")
        self.head = nn.Linear(self.encoder(torch.zeros(1, *spec.shape)).shape[1], spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.deform(x)))


def model_of(name: str, data: Data, seed: int, rate: float) -> nn.Module:
    """One trained arm."""
    training = Training(epochs=EPOCHS, batch_size=64, lr=rate)
    return fit(ARMS[name], data, seed, training=training, factory=DenseHead).model


@torch.no_grad()
def legible(model: PrototypeAutoencoder, judge: nn.Module) -> float:
    """Share of decoded prototypes that the judge gives some class with a probability above 0.9."""
    confidence = judge(model.prototype_images()).softmax(dim=1).amax(dim=1)
    return float((confidence > 0.9).float().mean())


def _run(seeds: Sequence[int]) -> Evidence:
    digits, rows = open_dataset("digits"), []
    for seed in seeds:
        data = digits.prepare(seed)
        judge = fit(None, data, seed + 1000).model
        row = {"seed": float(seed), "judge_accuracy": accuracy(judge, data.test)}
        for name in ARMS:
            model = model_of(name, data, seed, RATES[name])
            row[f"{name}_accuracy"] = accuracy(model, data.test)
            if isinstance(model, PrototypeAutoencoder):
                row[f"{name}_legible"] = legible(model, judge)
                row[f"{name}_dead"] = float(len(prototype_report(model, data.train.x)["dead"]))
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["accuracy_gap"] = measured["prototypes_accuracy"] - measured["dense_accuracy"]
    holds = (
        measured["accuracy_gap"] >= -0.01
        and measured["prototypes_legible"] >= 0.8
        and measured["without_r1_legible"] < measured["prototypes_legible"]
    )
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="as-accurate-and-legible",
        says="A network that decides by distances to prototypes is as accurate as its plain twin, and shows them as images.",
        threshold=(
            "mean accuracy within 1 point of the same encoder with a dense head; at least 80 % of decoded prototypes are "
            "given a class with probability above 0.9 by an independent network; fewer without the term R1"
        ),
        data="digits, 8 x 8",
        run=_run,
        minutes=3.0,
    ),
)
