"""Claims of SCALE (arXiv:2506.16659): close to AdamW's loss with almost no optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.language import MakeOptimizer, next_character_loss, shakespeare, train_language
from probatum.claims.tools import mean
from probatum.numerics.optimisation.adamw import state_bytes
from probatum.techniques.optimizer.scale_optimizer import ScaleOptimizer, gradient_variances
from probatum.train.rng import generator_for

STEPS = 400
RATES = {"adamw": 4e-3, "scale": 2e-3, "no_momentum": 2e-3, "sgd": 0.3}
NOTE = (
    "Two layers of width 64, 400 steps of 16 windows of 64 characters; each rate is the best of four on development seed 1 "
    "(0.002 to 0.016 for AdamW, 0.001 to 0.008 for both forms of SCALE, 0.03 to 1 for SGD). SCALE takes a small share of the "
    "state, beats SGD by less than the 5 % asked for, and gains from momentum in the last layer, but stays behind AdamW. Neither "
    "1,200 steps nor batches of 128 closed the gap on development seeds; the size of the network was not varied (the paper: 60 "
    "million weights and more)."
)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATES["adamw"], weight_decay=0.0)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATES["sgd"])


def _scale(lr: float, momentum_on: str = "last", normalisation: str = "row") -> MakeOptimizer:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return ScaleOptimizer.for_model(model, lr=lr, momentum_on=momentum_on, normalisation=normalisation)

    return make


ARMS: dict[str, MakeOptimizer] = {
    "adamw": _adamw,
    "scale": _scale(RATES["scale"]),
    "no_momentum": _scale(RATES["no_momentum"], "none"),
    "sgd": _sgd,
}
ABLATIONS: dict[str, MakeOptimizer] = {
    "scale_momentum_everywhere": _scale(RATES["scale"], "all"),
    "scale_column": _scale(RATES["scale"], normalisation="column"),
    "scale_sign": _scale(RATES["scale"], normalisation="sign"),
    "scale_singular": _scale(RATES["scale"], normalisation="singular"),
}
"""Other normalisations and placements of momentum at SCALE's rate, on the first seed only."""


def _variances(model: nn.Module, seed: int) -> dict[str, float]:
    """Gradient variance of the last layer and the largest one of the other matrices, over 16 batches, after training."""
    text, draw = shakespeare(), generator_for(seed, "variance")
    starts = [torch.randint(len(text.train) - 80, (16,), generator=draw) for _ in range(16)]
    found = gradient_variances(model, [partial(next_character_loss, model, text.train, start) for start in starts])
    return {"variance_last_layer": found.pop("head.weight"), "variance_elsewhere": max(found.values())}


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    shares = []
    for i, seed in enumerate(seeds):
        row: dict[str, float | str] = {"seed": float(seed)}
        curves = {name: train_language(make, seed, STEPS, every=STEPS) for name, make in ARMS.items()}
        row |= {name: curve.losses[-1] for name, curve in curves.items()}
        row |= _variances(curves["scale"].model, seed)
        shares.append(state_bytes(curves["scale"].optimizer) / state_bytes(curves["adamw"].optimizer))
        if i == 0:
            row |= {name: train_language(make, seed, STEPS, every=STEPS).losses[-1] for name, make in ABLATIONS.items()}
        rows.append(row)
    measured = {name: mean([float(row[name]) for row in rows]) for name in rows[-1] if name != "seed"}
    near = sum(float(row["scale"]) <= 1.01 * float(row["adamw"]) for row in rows) / len(rows)
    below_sgd = mean([1 - float(row["scale"]) / float(row["sgd"]) for row in rows])
    measured |= {
        "state_share_of_adamw": max(shares),
        "share_of_seeds_near_adamw": near,
        "relative_to_adamw": measured["scale"] / measured["adamw"] - 1,
        "relative_below_sgd": below_sgd,
        "loss_without_momentum_less_with": measured["no_momentum"] - measured["scale"],
    }
    holds = near >= 0.8 and below_sgd >= 0.05 and max(shares) <= 0.25 and measured["no_momentum"] > measured["scale"]
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="near-adamw-with-little-state",
        says="SGD with normalised gradients and momentum in the last layer alone keeps up with AdamW in language modelling.",
        threshold="loss at most 1 % above AdamW's on 4 of 5 seeds and at least 5 % below plain SGD's, state at most 25 % of "
        "AdamW's bytes, and worse without the last layer's momentum",
        data="tiny_shakespeare, characters",
        run=_run,
        minutes=3.0,
        needs_library=True,
    ),
)
