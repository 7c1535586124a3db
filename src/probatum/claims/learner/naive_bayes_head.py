"""Claim of the naive Bayes head: it needs fewer labels than logistic regression where its assumption holds.

Rows are drawn from five unit Gaussians in 200 dimensions whose means are 0.18 times a standard normal draw (chosen on
seed 1 so that errors are near those of the card); the test has 20,000 rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.techniques.learner.naive_bayes_head import PENALTIES, logistic, naive_bayes
from probatum.train.rng import generator_for

CLASSES, WIDTH, SCALE = 5, 200, 0.18
LABELS = (4, 40, 200, 2000)
FREE = 1e-10
"""A penalty that leaves logistic regression unpenalised but for the last digits."""


def _rows(means: Tensor, each: int, own: torch.Generator) -> tuple[Tensor, Tensor]:
    y = torch.arange(CLASSES).repeat(each)
    return means[y] + torch.randn(len(y), WIDTH, generator=own), y


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        own = generator_for(seed, "mixture")
        means = SCALE * torch.randn(CLASSES, WIDTH, generator=own)
        test, truth = _rows(means, 4000, own)
        row = {"seed": float(seed)}
        for each in LABELS:
            x, y = _rows(means, each, own)
            rules = {"nb": naive_bayes(x, y, CLASSES), "lr": logistic(x, y, CLASSES, (FREE,))}
            if each <= 200:
                rules["lr_tuned"] = logistic(x, y, CLASSES, PENALTIES)
            for name, rule in rules.items():
                row[f"{name}_{each}"] = float((rule.logits(test).argmax(dim=1) != truth).double().mean())
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    gap = measured["gap_at_200"] = measured["lr_200"] - measured["nb_200"]
    return Evidence(gap >= 0.05, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="fewer-labels-than-logistic-regression",
        says="Naive Bayes reaches its own best error with fewer labels than logistic regression needs.",
        threshold="at 200 labels a class, error at least 0.05 below unpenalised logistic regression's",
        data="five unit Gaussians in 200 dimensions; 4 to 2,000 labels a class",
        run=_run,
        minutes=0.5,
    ),
)
