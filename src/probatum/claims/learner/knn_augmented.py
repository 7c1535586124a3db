"""Claim of kNN-augmented classification: on frozen features a vote of neighbours helps a linear head, most with few labels.

Features are the pixels of digits and of Fashion-MNIST. Both the head alone and the mixture choose their penalty on the same
validation rows; grids are the technique's own, set on seed 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import t as student
from torch import Tensor

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.library import library, subset
from probatum.data.open import open_dataset
from probatum.numerics.networks.backbone import Backbone
from probatum.spec import Data
from probatum.techniques.learner.knn_augmented import augment
from probatum.train.rng import generator_for

LABELS = (5, 10, 20, 10_000)
"""Labels a class; the last stands for all there are."""
ARMS = {
    "probe": ("plain", (0.0,)),
    "mixture": ("plain", None),
    "regularise": ("regularise", None),
    "focal": ("focal", None),
}


def _few(y: Tensor, each: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(y), generator=generator)
    return torch.cat([order[y[order] == c][:each] for c in range(10)])


def _row(data: Data, seed: int, each: int) -> dict[str, float]:
    features = Backbone(None)
    rows = _few(data.train.y, each, generator_for(seed, "labels"))
    train = (features(data.train.x[rows]), data.train.y[rows])
    valid = (features(data.valid.x), data.valid.y)
    row = {}
    for name, (training, shares) in ARMS.items():
        own = {} if shares is None else {"shares": shares}
        found = augment(features, train, valid, 10, training=training, **own)
        p = found.mixture(features(data.test.x))
        row[f"{name}_accuracy"] = float((p.argmax(dim=1) == data.test.y).double().mean())
        row[f"{name}_nll"] = -float(p.double().gather(1, data.test.y[:, None]).clamp(min=1e-12).log().mean())
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    rows, measured, holds = [], {}, True
    for name in ("digits", "fashion_mnist"):
        for seed in seeds:
            source = open_dataset(name) if name == "digits" else subset(library(name), 4000, seed)
            data = source.prepare(seed)
            for each in LABELS:
                rows.append({"data": name, "seed": float(seed), "labels": float(each), **_row(data, seed, each)})
        gains = {}
        for each in LABELS:
            mine = [row for row in rows if row["data"] == name and row["labels"] == each]
            found = torch.tensor([row["mixture_accuracy"] - row["probe_accuracy"] for row in mine], dtype=torch.float64)
            half = student.ppf(0.975, len(found) - 1) * float(found.std()) / len(found) ** 0.5
            gains[each] = float(found.mean())
            label = f"{name}_{each if each < 10_000 else 'all'}"
            measured |= {f"{label}_gain": gains[each], f"{label}_low": gains[each] - half}
            better = sum(row["mixture_nll"] < row["probe_nll"] for row in mine)
            measured[f"{label}_seeds_with_lower_nll"] = float(better)
            for arm in ("regularise", "focal"):
                measured[f"{label}_{arm}"] = mean([row[f"{arm}_accuracy"] - row["probe_accuracy"] for row in mine])
            if each <= 20:
                holds &= gains[each] - half > -0.003 and better >= 4
        holds &= gains[5] >= gains[10_000]
    note = (
        "On both sets and with all numbers of labels the mixture gains and has the lower log loss. It falls short by one condition: "
        "on Fashion-MNIST the gain with 5 labels a class (1.4 points) is not above that with all 240 (1.5)."
    )
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="votes-help-a-linear-probe",
        says="A vote of the nearest training rows improves a linear head on frozen features, most where labels are few.",
        threshold="with 5, 10 and 20 labels a class: 95 % lower bound of the accuracy gain above -0.3 points and lower log loss on "
        "at least 4 of 5 seeds; the gain with 5 labels at least that with all; on both sets",
        data="pixels of digits and of 4,000 images of Fashion-MNIST",
        run=_run,
        minutes=2.0,
        needs_library=True,
    ),
)
