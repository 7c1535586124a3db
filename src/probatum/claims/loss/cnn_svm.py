"""Claims of CNN-SVM (arXiv:1712.03541): about as accurate as softmax, and no better (a negative result)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.library import library, subset
from probatum.recipe import Training
from probatum.spec import Spec

SETS = ("mnist", "fashion_mnist")
ROWS = 10_000
TRAINING = Training(epochs=8, batch_size=32, lr=4e-3, weight_decay=0.0)
SVM = "cnn-svm(C=100.0)"
NOTE = (
    "The paper's network at half resolution and reduced width (5x5 convolutions of 16 and 32 maps, 128 hidden units, dropout "
    "0.5). On development seed 1 and validation rows the rate was the better of two for both losses and C the best of 1, 10 "
    "and 100: with C = 1, the paper's, half the squared norm outweighs the mean hinge and costs several points. So tuned, the "
    "two losses are as good as each other: the differences are of either sign and below the noise of 1,400 test rows a seed, "
    "so that softmax's lead in the paper (0.2 and 1.1 points at C = 1, one run each) does not show."
)


def _cnn(spec: Spec) -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(spec.shape[0], 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (spec.shape[1] // 8) * (spec.shape[2] // 8), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, spec.outputs),
    )


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for name in SETS:
        whole = library(name)
        for seed in seeds:
            data = subset(whole, ROWS, seed).prepare(seed)
            row: dict[str, float | str] = {"data": name, "seed": float(seed)}
            for label, arm in (("softmax", None), ("svm", SVM)):
                model = fit(arm, data, seed, training=TRAINING, factory=_cnn).model
                row[label] = accuracy(model, data.test)
            rows.append(row)
    measured: dict[str, float] = {}
    for name in SETS:
        for label in ("softmax", "svm"):
            measured[f"{name}_{label}"] = mean([float(row[label]) for row in rows if row["data"] == name])
        measured[f"{name}_softmax_less_svm"] = measured[f"{name}_softmax"] - measured[f"{name}_svm"]
    differences = [measured[f"{name}_softmax_less_svm"] for name in SETS]
    measured["mean_softmax_less_svm"] = mean(differences)
    close = all(abs(difference) <= 0.007 for difference in differences)
    return Evidence(close and measured["mean_softmax_less_svm"] >= 0, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="close-to-softmax",
        says="An L2-SVM at the end of a convolutional network comes close to softmax, which stays slightly ahead.",
        threshold="at the same budget the mean accuracies differ by at most 0.7 points on each set, and softmax is not worse on "
        "average over both",
        data="mnist and fashion_mnist, 10,000 rows of each",
        run=_run,
        minutes=3.0,
        needs_library=True,
    ),
)
