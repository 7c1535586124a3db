"""Claims of deeply-supervised nets (arXiv:1409.5185): better from little data, with stronger gradients below.

Both arms are trained as in the paper, by SGD with momentum 0.9. Rates and alpha were chosen on seeds 1 and 2 by validation
error, six trials for each arm: the plain net over six rates from 0.02 to 0.15 (some of which do not train at all), the
supervised one over three rates (0.02, 0.05, 0.1) and two alphas (0.1, 0.3).

An earlier form of this claim trained both by AdamW, with heads on averaged maps (alpha 0.1): on these seeds the errors
were then 0.042 for both. SGD was taken up since it is the paper's setting, on seeds 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, mean
from probatum.data.library import library, subset
from probatum.numerics.networks.watch import hidden_layers
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import alone
from probatum.spec import Data, Part, Spec
from probatum.techniques.method.deeply_supervised_nets import DeeplySupervisedNets, gradient_norms, probe_accuracy
from probatum.train.assemble import assemble
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded

EPOCHS = 15
PLAIN_RATE = 0.02
RATE, ALPHA = 0.05, 0.3


def _network(spec: Spec) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = spec.shape[0]
    for width, stride in ((16, 1), (16, 2), (32, 1), (32, 2), (32, 1), (32, 1)):
        layers += [nn.Conv2d(inputs, width, 3, stride, 1), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * 49, spec.outputs))


def _data(seed: int) -> Data:
    whole = subset(library("mnist"), 14000, seed).prepare(seed)
    return Data(whole.spec, _cut(whole.train, 2000), _cut(whole.valid, 1000), whole.test)


def _cut(part: Part, n: int) -> Part:
    kept = torch.randperm(len(part), generator=torch.Generator().manual_seed(n))[:n]
    return Part(part.x[kept], part.y[kept], part.rows[kept])


def _fit(arm: str | None, data: Data, seed: int, rate: float) -> nn.Module:
    base = Recipe(Training(epochs=EPOCHS, batch_size=64))
    recipe = base if arm is None else make_arm(arm, base).recipe
    parts = assemble(alone(recipe, data, seed, factory=_network))
    run = parts.run
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    with seeded(seed, "training"):
        train(run, parts.methods, generator_for(seed, "order"))
    return run.model


def _gain(data: Data, seed: int) -> float:
    """How much larger the companions make the first third's weight gradients at the start (mean ratio of norms)."""
    with seeded(seed, "initial weights", ""):
        net = _network(data.spec)
    x, y = data.train.x[:256], data.train.y[:256]
    F.cross_entropy(net(x), y).backward()
    plain = list(gradient_norms(net).values())[:2]
    net.zero_grad()
    with DeeplySupervisedNets(ALPHA).attach(net, x[:2], data.spec.outputs) as dsn:
        (F.cross_entropy(net(x), y) + dsn.companion_loss(y)).backward()
    return mean([ours / theirs for ours, theirs in zip(gradient_norms(net).values(), plain, strict=False)])


def _first_layer(model: nn.Module, x: Tensor) -> Tensor:
    """The first layer's activations on a 7 x 7 grid (n, 784)."""
    return torch.cat([F.adaptive_avg_pool2d(hidden_layers(model, part)["1"], 7).flatten(1) for part in x.split(500)])


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = _data(seed)
        row = {"seed": float(seed), "gradient_gain": _gain(data, seed)}
        arms = (("plain", None, PLAIN_RATE), ("supervised", f"deeply-supervised-nets(alpha={ALPHA})", RATE))
        for name, arm, rate in arms:
            model = _fit(arm, data, seed, rate)
            row[f"{name}_error"] = 1 - accuracy(model, data.test)
            seen, unseen = _first_layer(model, data.train.x), _first_layer(model, data.test.x)
            row[f"{name}_first_layer"] = probe_accuracy(seen, data.train.y, unseen, data.test.y)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["share_of_seeds_better"] = mean([float(row["supervised_error"] < row["plain_error"]) for row in rows])
    measured["first_layer_gain"] = measured["supervised_first_layer"] - measured["plain_first_layer"]
    holds = (
        measured["share_of_seeds_better"] >= 0.8
        and measured["gradient_gain"] >= 2
        and measured["first_layer_gain"] >= 0.01
    )
    note = (
        "The first layer is narrow (16 maps, averaged to 7 x 7 for the probe) and a linear machine reads it well even without "
        "supervision, which leaves little to gain there; test error and gradient norms behave as claimed. With plain SGD "
        "the unsupervised net trains late on some seeds, which makes its mean error large."
    )
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="better-from-little-data",
        says="Supervising hidden layers lowers the test error from little data and makes early layers discriminative.",
        threshold=(
            "test error lower on 4 of 5 seeds, gradient norms of the first third of the layers at the start at least "
            "twice as large, and a linear SVM on the first layer at least 1 point more accurate"
        ),
        data="MNIST, 2000 training images",
        run=_run,
        minutes=3.0,
        needs_library=True,
    ),
)
