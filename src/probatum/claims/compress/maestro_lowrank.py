"""Claims of Maestro (arXiv:2308.14929): a small network at no loss, and one that can be cut further than by SVD afterwards.

Chosen by validation accuracy on seeds 1 and 2: the dense network's learning rate out of 0.001, 0.003 and 0.01; Maestro's out of
the same, with the lasso out of 0.00001, 0.00003, 0.0001 and 0.0003 (at 0.01 also 0.001), as the best pair with at most 40 % of
the parameters on both sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, mean
from probatum.data.library import library, subset
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import alone
from probatum.spec import Data, Spec
from probatum.techniques.compress.maestro_lowrank import factorise, finish_plain
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded

EPOCHS = 25
DENSE_RATE = 3e-3
RATE, LASSO = 3e-3, 3e-4


def network(spec: Spec) -> nn.Module:
    """Two hidden layers of 128."""
    inputs = spec.shape[0] * spec.shape[1] * spec.shape[2]
    layers = (nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, spec.outputs))
    return nn.Sequential(nn.Flatten(), *layers)


def trained(arm: str | None, data: Data, seed: int, rate: float) -> Assembly:
    """An arm trained to its last step."""
    base = Recipe(Training(epochs=EPOCHS, batch_size=64, lr=rate, select="last"))
    recipe = base if arm is None else make_arm(arm, base).recipe
    parts = assemble(alone(recipe, data, seed, factory=network))
    with seeded(seed, "training"):
        train(parts.run, parts.methods, generator_for(seed, "order"), select="last")
    return parts


def arm_of(lasso: float, keep: float = 1.0) -> str:
    """Maestro on the hidden layers."""
    return f"maestro-lowrank(lasso={lasso}, keep={keep}, layers=['1', '3'])"


def parameters(net: nn.Module) -> int:
    """Numbers in it."""
    return sum(value.numel() for value in net.parameters())


def cut_by_svd(net: nn.Module, ranks: dict[str, int]) -> nn.Module:
    """The dense network's layers at these ranks by singular values."""
    for name, layer in factorise(net, list(ranks)).items():
        layer.use(ranks[name])
    return finish_plain(net)


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for name in ("mnist", "fashion_mnist"):
        for seed in seeds:
            data = subset(library(name), 10_000, seed).prepare(seed)
            dense = trained(None, data, seed, DENSE_RATE).run.model
            whole = trained(arm_of(LASSO), data, seed, RATE)
            half = trained(arm_of(LASSO, keep=0.5), data, seed, RATE)  # the same training, cut further in the end
            row: dict[str, float | str] = {"data": name, "seed": float(seed)}
            row["dense"], row["maestro"] = accuracy(dense, data.test), accuracy(whole.run.model, data.test)
            row["share_of_parameters"] = parameters(whole.run.model) / parameters(dense)
            ranks = half.methods[0].ranks()
            row["maestro_half"] = accuracy(half.run.model, data.test)
            row["svd_half"] = accuracy(cut_by_svd(dense, ranks), data.test)
            row |= {f"half_rank_{key}": float(rank) for key, rank in ranks.items()}
            rows.append(row)
    measured: dict[str, float] = {}
    holds = True
    for name in ("mnist", "fashion_mnist"):
        own = [row for row in rows if row["data"] == name]
        found = {k: mean([float(row[k]) for row in own]) for k in own[0] if k not in ("data", "seed")}
        holds &= found["share_of_parameters"] <= 0.4 and found["maestro"] >= found["dense"] - 0.01
        holds &= found["maestro_half"] > found["svd_half"] and not math.isnan(found["maestro"])
        measured |= {f"{name}_{k}": v for k, v in found.items()}
    note = (
        "No setting tried gave 40 % of the parameters within a point: on development seeds the pair used here has a quarter of "
        "them at 1.6 points less, and a lasso of 0.0001 half of them at 1.2 less. With two hidden layers every other step runs "
        "one of them at a random rank, which costs more than in a deep network, where each layer's turn is rare."
    )
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="small-at-no-loss",
        says="Layers that learn their own rank give a small network at no loss, which can be cut further than by SVD.",
        threshold=(
            "on each set at most 40 % of the dense network's parameters and accuracy within 1 point of its; at half the learned "
            "ranks more accurate than the dense network cut to the same ranks by SVD"
        ),
        data="mnist and fashion_mnist, 10,000 rows each; two hidden layers of 128",
        run=_run,
        minutes=3.0,
        needs_library=True,
        seeds=(101, 102, 103),
    ),
)
