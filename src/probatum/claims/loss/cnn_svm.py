"""Claims of CNN-SVM (arXiv:1712.03541): about as accurate as softmax, and no better (a negative result)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from probatum.claims.base import Claim, Evidence
from probatum.claims.official_test import official_test, small_cnn
from probatum.claims.tools import accuracy, fit, interval, mean
from probatum.recipe import Training

SETS = ("mnist", "fashion_mnist")
ROWS, VALID = 10_000, 2000
TRAINING = Training(epochs=6, batch_size=32, lr=4e-3, weight_decay=0.0)
ARMS = {"softmax": None, "svm": "cnn-svm(C=100.0)", "svm_c_1": "cnn-svm(C=1.0)"}
CNN = partial(small_cnn, dropout=0.5)
CLOSE, BEHIND = 0.007, 0.002
NOTE = (
    "The paper's network at half resolution and reduced width (5x5 convolutions of 16 and 32 maps, 128 hidden units, dropout "
    "0.5). On development seed 1 and validation rows the rate was the better of two for both losses and C the best of 1, 10 "
    "and 100; the paper's C = 1, where half the squared norm outweighs the mean hinge, is reported on Fashion-MNIST."
)


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for name in SETS:
        for seed in seeds:
            data = official_test(name, ROWS, VALID, seed)
            row: dict[str, float | str] = {"data": name, "seed": float(seed)}
            for label in ARMS if name == "fashion_mnist" else ("softmax", "svm"):
                row[label] = accuracy(fit(ARMS[label], data, seed, training=TRAINING, factory=CNN).model, data.test)
            rows.append(row)
    measured: dict[str, float] = {}
    leads: dict[str, list[float]] = {}
    close = True
    for name in SETS:
        own = [row for row in rows if row["data"] == name]
        for label in ARMS:
            if label in own[0]:
                measured[f"{name}_{label}"] = mean([float(row[label]) for row in own])
        leads[name] = [float(row["softmax"]) - float(row["svm"]) for row in own]
        lead = interval(leads[name])
        measured |= lead.told(f"{name}_softmax_less_svm")
        close &= lead.low >= -CLOSE and lead.high <= CLOSE
    both = interval([mean(list(pair)) for pair in zip(*leads.values(), strict=True)])
    papers = interval([float(row["softmax"]) - float(row["svm_c_1"]) for row in rows if "svm_c_1" in row])
    measured |= both.told("mean_softmax_less_svm") | papers.told("fashion_mnist_softmax_less_svm_c_1")
    controls = {
        "softmax is at most 0.2 points behind, over both sets": both.low >= -BEHIND,
        "softmax is ahead of the paper's C = 1": papers.low > 0,
    }
    return Evidence(close, measured, tuple(rows), NOTE, controls)


CLAIMS = (
    Claim(
        id="close-to-softmax",
        says="An L2-SVM at the end of a convolutional network comes close to softmax, which stays slightly ahead.",
        threshold="at the same budget the 90 % interval of the paired difference of accuracies lies within 0.7 points either way on "
        "each set; control: softmax at most 0.2 points behind over both (lower end)",
        data="mnist and fashion_mnist, 10,000 training rows and their own 10,000 test rows",
        run=_run,
        minutes=5.0,
        needs_library=True,
        seeds=tuple(range(201, 206)),
    ),
)
