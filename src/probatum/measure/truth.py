"""What only a world of known truth lets one measure: worst groups, the other side of a shift, rows from outside, known
probabilities, and wrong labels learnt by heart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probatum.measure.base import Measure
from probatum.measure.groups import group_accuracy
from probatum.measure.outside import auroc, fpr_at
from probatum.spec import Part

if TYPE_CHECKING:
    from probatum.spec import Truth

    Predict = Callable[[Part], Tensor]

CLASSES = ("classes",)
FEWEST = 5
"""Rows of a group below which it is not called the worst, where a larger one is there."""

MOST = 5000
"""Wrongly labelled training rows that are predicted to see how many were learnt by heart."""

MEASURES = (
    Measure(
        "worst-group-accuracy",
        "robustness",
        True,
        0.02,
        tasks=CLASSES,
        about="accuracy of the worst group of test and shifted rows with 5 rows or more",
    ),
    Measure("shifted-accuracy", "robustness", True, 0.01, tasks=CLASSES, about="accuracy on the world's shifted rows"),
    Measure(
        "shifted-rmse",
        "robustness",
        False,
        math.log(1.05),
        kind="ratio",
        tasks=("reals",),
        about="root mean squared error on the world's shifted rows, standardised targets",
    ),
    Measure(
        "ood-auroc",
        "detection",
        True,
        0.01,
        tasks=CLASSES,
        about="chance that a test row has a larger highest probability than a row from outside",
    ),
    Measure(
        "ood-fpr95",
        "detection",
        False,
        0.02,
        tasks=CLASSES,
        about="share of rows from outside kept where the highest probability keeps 95 % of the test rows",
    ),
    Measure(
        "probability-mse",
        "calibration",
        False,
        0.002,
        tasks=CLASSES,
        about="squared distance of predicted and true probabilities, summed over classes, mean over test rows",
    ),
    Measure(
        "probability-kl",
        "calibration",
        False,
        0.01,
        tasks=CLASSES,
        about="Kullback-Leibler divergence of predicted from true probabilities in nats, mean over test rows",
    ),
    Measure(
        "memorised",
        "robustness",
        False,
        0.02,
        tasks=CLASSES,
        about="share of the wrong training labels that the model gives back",
    ),
)


def measures_of(truth: Truth | None, task: str) -> tuple[str, ...]:
    """Names of the measures that a truth allows."""
    if truth is None or task not in ("classes", "reals"):
        return ()
    if task == "reals":
        return ("shifted-rmse",) if truth.shifted is not None else ()
    found: list[str] = []
    if truth.groups is not None:
        found.append("worst-group-accuracy")
    if truth.shifted is not None:
        found.append("shifted-accuracy")
    if truth.outside is not None:
        found += ["ood-auroc", "ood-fpr95"]
    if truth.probabilities is not None:
        found += ["probability-mse", "probability-kl"]
    if truth.clean_train is not None:
        found.append("memorised")
    return tuple(found)


def truth_measures(
    predict: Predict, output: Tensor, test: Part, train: Part, truth: Truth, task: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the measures that the truth allows, and details for the report (JSON values).

    Args:
        predict: part -> probabilities (n, classes), or standardised values.
        output: what it gave for the test rows.
        test: the test rows.
        train: the training rows, with the labels that were trained on.
        truth: of the world.
        task: classes or reals.

    Raises:
        ValueError: predictions that are not finite.
    """
    found: dict[str, float] = {}
    details: dict[str, Any] = {"world": truth.world, "counts": dict(truth.counts)}
    shifted = None if truth.shifted is None else _finite(predict(truth.shifted), "shifted rows")
    if task == "reals":
        if shifted is not None and truth.shifted is not None:
            error = (shifted.double() - truth.shifted.y.double()).square().mean(dim=0).sqrt().mean()
            found["shifted-rmse"] = float(error)
        return found, details
    right = output.argmax(dim=1) == test.y
    away = None
    if shifted is not None and truth.shifted is not None:
        away = shifted.argmax(dim=1) == truth.shifted.y
        found["shifted-accuracy"] = float(away.double().mean())
    if truth.groups is not None:
        rights, groups = [right], [truth.groups]
        if away is not None and truth.shifted_groups is not None:
            rights.append(away)
            groups.append(truth.shifted_groups)
        found["worst-group-accuracy"], details["groups"] = worst_group(torch.cat(rights), torch.cat(groups))
    if truth.outside is not None:
        inside = output.amax(dim=1)
        outside = _finite(predict(truth.outside), "rows from outside").amax(dim=1)
        found["ood-auroc"], found["ood-fpr95"] = auroc(inside, outside), fpr_at(inside, outside, 0.95)
    if truth.probabilities is not None:
        found |= distance_to(output, truth.probabilities)
    if truth.clean_train is not None:
        wrong = (train.y != truth.clean_train).nonzero()[:, 0][:MOST]
        if len(wrong):
            text = None if train.text is None else tuple(train.text[i] for i in wrong.tolist())
            rows = Part(train.x[wrong], train.y[wrong], train.rows[wrong], text)
            given = _finite(predict(rows), "training rows").argmax(dim=1)
            found["memorised"] = float((given == rows.y).double().mean())
            details["training rows corrected"] = float((given == truth.clean_train[wrong]).double().mean())
    return found, details


def worst_group(right: Tensor, groups: Tensor) -> tuple[float, list[dict[str, float | str]]]:
    """Return the accuracy of the worst group with `FEWEST` rows or more (of all, where none has), and every group's.

    Args:
        right: (n,) bool.
        groups: (n,) int64.
    """
    known = group_accuracy(right.numpy(), groups.numpy()).found
    large = [group for group in known if group.rows >= FEWEST] or list(known)
    rows: list[dict[str, float | str]] = [
        {"group": g.name, "rows": g.rows, "accuracy": g.accuracy, "low": g.low, "high": g.high} for g in known
    ]
    return min(group.accuracy for group in large), rows


def distance_to(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Return ``probability-mse`` and ``probability-kl`` = E sum_k p*_k log(p*_k / p_k) of (n, classes) probabilities.

    Predicted probabilities are taken as at least 1e-12.
    """
    p, q = predicted.double().cpu(), true.double().cpu()
    logs = torch.special.entr(q).neg() - q * p.clamp_min(1e-12).log()
    return {
        "probability-mse": float((p - q).square().sum(dim=1).mean()),
        "probability-kl": float(logs.sum(dim=1).mean()),
    }


def _finite(output: Tensor, what: str) -> Tensor:
    if not torch.isfinite(output).all():
        raise ValueError(f"predictions on the {what} are not finite")
    return output.detach().cpu()
