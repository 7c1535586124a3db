"""Claim of intermediate layer classifiers (ICLR 2025): earlier layers serve shifted rows better than the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Data, Part, Spec
from probatum.techniques.learner.intermediate_layer_classifiers import (
    PENULTIMATE,
    Probed,
    balanced_rows,
    chosen,
    layer_features,
    probe_layers,
    sensitivity,
)
from probatum.train.rng import generator_for
from probatum.worlds.evidence import marked

ALIGNED, SHOTS = 0.95, 100
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
TRAINING = Training(steps=1500, batch_size=64, lr=1e-3, weight_decay=1e-4, select="last")
NOTE = (
    "Digits as 64 numbers and one more number a class, which marks the own class in 95 % of the training rows and any class evenly "
    "in the shifted ones. Shifted validation rows choose layer and penalty, for the penultimate layer the penalty: 100 of them, balanced, are "
    "fitted on few-shot and the others choose, in both cases. Of three trainings on development seeds 1 and 2 (rate 0.001 for 500 and "
    "1,500 steps, 0.003 for 1,500) the zero-shot gains were 3.9, 2.9 and 0.6 points, few-shot 11.6, 11.1 and 8.1; the middle one stands. "
    "By the measured distances between kinds of rows the earlier layers are not the steadier ones here: what helps is that they keep the digit."
)


def with_marks(part: Part, spec: Spec, share: float, generator: torch.Generator) -> Part:
    """Rows marked with their own class in this share of them (exactly), and any class evenly in the rest."""
    codes = torch.randint(spec.outputs, (len(part),), generator=generator)
    own = torch.randperm(len(part), generator=generator)[: round(share * len(part))]
    codes[own] = part.y[own]
    return marked(part, codes, spec)


def network(spec: Spec) -> nn.Module:
    """Four hidden layers of 128."""
    layers: list[nn.Module] = []
    for inputs in (spec.shape[0], 128, 128, 128):
        layers += [nn.Linear(inputs, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, spec.outputs))


def _test_accuracy(probed: Probed, features: dict[str, Tensor], y: Tensor) -> float:
    return float(probed.head.logits(features[probed.layer]).argmax(dim=1).eq(y).double().mean())


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        plain, draws = open_dataset("digits").prepare(seed), generator_for(seed, "marks")
        spec = Spec("table", "classes", (64,), 10, numeric=64)
        parts = [replace(part, x=part.x.flatten(1)) for part in (plain.train, plain.valid, plain.test)]
        train = with_marks(parts[0], spec, ALIGNED, draws)
        known = with_marks(parts[1], spec, ALIGNED, draws)
        valid, test = (with_marks(part, spec, 0.0, draws) for part in parts[1:])
        data = Data(replace(spec, shape=(74,), numeric=74), train, known, test)
        model = fit(None, data, seed, training=TRAINING, factory=network).model
        few = balanced_rows(valid.y, SHOTS, draws)
        rest = torch.ones(len(valid), dtype=torch.bool)
        rest[few] = False
        shots = Part(valid.x[few], valid.y[few], valid.rows[few])
        select = Part(valid.x[rest], valid.y[rest], valid.rows[rest])
        features = layer_features(model, test.x)
        row = {"seed": float(seed), "own_head": accuracy(model, test)}
        for name, part in (("zero", None), ("few", shots)):
            found = probe_layers(model, train, select, few=part, penalties=PENALTIES, classes=10)
            before = {layer: one for layer, one in found.items() if layer != PENULTIMATE}
            row[f"{name}_intermediate"] = _test_accuracy(chosen(before), features, test.y)
            row[f"{name}_penultimate"] = _test_accuracy(found[PENULTIMATE], features, test.y)
            row[f"{name}_gain"] = row[f"{name}_intermediate"] - row[f"{name}_penultimate"]
            for depth, one in enumerate(found.values(), start=1):
                row[f"{name}_layer_{depth}"] = _test_accuracy(one, features, test.y)
        there, here = layer_features(model, valid.x), layer_features(model, train.x)
        for depth, layer in enumerate(here, start=1):
            row[f"sensitivity_layer_{depth}"] = sensitivity(here[layer], train.y, there[layer], valid.y)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    holds = measured["few_gain"] >= 0.05 and measured["zero_gain"] >= 0.02
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="intermediate-beats-penultimate",
        says="Where a shortcut of training is gone, a linear head on an earlier layer is better than one on the penultimate layer, "
        "with and without rows of the new kind to fit on.",
        threshold="mean over 5 seeds of the gain over the penultimate layer at least 5 points few-shot (100 shifted rows) and 2 "
        "points zero-shot",
        data="digits with ten further numbers that tell the class in 95 % of the training rows",
        run=_run,
        minutes=1.0,
    ),
)
