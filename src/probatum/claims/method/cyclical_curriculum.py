"""Claims of cyclical curriculum learning (arXiv:2202.05531): at equal visits no worse than plain order.

The rate of the shared recipe was chosen for the plain order alone (validation accuracy, seeds 1 and 2, four rates for each
set); all arms use it. The curricula keep their published settings. Reported weights are the best on validation rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.library import library, subset
from probatum.recipe import Training
from probatum.spec import Data, Spec

ARMS = {
    "plain": None,
    "cyclical": "cyclical-curriculum(scorer_steps={steps})",
    "easy": "cyclical-curriculum(pace='rise', scorer_steps={steps})",
    "cyclical_exponential": "cyclical-curriculum(prefer='exponential', scorer_steps={steps})",
}
TRAINING = {
    "images": Training(epochs=10, batch_size=64, lr=4e-3),
    "text": Training(epochs=10, batch_size=64, lr=8e-3),
}


class TextConvolutions(nn.Module):
    """Kernels over 3, 4 and 5 word vectors, the largest response of each, dropout 0.5."""

    def __init__(self, spec: Spec, width: int = 32, kernels: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocabulary, width, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, kernels, size, padding=size // 2) for size in (3, 4, 5))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(3 * kernels, spec.outputs))

    def forward(self, x: Tensor) -> Tensor:
        words = self.embed(x).transpose(1, 2)
        return self.head(torch.cat([conv(words).relu().amax(dim=2) for conv in self.convolutions], dim=1))


def _network(spec: Spec) -> nn.Module:
    if spec.modality == "text":
        return TextConvolutions(spec)
    maps = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
    )  # 28 -> 14 -> 7
    return nn.Sequential(maps, nn.Linear(32 * 49, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, spec.outputs))


def _data(kind: str, seed: int) -> Data:
    whole = subset(library("fashion_mnist"), 10_000, seed) if kind == "images" else library("sentence_sets/mr")
    return whole.prepare(seed)


def _run(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    for kind, training in TRAINING.items():
        for seed in seeds:
            data = _data(kind, seed)
            row: dict[str, float | str] = {"seed": float(seed), "data": kind}
            for name, arm in ARMS.items():
                text = None if arm is None else arm.format(steps=training.epochs * len(data.train) // 128)
                run = fit(text, data, seed, training=training, factory=_network)
                row[name] = 100 * accuracy(run.model, data.test)
                row[f"{name}_extra_passes"] = run.extra_passes / (run.step * run.budget.batch_size)
            rows.append(row)
    measured: dict[str, float] = {}
    for kind in TRAINING:
        own = [row for row in rows if row["data"] == kind]
        gains = [float(row["cyclical"]) - float(row["plain"]) for row in own]
        low, high = stats.t.interval(0.95, len(own) - 1, mean(gains), stats.sem(gains))
        measured |= {f"{kind}_{name}": mean([float(row[name]) for row in own]) for name in ARMS}
        measured |= {f"{kind}_gain": mean(gains), f"{kind}_gain_low": float(low), f"{kind}_gain_high": float(high)}
        wins = [float(row["cyclical"]) > float(row["easy"]) for row in own]
        measured[f"{kind}_share_of_seeds_above_easy"] = mean([float(win) for win in wins])
    measured["cost_of_the_scorer"] = mean([float(row["cyclical_extra_passes"]) for row in rows])
    holds = all(measured[f"{k}_gain"] >= -0.2 and measured[f"{k}_share_of_seeds_above_easy"] >= 0.8 for k in TRAINING)
    note = (
        "With weights 1/loss from a reference that fits most images, small epochs hardly ever hold a hard row; the milder "
        "weights exp(-loss), also recorded, lose less. Budgets here are far below the paper's."
    )
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="no-worse-than-plain-order",
        says="Cycling the size of epochs, with easy rows first in line, trains no worse than plain epochs.",
        threshold=(
            "mean accuracy at most 0.2 points below plain order's at equal visits, and above that of a rising easy "
            "curriculum on 4 of 5 seeds, on both sets"
        ),
        data="Fashion-MNIST (10000 images) and rt-polarity sentences",
        run=_run,
        minutes=4.0,
        needs_library=True,
    ),
)
