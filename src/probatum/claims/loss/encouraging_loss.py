"""Claims of encouraging loss (arXiv:2110.06537): accuracy no worse than cross-entropy's, with larger margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.official_test import official_test, small_cnn
from probatum.claims.tools import accuracy, fit, interval, margins, mean
from probatum.data.open import open_dataset
from probatum.measure.calibration import calibration
from probatum.recipe import Training
from probatum.spec import Data, Spec
from probatum.train.loop import outputs

DRAWS = 4
"""Splits of digits a seed, whose test rows are few."""
ROWS, VALID = 10_000, 2000
WORSE, WIDER = 0.005, 1.2
"""What accuracy may lose (a share), and how many times cross-entropy's margin is asked for."""
ARMS = {"cross_entropy": None, "again": None, "encouraging": "encouraging-loss"}
NOTE = (
    "Every arm has the same settings, fixed before the first run. Calibration is reported, not claimed: the bonus makes "
    "outputs more confident. The null is cross-entropy trained once more from another seed."
)


def _mlp(spec: Spec) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, spec.outputs)
    )


def _row(
    name: str, data: Data, seed: int, training: Training, factory: Callable[[Spec], nn.Module], arms: Sequence[str]
) -> dict[str, float | str]:
    """Accuracy, mean margin and calibration error on the test rows, of every arm."""
    row: dict[str, float | str] = {"data": name, "seed": float(seed)}
    for arm in arms:
        own = seed + 1000 if arm == "again" else seed
        model = fit(ARMS[arm], data, own, training=training, factory=factory).model
        logits = outputs(model, data.test.x)
        row[f"{arm}_accuracy"] = accuracy(model, data.test)
        row[f"{arm}_margin"] = float(margins(logits, data.test.y).mean())
        row[f"{arm}_ece"] = calibration(logits.softmax(dim=1), data.test.y)["ece"]
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    digits = open_dataset("digits")
    rows: list[dict[str, float | str]] = []
    for seed in seeds:
        for draw in range(DRAWS):
            own = DRAWS * seed + draw
            rows.append(_row("digits", digits.prepare(own), own, Training(epochs=20), _mlp, tuple(ARMS)))
        training = Training(epochs=10, lr=4e-3)
        data = official_test("fashion_mnist", ROWS, VALID, seed)
        rows.append(_row("fashion", data, seed, training, small_cnn, ("cross_entropy", "encouraging")))
    measured: dict[str, float] = {}
    good = []
    for name in ("digits", "fashion"):
        own = [{key: value for key, value in row.items() if key != "data"} for row in rows if row["data"] == name]
        columns = {key: [float(row[key]) for row in own] for key in own[0] if key != "seed"}
        measured |= {f"{name}_{key}": mean(values) for key, values in columns.items()}
        gain = interval(_less(columns["encouraging_accuracy"], columns["cross_entropy_accuracy"]))
        ratio = interval(_over(columns["encouraging_margin"], columns["cross_entropy_margin"]))
        measured |= gain.told(f"{name}_accuracy_gain") | ratio.told(f"{name}_margin_ratio")
        good.append(gain.low >= -WORSE and ratio.low >= WIDER)
        if name == "digits":
            null = interval(_over(columns["again_margin"], columns["cross_entropy_margin"]))
            measured |= null.told("digits_margin_ratio_of_cross_entropy_to_itself")
    controls = {"cross-entropy of another seed has no wider margin": null.high < WIDER}
    return Evidence(all(good), measured, tuple(rows), NOTE, controls)


def _less(ours: list[float], theirs: list[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _over(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


CLAIMS = (
    Claim(
        id="accuracy-and-margin",
        says="Rewarding well-classified examples keeps accuracy and enlarges margins.",
        threshold="on both sets, by 90 % intervals of paired means: accuracy at most 0.5 points below cross-entropy's (lower end), "
        "and mean test margin at least 1.2 times as large (lower end)",
        data="digits (MLP, four splits a seed) and Fashion-MNIST (small CNN, 10,000 training rows, its own 10,000 test rows)",
        run=_run,
        minutes=4.0,
        needs_library=True,
        seeds=tuple(range(201, 206)),
    ),
)
