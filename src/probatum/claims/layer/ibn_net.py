"""Claims of IBN-Net (arXiv:1807.09441): accuracy on images whose look has changed, at no loss on those seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.library import library, subset
from probatum.recipe import Training
from probatum.spec import Data, Part
from probatum.techniques.layer.ibn_net import layer_divergences
from probatum.train.baselines import training_for
from probatum.train.rng import generator_for

ROWS = 10_000
USUAL = training_for("image", "classes")
TRAINING = Training(epochs=3, batch_size=64, lr=USUAL.lr, weight_decay=USUAL.weight_decay)
ARMS = (("bn", None), ("ibn_a", "ibn-net"), ("ibn_b", "ibn-net(variant='b')"))


def _in_colour(data: Data) -> Data:
    """Images at half resolution with three equal channels."""

    def coloured(part: Part) -> Part:
        return replace(part, x=F.avg_pool2d(part.x, 2).expand(-1, 3, -1, -1).contiguous())

    spec = replace(data.spec, shape=(3, data.spec.shape[1] // 2, data.spec.shape[2] // 2))
    return replace(data, spec=spec, train=coloured(data.train), valid=coloured(data.valid), test=coloured(data.test))


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Per image: background tint up to 0.5 a channel, contrast 0.4 to 1, brightness -0.2 to 0.2; clipped to [0, 1]."""
    n = len(x)
    tint = 0.5 * torch.rand(n, x.shape[1], 1, 1, generator=generator)
    contrast = 0.4 + 0.6 * torch.rand(n, 1, 1, 1, generator=generator)
    brightness = 0.4 * torch.rand(n, 1, 1, 1, generator=generator) - 0.2
    return (contrast * (x + (1 - x) * tint) + brightness).clamp(0, 1)


def _run(seeds: Sequence[int]) -> Evidence:
    mnist = library("mnist")
    rows = []
    for seed in seeds:
        data = _in_colour(subset(mnist, ROWS, seed).prepare(seed))
        other = replace(data.test, x=shifted(data.test.x, generator_for(seed, "appearance")))
        row: dict[str, float | str] = {"seed": float(seed)}
        for name, arm in ARMS:
            model = fit(arm, data, seed, training=TRAINING).model
            row[f"{name}_clean"] = accuracy(model, data.test)
            row[f"{name}_shifted"] = accuracy(model, other)
            kept = list(layer_divergences(model, data.test.x[:256], other.x[:256]).values())
            row[f"{name}_divergence_first"], row[f"{name}_divergence_last"] = kept[0], kept[-1]
        rows.append(row)
    measured = {name: mean([float(row[name]) for row in rows]) for name in rows[0] if name != "seed"}
    holds = True
    for name in ("ibn_a", "ibn_b"):
        gains = [float(row[f"{name}_shifted"]) - float(row["bn_shifted"]) for row in rows]
        measured[f"{name}_gain"] = mean(gains)
        measured[f"{name}_share_of_seeds_better"] = sum(gain > 0 for gain in gains) / len(gains)
        measured[f"{name}_clean_less_bn"] = measured[f"{name}_clean"] - measured["bn_clean"]
        holds &= mean(gains) >= 0.03 and measured[f"{name}_share_of_seeds_better"] >= 0.8
        holds &= abs(measured[f"{name}_clean_less_bn"]) <= 0.005
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="robust-to-appearance",
        says="With instance norm in shallow layers a network keeps its accuracy on images of another contrast and colour.",
        threshold="both variants: accuracy on shifted images above batch norm's on 4 of 5 seeds and by 3 points on average, "
        "clean accuracy within 0.5 points",
        data="mnist, 10,000 rows at half resolution; shift: contrast, brightness, background tint of each test image",
        run=_run,
        minutes=4.0,
        needs_library=True,
    ),
)
