"""Claims of gradient-boosted networks (arXiv:1909.12098): as good as Adam at equal width, and prunable after the fact.

Both networks have one hidden layer of 60 sigmoid (boosting) or ReLU (Adam, the bench's loop, 100 epochs) units. Each was
tuned for every table on the validation rows of seeds 1 to 4 from twelve settings: units a stage 1, 3, 10 by eta 0.1, 0.5 by 10
or 50 iterations; learning rate 1e-3, 3e-3, 1e-2, 3e-2 by weight decay 1e-2, 0.1, 1. Beside them a linear model, which tells
whether a table needs a network, and the first half of the units of Adam's network, which are no better than any others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import Interval, fit, interval, mean
from probatum.data.dataset import Dataset
from probatum.data.library import library
from probatum.data.open import open_dataset
from probatum.kinds.table.network import TableMLP
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.optimisation.softmax_regression import fit_softmax
from probatum.recipe import Training
from probatum.spec import Data, Part, Spec
from probatum.techniques.learner import gbnn
from probatum.train.assemble import budget_for
from probatum.train.loop import outputs
from probatum.train.rng import generator_for

WIDTH = 60
TABLES = ("breast-cancer", "wine", "diabetes", "sonar", "ionosphere", "wheat_seeds")
BOOSTED = {
    "breast-cancer": (10, 0.1, 50),
    "wine": (3, 0.5, 50),
    "diabetes": (3, 0.1, 10),
    "sonar": (1, 0.1, 50),
    "ionosphere": (1, 0.5, 50),
    "wheat_seeds": (1, 0.1, 50),
}
"""Units a stage, eta and L-BFGS iterations."""
ADAM = {
    "breast-cancer": (3e-2, 1.0),
    "wine": (3e-3, 1e-2),
    "diabetes": (3e-2, 1.0),
    "sonar": (3e-2, 1.0),
    "ionosphere": (3e-2, 1e-2),
    "wheat_seeds": (3e-2, 1.0),
}
"""Learning rate and weight decay."""


def open_table(name: str) -> Dataset:
    """An embedded table or one of the library's."""
    return open_dataset(name) if "-" in name or name in ("wine", "diabetes") else library(f"tables/{name}")


def score(output: Tensor, part: Part, task: str) -> float:
    """Accuracy for classes, R squared for reals."""
    if task == "classes":
        return float((output.argmax(dim=1) == part.y).float().mean())
    return float(1 - F.mse_loss(output, part.y) / part.y.var(unbiased=False))


def boosted(data: Data, seed: int, units: int, eta: float, iterations: int) -> gbnn.Boosted:
    """The boosted network on one split."""
    budget, stream = budget_for(Training(), len(data.train)), generator_for(seed, "technique", "gbnn", "")
    return gbnn.fit(data, budget, stream, total=WIDTH, units=units, eta=eta, max_iter=iterations)


def adam(data: Data, seed: int, rate: float, decay: float) -> nn.Module:
    """A network of equal width by the bench's AdamW."""

    def network(spec: Spec) -> nn.Module:
        return TableMLP(spec, width=WIDTH, depth=1, dropout=0.0)

    training = Training(epochs=100, batch_size=32, lr=rate, weight_decay=decay)
    return fit(None, data, seed, training=training, factory=network).model


def halved(learner: gbnn.Boosted, part: Part) -> Tensor:
    """The prediction of the first half of the units."""
    model = learner.model
    stages = list(model.staged(gbnn.features_of(part.x, learner.spec)))
    return torch.from_numpy(model.from_raw(stages[len(stages) // 2])).float()


def half_of(net: nn.Module, part: Part) -> Tensor:
    """What a trained `TableMLP` with one hidden layer says with the second half of its units switched off."""
    own = copy.deepcopy(net)
    last = head_of(own, part.x)
    with torch.no_grad():
        last.weight[:, WIDTH // 2 :] = 0
    return outputs(own, part.x)


def linear(data: Data) -> Tensor:
    """Outputs of logistic regression (penalty 0.01) or ridge regression (by cross-validation) on the test rows."""
    x, asked = (gbnn.features_of(part.x, data.spec) for part in (data.train, data.test))
    if data.spec.task == "classes":
        return fit_softmax(torch.from_numpy(x), data.train.y, data.spec.outputs, [1e-2])[0].logits(
            torch.from_numpy(asked)
        )
    found = RidgeCV(np.logspace(-2, 3, 6)).fit(x, data.train.y.numpy())
    return torch.from_numpy(found.predict(asked)).view(data.test.y.shape)


def _row(name: str, dataset: Dataset, seed: int) -> dict[str, float | str]:
    data = dataset.prepare(seed)
    task, test = data.spec.task, data.test
    learner, net = boosted(data, seed, *BOOSTED[name]), adam(data, seed, *ADAM[name])
    said = {
        "boosted": learner.predict(test),
        "half": halved(learner, test),
        "adam": outputs(net, test.x),
        "adam_half": half_of(net, test),
        "linear": linear(data),
    }
    return {"table": name, "seed": float(seed), **{arm: score(output, test, task) for arm, output in said.items()}}


def _run(seeds: Sequence[int]) -> Evidence:
    datasets = {name: open_table(name) for name in TABLES}
    rows = [_row(name, dataset, seed) for name, dataset in datasets.items() for seed in seeds]
    measured: dict[str, float] = {}
    for name in TABLES:
        own = [row for row in rows if row["table"] == name]
        for arm in ("boosted", "half", "adam", "adam_half", "linear"):
            measured[f"{name}_{arm}"] = mean([float(row[arm]) for row in own])

    def over_tables(one: str, other: str, tables: Sequence[str]) -> Interval:
        """The interval over seeds of the mean difference over tables."""
        gaps = {(row["table"], row["seed"]): float(row[one]) - float(row[other]) for row in rows}
        return interval([mean([gaps[name, float(seed)] for name in tables]) for seed in seeds])

    of_classes = [name for name in TABLES if name != "diabetes"]
    gap, lost = over_tables("boosted", "adam", TABLES), over_tables("boosted", "half", of_classes)
    adams, null = over_tables("adam", "adam_half", of_classes), over_tables("boosted", "linear", TABLES)
    measured |= {**gap.told("gap"), **lost.told("lost_by_half")}
    measured |= {**adams.told("lost_by_half_of_adams"), **null.told("gain_over_linear")}
    measured |= over_tables("boosted", "adam", of_classes).told("gap_of_accuracy")
    controls = {
        "half of Adam's units lose more": adams.low > lost.high,
        "a linear model is worse": null.low > 0,
    }
    return Evidence(gap.low >= -0.01 and lost.high <= 0.01, measured, tuple(rows), controls=controls)


CLAIMS = (
    Claim(
        id="matches-adam-and-prunes",
        says="A network grown by boosting is as good as one trained by Adam, and half of its units can be switched off.",
        threshold=(
            "90 % intervals over seeds: the mean over six tables of the score less Adam's at equal width is above -1 point; the first "
            "half of the units loses less than 1 point of accuracy, the mean over the five tables of classes"
        ),
        data="breast-cancer, wine, diabetes, sonar, ionosphere, wheat seeds",
        run=_run,
        minutes=2.0,
        needs_library=True,
        seeds=tuple(range(201, 221)),
    ),
)
