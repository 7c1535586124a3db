"""Claims of FCN for series (arXiv:1611.06455): far fewer errors than an MLP from thirty series.

A quarter-width FCN (32, 64, 32 filters) and the paper's MLP (3 x 500, its dropout) train 200 epochs in batches of 3 and
keep the weights of the best training score, as the paper does where there is no validation part. The learning rate of
each was chosen from 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2 by accuracy on the unused validation rows of seeds 1 and 2 (the FCN hardly minds).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Data, Part
from probatum.techniques.model.series.fcn_tsc.dtw import dtw

ARMS = {"fcn": "fcn-tsc(width=32)", "mlp": "fcn-tsc(kind='mlp')"}
RATES = {"fcn": 1e-3, "mlp": 1e-4}
NEIGHBOUR_TEST = 150
"""Test series that the warping neighbour is scored on; it is slow."""


def thirty(seed: int) -> tuple[Data, Part]:
    """Ten training series a class and the test series; and the rows left to validate, for development seeds only."""
    whole = open_dataset("cbf").prepare(seed, fractions=(0.1, 0.1, 0.8))
    order = np.argsort(whole.train.y.numpy(), kind="stable")
    y = whole.train.y.numpy()[order]
    kept = np.concatenate([order[y == c][:10] for c in range(3)])
    train = Part(whole.train.x[kept], whole.train.y[kept], whole.train.rows[kept])
    return Data(whole.spec, train, train, whole.test), whole.valid


def model_of(name: str, data: Data, seed: int, rate: float) -> nn.Module:
    """One trained network."""
    training = Training(epochs=200, batch_size=3, lr=rate, schedule="constant", weight_decay=0.0)
    return fit(ARMS[name], data, seed, training=training).model


def _warping_error(data: Data) -> float:
    test, train = data.test, data.train
    distance = dtw(test.x[:NEIGHBOUR_TEST].double().numpy(), train.x.double().numpy())
    nearest = train.y.numpy()[distance.argmin(axis=1)]
    return float((nearest != test.y[:NEIGHBOUR_TEST].numpy()).mean())


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data, _ = thirty(seed)
        row = {"seed": float(seed), "warping_neighbour_error": _warping_error(data)}
        row |= {f"{name}_error": 1 - accuracy(model_of(name, data, seed, RATES[name]), data.test) for name in ARMS}
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["share_of_seeds_half"] = mean([float(row["fcn_error"] <= row["mlp_error"] / 2) for row in rows])
    holds = measured["share_of_seeds_half"] >= 0.8 and measured["fcn_error"] <= 0.05
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="fcn-beats-mlp-on-cbf",
        says="A fully convolutional network on raw series is a strong baseline without any feature engineering.",
        threshold="test error at most half of the MLP's on 4 of 5 seeds, and at most 5 % on average",
        data="cylinder-bell-funnel, 30 training series of 128 steps",
        run=_run,
        minutes=2.0,
    ),
)
