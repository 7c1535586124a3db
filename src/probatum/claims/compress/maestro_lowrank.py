"""Claims of Maestro (arXiv:2308.14929): a small network at no loss, and one that can be cut further than by SVD afterwards.

Maestro trains with the released code's full pass, which takes twice the passes of a step; the dense network is not given more
for it. Chosen by validation accuracy on seeds 1 and 2: the dense network's learning rate out of 0.001, 0.003 and 0.01; of
Maestro the lasso and rate out of 0.0001 to 0.0002 and 0.002 to 0.01, as the best pair with at most 40 % of the parameters on
both sets.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, interval, mean
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
RATE, LASSO = 5e-3, 2e-4
SETS = ("mnist", "fashion_mnist")
NOTE = (
    "On development seeds 1 and 2 this pair lost 0.7 points on mnist and 1.05 on fashion_mnist at 28 to 33 % of the parameters; "
    "a lasso of 0.0001 at twice the rate lost 0.3 and 1.6 at 35 to 41 %. Without the full pass a quarter of the parameters cost 2 "
    "points. Whether deeper networks, where each layer's turn is rarer, lose less was not tried."
)


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


def both(name: str, seed: int, keep: float) -> tuple[nn.Module, Assembly, Data]:
    """The dense network and Maestro on its hidden layers, of whose ranks a share is kept."""
    data = subset(library(name), 10_000, seed).prepare(seed)
    arm = f"maestro-lowrank(lasso={LASSO}, keep={keep}, layers=['1', '3'], full_pass=True)"
    return trained(None, data, seed, DENSE_RATE).run.model, trained(arm, data, seed, RATE), data


def parameters(net: nn.Module) -> int:
    """Numbers in it."""
    return sum(value.numel() for value in net.parameters())


def cut_by_svd(net: nn.Module, ranks: dict[str, int]) -> nn.Module:
    """The dense network's layers at these ranks by singular values."""
    for name, layer in factorise(net, list(ranks)).items():
        layer.use(ranks[name])
    return finish_plain(net)


def _means(rows: Sequence[dict[str, float | str]], name: str) -> dict[str, float]:
    own = [row for row in rows if row["data"] == name]
    return {f"{name}_{k}": mean([float(row[k]) for row in own]) for k in own[0] if k not in ("data", "seed")}


def _run(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    measured: dict[str, float] = {}
    holds = True
    for name in SETS:
        for seed in seeds:
            dense, maestro, data = both(name, seed, 1.0)
            row: dict[str, float | str] = {"data": name, "seed": float(seed)}
            row["dense"], row["maestro"] = accuracy(dense, data.test), accuracy(maestro.run.model, data.test)
            row["share_of_parameters"] = parameters(maestro.run.model) / parameters(dense)
            row["passes_over_dense"] = 1 + maestro.run.extra_passes / maestro.run.passes
            rows.append(row)
        measured |= _means(rows, name)
        gain = interval([float(row["maestro"]) - float(row["dense"]) for row in rows if row["data"] == name])
        measured |= gain.told(f"{name}_over_dense")
        holds &= measured[f"{name}_share_of_parameters"] <= 0.4 and gain.low >= -0.01
    return Evidence(holds, measured, tuple(rows), NOTE)


def _run_cut(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    measured: dict[str, float] = {}
    holds = True
    for name in SETS:
        for seed in seeds:
            dense, maestro, data = both(name, seed, 0.25)
            ranks = maestro.methods[0].ranks()
            row: dict[str, float | str] = {"data": name, "seed": float(seed), "dense": accuracy(dense, data.test)}
            row["maestro"] = accuracy(maestro.run.model, data.test)
            row["svd"] = accuracy(cut_by_svd(dense, ranks), data.test)
            rows.append(row | {f"rank_{key}": float(rank) for key, rank in ranks.items()})
        measured |= _means(rows, name)
        gain = interval([float(row["maestro"]) - float(row["svd"]) for row in rows if row["data"] == name])
        measured |= gain.told(f"{name}_over_svd")
        holds &= gain.low > 0
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="small-at-no-loss",
        says="Layers that learn their own rank give a small network at no loss.",
        threshold=(
            "on each set at most 40 % of the dense network's parameters, and the 90 % interval of the accuracy over its begins at "
            "-1 point or above"
        ),
        data="mnist and fashion_mnist, 10,000 rows each; two hidden layers of 128",
        run=_run,
        minutes=3.5,
        needs_library=True,
        seeds=tuple(range(201, 206)),
    ),
    Claim(
        id="cut-further-than-by-svd",
        says="The ordered ranks can be cut further than a dense network by its singular values.",
        threshold=(
            "at a quarter of the learned ranks the 90 % interval of the accuracy over that of the dense network cut to the same "
            "ranks by SVD begins above 0 on each set"
        ),
        data="mnist and fashion_mnist, 10,000 rows each; two hidden layers of 128",
        run=_run_cut,
        minutes=3.5,
        needs_library=True,
        seeds=tuple(range(201, 206)),
    ),
)
