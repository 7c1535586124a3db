"""Two looks at some thousand rows by scikit-learn's classifiers: labels that others contradict, rows that drift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from probatum.auditing.case import FOLDS, both_out_of_fold, input_features
from probatum.auditing.label_noise import altered
from probatum.auditing.labels import contradictions
from probatum.auditing.rows import Rows
from probatum.auditing.shift import two_sample
from probatum.data.pipeline import fit_pipeline
from probatum.data.split import TEST
from probatum.measure.groups import wilson

MOST = 2000
"""Rows that a look takes; drawn by the seed where there are more."""
FEW = 100
"""Rows below which nothing is said."""
FEW_OF_EACH = 40
"""The same for each of two sets that are compared."""
SUSPICIOUS = 0.05
"""Share beyond which wrong labels are material, as an audit has it by default (`probatum.auditing.finding.Limits`)."""


class Suspicion(NamedTuple):
    """Labels that models of other rows contradict.

    Attributes:
        share: of the rows that those models are surest of.
        low, high: its 95 % interval (Wilson).
        wrong: how many of those rows are contradicted.
        of: how many of those rows there are.
        altered, altered_low, altered_high: share of all labels that seem wrong, with its 95 % interval
            (`probatum.auditing.label_noise.altered`).
        told: whether overlap that fades away from the classes' borders does not explain it.
        matters: whether wrong labels are a fault here (`probatum.auditing.label_noise.Altered.matters`).
        rows: how many rows were looked at.
    """

    share: float
    low: float
    high: float
    wrong: int
    of: int
    altered: float
    altered_low: float
    altered_high: float
    told: bool
    matters: bool
    rows: int


class Drift(NamedTuple):
    """How well later rows are told from earlier ones.

    Attributes:
        auc: 0.5 = not at all, 1 = always.
        p: chance of as much without any difference.
        by: what orders the rows: "time", "split" (given test rows against the others) or "order" (as they stand).
        rows: how many rows were looked at.
    """

    auc: float
    p: float
    by: str
    rows: int


def suspicious_labels(dataset: Any, candidates: np.ndarray, seed: int = 0) -> Suspicion | str:
    """How many labels are contradicted among the surest rows, out of five folds, and how many seem wrong; or why not.

    Confident learning's idea (Northcutt et al. 2021, arXiv:1911.00068), asked only where models of the other rows are
    surest: `probatum.auditing.labels.contradictions`. Where classes overlap, sure models are contradicted as well; whether
    that is all, is told by `probatum.auditing.label_noise.altered`.

    Args:
        dataset: of classes, in memory.
        candidates: numbers of the rows that may be looked at: one of each set of equal rows.
        seed: of the draw and the folds.
    """
    rng = np.random.default_rng((seed, 1))
    rows = np.sort(rng.permutation(candidates)[:MOST])
    labels = dataset.targets.values[rows]
    frequent = np.flatnonzero(np.bincount(labels, minlength=len(dataset.classes)) >= FOLDS)
    rows = rows[np.isin(labels, frequent)]
    if len(rows) < FEW or len(frequent) < 2:
        return f"labels were not looked at: {len(rows)} distinct rows of frequent classes are too few ({FEW} or more)"
    found = encoded(dataset, rows)
    each = both_out_of_fold(found, seed)
    both = each.mean(axis=0)
    sure, against = contradictions(both, found.part.y.numpy())
    wrong, of = int(against.sum()), len(sure)
    noise = altered(each, found.part.y.numpy())
    low, high = wilson(wrong, of)
    bad = noise.matters(low, SUSPICIOUS)
    return Suspicion(wrong / of, low, high, wrong, of, noise.share, noise.low, noise.high, noise.told, bad, len(rows))


def drift(dataset: Any, time: str | None, seed: int = 0) -> Drift | str:
    """Classifier two-sample test of the later half of the rows against the earlier one; or why that cannot be told.

    By the time column where the data are split by one, by the given split where there is one, else by the order in which
    the rows stand. Lopez-Paz and Oquab 2017 (arXiv:1610.06545): `probatum.auditing.shift.two_sample`.
    """
    plan, rng = dataset.plan, np.random.default_rng((seed, 2))
    if plan.moment is not None:
        by, order = "time", np.argsort(plan.moment, kind="stable")
        old, new = order[: len(order) // 2], order[len(order) // 2 :]
    elif plan.given is not None:
        by, old, new = "split", np.flatnonzero(plan.given != TEST), np.flatnonzero(plan.given == TEST)
    else:
        by, old, new = "order", np.arange(dataset.n // 2), np.arange(dataset.n // 2, dataset.n)
    old, new = (np.sort(rng.permutation(side)[: MOST // 2]) for side in (old, new))
    if min(len(old), len(new)) < FEW_OF_EACH:
        return f"drift was not looked at: {len(old)} and {len(new)} rows are too few ({FEW_OF_EACH} or more of each)"
    both = encoded(dataset, np.concatenate([old, new]))
    if time is not None:
        both = replace(both, part=replace(both.part, x=_without(both.part.x, both.spec.features, time)))
    sides = (both.take(np.arange(len(old))), both.take(np.arange(len(old), len(both))))
    before, now = input_features(*sides)
    auc, p, _, _ = two_sample(before, now, rng)
    return Drift(auc, p, by, len(both))


def encoded(dataset: Any, rows: np.ndarray) -> Rows:
    """These rows encoded by a pipeline fitted on them."""
    pipeline = fit_pipeline(dataset.kind, dataset.raw, dataset.targets, rows)
    raw = dataset.raw.take(rows)
    part = dataset.with_targets(pipeline, rows, pipeline.encode(raw), getattr(raw, "texts", None))
    return Rows(pipeline.spec, part)


def _without(x: Tensor, features: tuple[str, ...], name: str) -> Tensor:
    """Rows with what one column became held at 0."""
    held = [i for i, feature in enumerate(features) if feature == name or feature.startswith(f"{name} ")]
    x = x.clone()
    x[:, held] = 0
    return x
