"""Claim of kNN-augmented classification: on frozen features a vote of neighbours helps a linear head, most with few labels.

Features are the pixels of digits and of Fashion-MNIST. Both the head alone and the mixture choose their penalty on the same
validation rows, all there are, also where training rows are few; grids are the technique's own, set on seed 1. As a null the
votes are those of the neighbours of another row, drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import interval
from probatum.data.library import library, subset
from probatum.data.open import open_dataset
from probatum.numerics.networks.backbone import Backbone
from probatum.spec import Data
from probatum.techniques.learner.knn_augmented import augment, mix
from probatum.train.rng import generator_for

LABELS = (5, 10, 20, 10_000)
"""Labels a class; the last stands for all there are."""
ARMS = {"probe": (0.0,), "mixture": None}
"""What is tried as the votes' share: none, or the technique's grid."""


def _few(y: Tensor, each: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(y), generator=generator)
    return torch.cat([order[y[order] == c][:each] for c in range(10)])


def _row(data: Data, seed: int, each: int) -> dict[str, float]:
    features = Backbone(None)
    rows = _few(data.train.y, each, generator_for(seed, "labels"))
    train = (features(data.train.x[rows]), data.train.y[rows])
    valid = (features(data.valid.x), data.valid.y)
    row = {}
    for name, shares in ARMS.items():
        found = augment(features, train, valid, 10, **({} if shares is None else {"shares": shares}))
        asked, y = features(data.test.x), data.test.y
        row |= _told(name, found.mixture(asked), y)
        if shares is None:
            other = torch.randperm(len(asked), generator=generator_for(seed, "others"))
            vote = found.store.vote(asked[other], found.k, found.temperature).double()
            row |= _told("others", mix(vote, found.head.logits(asked).softmax(dim=1), found.share), y)
    return row


def _told(name: str, p: Tensor, y: Tensor) -> dict[str, float]:
    log_loss = -float(p.double().gather(1, y[:, None]).clamp(min=1e-12).log().mean())
    return {f"{name}_accuracy": float((p.argmax(dim=1) == y).double().mean()), f"{name}_nll": log_loss}


def _run(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    measured: dict[str, float] = {}
    holds, controls = True, {}
    for name in ("digits", "fashion_mnist"):
        for seed in seeds:
            source = open_dataset(name) if name == "digits" else subset(library(name), 4000, seed)
            data = source.prepare(seed)
            for each in LABELS:
                rows.append({"data": name, "seed": float(seed), "labels": float(each), **_row(data, seed, each)})

        def gaps(each: int, measure: str, arm: str = "mixture", name: str = name) -> list[float]:
            mine = [row for row in rows if row["data"] == name and row["labels"] == each]
            return [float(row[f"{arm}_{measure}"]) - float(row[f"probe_{measure}"]) for row in mine]

        for each in LABELS:
            label = f"{name}_{each if each < 10_000 else 'all'}"
            gain, loss = interval(gaps(each, "accuracy")), interval(gaps(each, "nll"))
            measured |= {**gain.told(f"{label}_gain"), **loss.told(f"{label}_log_loss")}
            null = interval(gaps(each, "accuracy", "others"))
            measured[f"{label}_gain_by_votes_of_others"] = null.mean
            if each <= 20:
                holds &= gain.low > -0.003 and loss.high < 0
                controls[f"{label}: votes of another row's neighbours do not help"] = null.low <= 0
        few = zip(gaps(LABELS[0], "accuracy"), gaps(LABELS[-1], "accuracy"), strict=True)
        more = interval([a - b for a, b in few])
        measured |= more.told(f"{name}_gain_with_few_less_that_with_all")
        holds &= more.low > -0.01
    return Evidence(holds, measured, tuple(rows), controls=controls)


CLAIMS = (
    Claim(
        id="votes-help-a-linear-probe",
        says="A vote of the nearest training rows improves a linear head on frozen features, most where labels are few.",
        threshold="90 % intervals over seeds: with 5, 10 and 20 labels a class the accuracy gain above -0.3 points and the log loss "
        "lower; the gain with 5 labels less that with all above -1 point; on both sets",
        data="pixels of digits and of 4,000 images of Fashion-MNIST",
        run=_run,
        minutes=4.0,
        needs_library=True,
        seeds=tuple(range(201, 211)),
    ),
)
