"""Claims of gradual magnitude pruning (arXiv:1710.01878): a large sparse network beats a small dense one of equal size.

A 784-300-100-10 MLP, pruned to 90 % zeros or left dense, and a dense MLP of the width at which it has as many parameters as
the sparse one has non-zero ones; equal steps. The learning rate of each arm was chosen from the same four (2e-3, 4e-3, 8e-3,
1.6e-2; also 3.2e-2 for the narrow one) by validation accuracy on seeds 1 and 2 (samples of 16 000); so was the length of 30
epochs, since 15 leave the sparse network no time to recover. The pruning schedule is the technique's default. Dense arms
keep their best validated weights, the sparse one its last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from probatum.bench.statistics import paired
from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.library import library
from probatum.recipe import Training
from probatum.rooms.arena import ModelFactory
from probatum.spec import Data, Spec
from probatum.techniques.compress.gradual_magnitude_pruning import matching_width, stored_bytes

WIDE = 300
SPARSITY = 0.9
RATES = {"wide": 4e-3, "sparse": 4e-3, "narrow": 1.6e-2}


def network(spec: Spec, width: int) -> nn.Sequential:
    """Two hidden layers of `width` and a third of it."""
    inputs = spec.shape[0] * spec.shape[1] * spec.shape[2]
    second = max(1, width // 3)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, second), nn.ReLU(), nn.Linear(second, spec.outputs)]
    return nn.Sequential(nn.Flatten(), *layers)


def nonzeros(model: nn.Module) -> int:
    """Parameters that are not zero, biases included."""
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def open_images(seed: int) -> Data:
    """One fifth of Fashion-MNIST; five seeds in a row share no image, so that their differences are independent."""
    whole = library("fashion_mnist")
    order = np.random.default_rng(0).permutation(whole.n)
    return whole.take(np.sort(order[(seed - 1) % 5 :: 5])).prepare(seed)


def model_of(name: str, data: Data, seed: int, rate: float, width: int) -> nn.Module:
    """One trained arm."""

    def build(spec: Spec) -> nn.Module:
        return network(spec, width)

    factory: ModelFactory = build
    arm = f"gradual-magnitude-pruning(final_sparsity={SPARSITY})" if name == "sparse" else None
    return fit(arm, data, seed, training=Training(epochs=30, batch_size=128, lr=rate), factory=factory).model


def control_width(spec: Spec, target: int) -> int:
    """The dense control's width."""
    return matching_width(lambda width: sum(p.numel() for p in network(spec, width).parameters()), target, WIDE)


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = open_images(seed)
        sparse = model_of("sparse", data, seed, RATES["sparse"], WIDE)
        width = control_width(data.spec, nonzeros(sparse))
        narrow = model_of("narrow", data, seed, RATES["narrow"], width)
        wide = model_of("wide", data, seed, RATES["wide"], WIDE)
        arms = {"wide": wide, "sparse": sparse, "narrow": narrow}
        row = {"seed": float(seed)} | {name: accuracy(model, data.test) for name, model in arms.items()}
        row |= {f"{name}_nonzeros": float(nonzeros(model)) for name, model in arms.items()}
        sizes = [stored_bytes(layer.weight.detach()) for layer in sparse if isinstance(layer, nn.Linear)]
        row |= {f"sparse_bytes_{kind}": sum(size[kind] for size in sizes) for kind in ("bitmask", "csr")}
        row["narrow_bytes"] = 4 * row["narrow_nonzeros"]
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    over = paired([row["sparse"] - row["narrow"] for row in rows], test_fraction_ratio=None)
    cost = mean([row["wide"] - row["sparse"] for row in rows])
    measured |= {"over_narrow": over.mean, "over_narrow_low": over.low, "over_narrow_high": over.high, "cost": cost}
    note = (
        "At equal non-zero weights; with its bitmask or index the sparse network takes more bytes than the narrow one."
    )
    return Evidence(over.low > 0 and cost < 0.01, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="large-sparse-beats-small-dense",
        says="A large network pruned to 90 % is more accurate than a small dense one with as many non-zero weights.",
        threshold=(
            "95 % paired interval of the accuracy gain over the narrow dense network above 0, and less than 1 point lost "
            "against the wide dense network"
        ),
        data="Fashion-MNIST, a fifth of it for each seed",
        run=_run,
        minutes=2.5,
        needs_library=True,
    ),
)
