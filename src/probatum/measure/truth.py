"""What only a world of known truth lets one measure: worst groups, the other side of a shift, rows from outside, known
probabilities, and wrong labels learnt by heart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probatum.measure.base import Measure
from probatum.measure.groups import group_accuracy
from probatum.measure.outside import auroc, fpr_at
from probatum.measure.row_values import root_mean_square
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
) -> tuple[dict[str, float], dict[str, Any], dict[str, np.ndarray]]:
    """Return the measures that the truth allows, details for the report (JSON values), and values of the test rows.

    Values (`probatum.measure.row_values`) are there where test rows alone make the measure: as they are, or turned round in a
    world (`_own`).

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
    rows: dict[str, np.ndarray] = {}
    shifted = None if truth.shifted is None else _finite(predict(truth.shifted), "shifted rows")
    own = None if truth.shifted is None else _own(truth.shifted, test)
    if task == "reals":
        if shifted is not None and truth.shifted is not None:
            off = shifted.double() - truth.shifted.y.double()
            found["shifted-rmse"] = float(off.square().mean(dim=0).sqrt().mean())
            if own is not None:
                rows["shifted-rmse"] = _laid(root_mean_square(off.numpy()), own, len(test))
        return found, details, rows
    right = output.argmax(dim=1) == test.y
    away = None
    if shifted is not None and truth.shifted is not None:
        away = shifted.argmax(dim=1) == truth.shifted.y
        found["shifted-accuracy"] = float(away.double().mean())
        if own is not None:
            rows["shifted-accuracy"] = _laid(away.double().numpy(), own, len(test))
    if truth.groups is not None:
        rights, groups = right, truth.groups
        places: np.ndarray | None = np.arange(len(test))
        if away is not None and truth.shifted_groups is not None:
            rights, groups = torch.cat([right, away]), torch.cat([groups, truth.shifted_groups])
            places = None if own is None else np.append(np.arange(len(test)), own)
        found["worst-group-accuracy"], details["groups"] = worst_group(rights, groups)
        if places is not None:
            rows["worst-group-accuracy"] = worst_group_rows(rights, groups, places, len(test))
    if truth.outside is not None:
        inside = output.amax(dim=1)
        outside = _finite(predict(truth.outside), "rows from outside").amax(dim=1)
        found["ood-auroc"], found["ood-fpr95"] = auroc(inside, outside), fpr_at(inside, outside, 0.95)
    if truth.probabilities is not None:
        each = distances_to(output, truth.probabilities)
        found |= {name: float(values.mean()) for name, values in each.items()}
        rows |= {name: values.numpy() for name, values in each.items()}
    if truth.clean_train is not None:
        wrong = (train.y != truth.clean_train).nonzero()[:, 0][:MOST]
        if len(wrong):
            text = None if train.text is None else tuple(train.text[i] for i in wrong.tolist())
            learnt = Part(train.x[wrong], train.y[wrong], train.rows[wrong], text)
            given = _finite(predict(learnt), "training rows").argmax(dim=1)
            found["memorised"] = float((given == learnt.y).double().mean())
            details["training rows corrected"] = float((given == truth.clean_train[wrong]).double().mean())
    return found, details, rows


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


def worst_group_rows(right: Tensor, groups: Tensor, places: np.ndarray, n: int) -> np.ndarray:
    """Return the values (n,) of the test rows for the accuracy of `worst_group`; of equal groups the first one's.

    Args:
        right: (m,) bool.
        groups: (m,) int64.
        places: (m,) which test row each answer is of; several may be of one.
        n: test rows.
    """
    worst, known = worst_group(right, groups)
    large = [group for group in known if group["rows"] >= FEWEST] or known  # type: ignore[operator]
    name = next(group["group"] for group in large if group["accuracy"] == worst)
    its = (groups == int(name)).numpy()
    off = (right.double().numpy() - worst) * its
    return worst + n / its.sum() * np.bincount(places, weights=off, minlength=n)


def distances_to(predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Return each row's ``probability-mse`` and ``probability-kl`` = sum_k p*_k log(p*_k / p_k) of (n, classes) probabilities.

    Predicted probabilities are taken as at least 1e-12.
    """
    p, q = predicted.double().cpu(), true.double().cpu()
    logs = torch.special.entr(q).neg() - q * p.clamp_min(1e-12).log()
    return {
        "probability-mse": (p - q).square().sum(dim=1),
        "probability-kl": logs.sum(dim=1),
    }


def _own(shifted: Part, test: Part) -> np.ndarray | None:
    """Which test row each shifted row is, turned round or left out; None where any is of others."""
    there, asked = test.rows.numpy(), shifted.rows.numpy()
    order = np.argsort(there, kind="stable")
    at = order[np.minimum(np.searchsorted(there, asked, sorter=order), len(there) - 1)]
    alone = len(np.unique(there)) == len(there) and len(np.unique(asked)) == len(asked)
    return at if alone and np.array_equal(there[at], asked) else None


def _laid(values: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """The values at their places among n rows, NaN elsewhere."""
    found = np.full(n, np.nan)
    found[places] = values
    return found


def _finite(output: Tensor, what: str) -> Tensor:
    if not torch.isfinite(output).all():
        raise ValueError(f"predictions on the {what} are not finite")
    return output.detach().cpu()
