"""Claims of residual adapters (arXiv:1705.08045): small private parts bring a shared network near full fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, first_rows, fit, mean
from probatum.data.library import library, subset
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Data, Part
from probatum.techniques.layer.residual_adapters import decathlon_score
from probatum.train.adapt import HEAD_ONLY, Adapted
from probatum.train.pretrain import SEED, pretrain
from probatum.train.rng import generator_for

SOURCE = Recipe(training=Training(steps=800, batch_size=64, lr=4e-3))
STEPS, BATCH = 250, 32
ROWS = 3400
TRAINED, TUNED = 2000, 250
ARMS = {
    "head": (None, HEAD_ONLY, 1.6e-2),
    "norms": ("residual-adapters(form='norms')", "pretrained", 1.6e-2),
    "adapters": ("residual-adapters(form='parallel')", "pretrained", 1.6e-2),
    "full": (None, "pretrained", 4e-3),
}
"""Arm, start, learning rate: the better of 0.004 and 0.016 on validation rows of fashion and rotated, seed 1.

The parallel form was taken since adapters and norms of the series form are 15.1 % of this network, beyond the bound below; the
series form reached 95 % of full fine-tuning after 200 steps (seed 1). The two were not compared at equal steps."""


def _plain(x: Tensor, generator: torch.Generator) -> Tensor:
    return x


def _inverted(x: Tensor, generator: torch.Generator) -> Tensor:
    return 1 - x


def _rotated(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image by an angle of its own, up to 90 degrees to either side."""
    angle = math.pi * (torch.rand(len(x), generator=generator) - 0.5)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin(), angle.sin()
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def _edges(x: Tensor, generator: torch.Generator) -> Tensor:
    """Length of the Sobel gradient."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    both = F.conv2d(x, torch.stack([sobel, sobel.T])[:, None], padding=1)
    return both.square().sum(dim=1, keepdim=True).sqrt().clamp(0, 1)


DOMAINS: dict[str, tuple[str, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "fashion": ("fashion_mnist", _plain),
    "inverted": ("mnist", _inverted),
    "rotated": ("mnist", _rotated),
    "edges": ("mnist", _edges),
}


def at_half_resolution(data: Data, change: Callable[[Tensor], Tensor] = lambda x: x) -> Data:
    """Images averaged over 2 x 2 pixels, then changed."""

    def halved(part: Part) -> Part:
        return replace(part, x=change(F.avg_pool2d(part.x, 2)))

    spec = replace(data.spec, shape=(1, data.spec.shape[1] // 2, data.spec.shape[2] // 2))
    return replace(data, spec=spec, train=halved(data.train), valid=halved(data.valid), test=halved(data.test))


@cache
def start() -> Adapted:
    """The network pretrained on 9,600 plain digits."""
    data = at_half_resolution(subset(library("mnist"), 12_000, 0).prepare(0, fractions=(0.8, 0.1, 0.1)))
    return Adapted(pretrain(alone(SOURCE, data, SEED))[0])


def domain(name: str, seed: int) -> Data:
    """2,000 training rows of a domain."""
    source, look = DOMAINS[name]
    data = subset(library(source), ROWS, seed + 1000).prepare(seed, fractions=(0.8, 0.1, 0.1))
    data = replace(data, train=first_rows(data.train, TRAINED), valid=first_rows(data.valid, TUNED))
    generator = generator_for(seed, "look", name)
    return at_half_resolution(data, lambda x: look(x, generator))


def one(arm: str, data: Data, seed: int, lr: float | None = None) -> tuple[float, float, int]:
    """Test and validation accuracy, and how many numbers were trained besides the last layer's."""
    text, begin, usual = ARMS[arm]
    training = Training(steps=STEPS, batch_size=BATCH, lr=lr or usual)
    model = fit(text, data, seed, training=training, factory=replace(start(), start=begin)).model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return accuracy(model, data.test), accuracy(model, data.valid), trained - 65 * data.spec.outputs


def _run(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    extra: dict[str, int] = {}
    for seed in seeds:
        for name in DOMAINS:
            data = domain(name, seed)
            row: dict[str, float | str] = {"seed": float(seed), "domain": name}
            for arm in ARMS:
                row[arm], _, extra[arm] = one(arm, data, seed)
            rows.append(row)
    measured = {arm: mean([float(row[arm]) for row in rows]) for arm in ARMS}
    errors = {arm: {n: 1 - mean([float(r[arm]) for r in rows if r["domain"] == n]) for n in DOMAINS} for arm in ARMS}
    for arm in ARMS:
        measured[f"{arm}_score"] = decathlon_score(errors[arm], errors["full"])
    measured["extra_share"] = extra["adapters"] / sum(value.numel() for value in start().state.values())
    measured["adapters_less_norms"] = measured["adapters"] - measured["norms"]
    measured["adapters_less_head"] = measured["adapters"] - measured["head"]
    measured["adapters_over_full"] = measured["adapters"] / measured["full"]
    holds = measured["extra_share"] <= 0.15 and measured["adapters_over_full"] >= 0.98
    holds &= measured["adapters_less_norms"] >= 0.02 and measured["adapters_less_head"] >= 0.02
    note = f"The network was pretrained on MNIST; {STEPS} updates a domain for every arm, and each arm's rate was chosen alike."
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="many-small-domains",
        says="With small adapters and norms of its own a domain comes near full fine-tuning on a frozen shared network.",
        threshold="at most 15 % more parameters; mean accuracy over four domains above norms alone and above the last layer "
        "alone by 2 points each, and at least 98 % of full fine-tuning's",
        data="mnist -> fashion_mnist and inverted, rotated, edge mnist, 2,000 rows each at half resolution",
        run=_run,
        minutes=2.5,
        needs_library=True,
        seeds=(101, 102, 103),
    ),
)
