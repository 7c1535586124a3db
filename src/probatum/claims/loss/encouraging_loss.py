"""Claims of encouraging loss (arXiv:2110.06537): accuracy no worse than cross-entropy's, with larger margins."""

from __future__ import annotations

from collections.abc import Sequence

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, margins, mean
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.train.loop import outputs


def _run(seeds: Sequence[int]) -> Evidence:
    digits = open_dataset("digits")
    training = Training(epochs=20, lr=4e-3)
    rows = []
    for seed in seeds:
        data = digits.prepare(seed)
        row: dict[str, float | str] = {"seed": float(seed)}
        for name, arm in (("cross_entropy", None), ("encouraging", "encouraging-loss")):
            model = fit(arm, data, seed, training=training).model
            row[f"{name}_accuracy"] = accuracy(model, data.test)
            row[f"{name}_margin"] = float(margins(outputs(model, data.test.x), data.test.y).mean())
        rows.append(row)
    not_worse = sum(row["encouraging_accuracy"] >= row["cross_entropy_accuracy"] for row in rows) / len(rows)
    ratio = mean([float(row["encouraging_margin"]) / float(row["cross_entropy_margin"]) for row in rows])
    measured = {
        "share_of_seeds_not_worse": not_worse,
        "margin_ratio": ratio,
        "cross_entropy_accuracy": mean([float(row["cross_entropy_accuracy"]) for row in rows]),
        "encouraging_accuracy": mean([float(row["encouraging_accuracy"]) for row in rows]),
    }
    return Evidence(not_worse >= 0.8 and ratio >= 1.2, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="accuracy-and-margin",
        says="Rewarding well-classified examples raises accuracy and enlarges margins.",
        threshold="accuracy at least cross-entropy's on 4 of 5 seeds, and mean test margin at least 1.2 times as large",
        data="digits",
        run=_run,
        minutes=1.0,
    ),
)
