"""Claim of counterfactual maximum likelihood (arXiv:2106.03831): a lower interventional loss than plain maximum likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import Interval, interval, mean
from probatum.recipe import Training
from probatum.spec import Data, Part, Spec
from probatum.techniques.method.cmle.cmle import CMLE
from probatum.train.assemble import budget_for
from probatum.train.loop import outputs
from probatum.train.loop import train as training_loop
from probatum.train.rng import generator_for, seeded
from probatum.train.run import Run

ROWS, RATE = 1000, 1e-3
TRAINING = Training(steps=600, batch_size=128, lr=RATE, schedule="constant", select="log-loss")
SPEC = Spec("table", "classes", (11,), 2, numeric=11)
OWN = 0.3
WEIGHT, METRIC, DECAYS = 0.3, "mmd-linear", {"light": 0.01, "strong": 3.0}
CLIP = 20.0
NOTE = (
    "x_1, which decides the treatment, tells little of the outcome here, so that balancing takes little away that y needs; where y hangs "
    "on it as much as on the treatment, nothing was gained in earlier runs. Judged at the weight decay that was best for plain maximum "
    "likelihood on development seeds 1 and 2 (of 0.01, 1 and 3: 0.641, 0.618, 0.592 where treatments are drawn). There the term gave "
    "0.571 (0.593 at the light decay), drawn groups 0.585, true propensities 0.599. All arms keep the weights of least validation loss, "
    "on confounded rows."
)


def world(n: int, generator: torch.Generator, randomised: bool) -> Part:
    """Ten normal numbers and t, Bernoulli(sigmoid(3 x_1)) or fair; y by 0.3 x_1 + (2 t - 1)(1.5 x_2 + 0.5)."""
    x = torch.randn(n, 10, generator=generator)
    chance = torch.full((n,), 0.5) if randomised else torch.sigmoid(3 * x[:, 0])
    t = (torch.rand(n, generator=generator) < chance).float()
    logit = OWN * x[:, 0] + (2 * t - 1) * (1.5 * x[:, 1] + 0.5)
    y = (torch.rand(n, generator=generator) < torch.sigmoid(logit)).long()
    return Part(torch.cat([x, t[:, None]], dim=1), y, torch.arange(n))


class Shuffled(CMLE):
    """Balances groups that are drawn: the treatments of a batch in another order."""

    def codes(self, x: Tensor) -> Tensor:
        found = super().codes(x)
        return found[torch.randperm(len(found), generator=self.generator)]


class Propensities:
    """Weighs rows by 1 / p(t | x), the true one, at most 20 and of mean 1."""

    reads = ("target",)
    writes = ("loss",)

    def prepare(self, run: Any) -> None:
        x, t = run.train.x[:, :10], run.train.x[:, 10]
        chance = torch.sigmoid(3 * x[:, 0])
        found = (1 / torch.where(t == 1, chance, 1 - chance)).clamp_max(CLIP)
        self.weights = found / found.mean()

    def loss(self, run: Any, batch: Any, output: Tensor, loss: Tensor) -> Tensor:
        each = F.cross_entropy(output, batch.y, reduction="none")
        return loss + ((self.weights[batch.index] - 1) * each).mean()


def network(seed: int) -> nn.Module:
    """Two hidden layers of 64 on x and t."""
    with seeded(seed, "initial weights"):
        return nn.Sequential(nn.Linear(11, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def fitted(seed: int, data: Data, decay: float, kind: str) -> nn.Module:
    """A network by maximum likelihood, with propensity weights, with the implicit term, or with that on shuffled treatments."""
    net, own = network(seed), generator_for(seed, "technique", "cmle")
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=decay)
    budget = budget_for(TRAINING, len(data.train))
    run = Run(net, nn.CrossEntropyLoss(), optimizer, data.spec, data.train, data.valid, budget)
    methods: dict[str, list[Any]] = {
        "mle": [],
        "cmle": [CMLE(-1, balance=WEIGHT, metric=METRIC, generator=own)],
        "shuffled": [Shuffled(-1, balance=WEIGHT, metric=METRIC, generator=own)],
        "ipw": [Propensities()],
    }
    with seeded(seed, "training"):
        training_loop(run, methods[kind], generator_for(seed, "order"), schedule="constant", select=TRAINING.select)
    return net


def nll(model: nn.Module, part: Part) -> float:
    """Mean negative log-likelihood."""
    return float(F.cross_entropy(outputs(model, part.x), part.y))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        draws = generator_for(seed, "world")
        data = Data(SPEC, *(world(n, draws, False) for n in (ROWS, ROWS // 2, 20_000)))
        fair = world(20_000, draws, True)
        row = {"seed": float(seed)}
        for name, decay in DECAYS.items():
            for kind in ("mle", "cmle", "shuffled", "ipw") if name == "strong" else ("mle", "cmle"):
                net = fitted(seed, data, decay, kind)
                row[f"{name}_{kind}_biased"], row[f"{name}_{kind}_interventional"] = nll(net, data.test), nll(net, fair)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}

    def gain(name: str, other: str) -> Interval:
        return interval([row[f"{name}_{other}_interventional"] - row[f"{name}_cmle_interventional"] for row in rows])

    cost = interval([row["strong_cmle_biased"] - row["strong_mle_biased"] for row in rows])
    over_mle, over_shuffled = gain("strong", "mle"), gain("strong", "shuffled")
    measured |= over_mle.told("strong_gain") | gain("light", "mle").told("light_gain") | cost.told("strong_biased_cost")
    measured |= over_shuffled.told("strong_gain_over_drawn_groups")
    controls = {"balancing drawn groups does less than balancing treatments": over_shuffled.low > 0}
    return Evidence(over_mle.low > 0 and cost.high <= 0.02, measured, tuple(rows), NOTE, controls)


CLAIMS = (
    Claim(
        id="interventional-likelihood",
        says="Balancing representations over treatments lowers the loss where treatments are given at random, and costs little where "
        "they are not.",
        threshold="interventional negative log-likelihood below that of plain maximum likelihood (its weight decay tuned): 90 % interval "
        "above 0; that on confounded test rows at most 0.02 higher at the upper end",
        data="1,000 drawn rows: x normal in 10 dimensions, t by x_1, y by t, x_2 and a little by x_1",
        run=_run,
        minutes=4.0,
        seeds=tuple(range(201, 209)),
    ),
)
