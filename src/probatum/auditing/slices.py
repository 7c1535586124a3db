"""Groups of rows that fare worse: those asked for, and those found among columns and classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import polars as pl
from scipy.stats import binom, hypergeom, ttest_ind

from probatum.auditing.case import Case
from probatum.auditing.finding import FAULT, PASS, Finding, not_measurable
from probatum.auditing.rows import how
from probatum.errors import InputError
from probatum.measure.groups import group_accuracy, wilson

SMALLEST = 20
"""Rows that a group must have to be judged."""
PAIRED = 0.01
"""Level at which plain models must do better within a slice."""
MOST_LEVELS = 20
MOST_COLUMNS = 64
QUANTILES = 4
SHOWN = 12


def groups(case: Case) -> Finding | None:
    """Accuracy of the groups of the columns asked for, worst first; None where none was asked for."""
    if not case.groups:
        return None
    if case.task != "classes":
        return not_measurable("groups", "accuracies of groups need classes; worse slices are looked for below")
    if case.rows.columns is None:
        raise InputError("groups name columns, but these data have none; give a table")
    missing = [name for name in case.groups if name not in case.rows.columns.columns]
    if missing:
        known = ", ".join(case.rows.columns.columns[:10])
        raise InputError(f"group column {missing[0]!r} is not in the data; they have {known}")
    levels = [_levels(case.rows.columns[name], name) for name in case.groups]
    for name, level in zip(case.groups, levels, strict=True):
        if not level:
            raise InputError(
                f"group column {name!r} holds dates or more than {MOST_LEVELS} words; give a column of few groups, or make one"
            )
    names = [" and ".join(parts) for parts in zip(*levels, strict=True)]
    found = group_accuracy(case.right, names)
    enough = [group for group in found.found if group.rows >= SMALLEST]
    if len(enough) < 2:
        return not_measurable("groups", f"fewer than two groups have {SMALLEST} rows")
    worst = min(enough, key=lambda group: group.accuracy)
    total = float(case.right.mean())
    m = len(enough)
    p = min(1.0, m * _worse(case.right, np.asarray(names) == worst.name))
    bad = p < case.limits.level and worst.high < total - case.limits.group
    table = tuple(
        {
            "group": group.name,
            "rows": group.rows,
            "accuracy": f"{group.accuracy:.3f}",
            "interval": f"[{group.low:.3f}, {group.high:.3f}]",
        }
        for group in sorted(found.found, key=lambda group: group.accuracy)[:SHOWN]
    )
    return Finding(
        "groups",
        FAULT if bad else PASS,
        f"worst: {worst.name}, {worst.accuracy:.3f} [{worst.low:.3f}, {worst.high:.3f}]",
        f"upper end < {total:.3f} - {case.limits.group:g} and adjusted p < {case.limits.level:g}",
        f"Of {m} groups of {SMALLEST} rows or more; mean of groups {found.mean:.3f}, all rows {total:.3f}.",
        ("weak-group",) if bad else (),
        {
            "worst": worst.name,
            "accuracy": worst.accuracy,
            "interval": [worst.low, worst.high],
            "p": p,
            "mean": found.mean,
        },
        table,
    )


def slices(case: Case) -> Finding:
    """Slices that fare worse than the rest: of one column, of a class, of an answer, and of a class within a column.

    Every slice of 20 rows or more is tested one-sided against the rest (classes: exact, hypergeometric; reals: Welch) and
    Holm's correction is over all of them. Some slices are hard for any model, such as rows of one class that look like
    another. So a slice is a fault only if plain models of the other audited rows do better there, and, where the slice is
    of one class, also among all rows that share its other traits (McNemar, exact).
    """
    n = len(case.rows)
    if n < 2 * SMALLEST:
        return not_measurable("weak slices", f"{n} rows are too few; {2 * SMALLEST} or more are needed")
    masks = {name: found for name, found in _masks(case).items() if SMALLEST <= found[0].sum() <= n - SMALLEST}
    if not masks:
        return not_measurable("weak slices", f"no slice has {SMALLEST} rows")
    return (
        _of_classes(case, masks)
        if case.task == "classes"
        else _of_reals(case, {name: mask for name, (mask, _) in masks.items()})
    )


def _of_classes(case: Case, masks: dict[str, tuple[np.ndarray, np.ndarray]]) -> Finding:
    others = None if case.others is None else (case.others.argmax(axis=1) == case.y)
    adjusted = holm({name: _worse(case.right, mask) for name, (mask, _) in masks.items()})
    total, limits = float(case.right.mean()), case.limits
    found = []
    for name, (mask, around) in masks.items():
        size, hits = int(mask.sum()), int(case.right[mask].sum())
        low, high = wilson(hits, size)
        weak = high < total - limits.group and adjusted[name] < limits.level
        better = max(_others_better(case, others, mask), _others_better(case, others, around))
        row = {
            "slice": name,
            "rows": str(size),
            "accuracy": f"{hits / size:.3f} [{low:.3f}, {high:.3f}]",
            "plain models": "" if others is None else f"{others[mask].mean():.3f}",
            "adjusted p": f"{adjusted[name]:.3g}",
            "": ("worse" if better < PAIRED else "hard for all") if weak else "",
        }
        found.append((not (weak and better < PAIRED), adjusted[name], hits / size, row))
    return _finding(
        found,
        "accuracy",
        f"upper end < {total:.3f} - {limits.group:g}, adjusted p < {limits.level:g}, and plain models do better there",
        f"All rows: {total:.3f}.",
        total,
    )


def _of_reals(case: Case, masks: dict[str, np.ndarray]) -> Finding:
    loss = np.abs(case.output - case.y).mean(axis=1)
    adjusted = holm({name: _larger(loss, mask) for name, mask in masks.items()})
    total, factor = float(loss.mean()), 1 + 10 * case.limits.group
    found = []
    for name, mask in masks.items():
        mean, half = float(loss[mask].mean()), 1.96 * float(loss[mask].std()) / float(mask.sum()) ** 0.5
        weak = mean - half > total * factor and adjusted[name] < case.limits.level
        row = {
            "slice": name,
            "rows": str(int(mask.sum())),
            "mean error": f"{mean:.3g} [{mean - half:.3g}, {mean + half:.3g}]",
            "adjusted p": f"{adjusted[name]:.3g}",
            "": "worse" if weak else "",
        }
        found.append((not weak, adjusted[name], -mean, row))
    return _finding(
        found,
        "mean error",
        f"lower end > {factor:g} x {total:.3g}, adjusted p < {case.limits.level:g}",
        f"Mean absolute error of all rows: {total:.3g}.",
        total,
    )


def _finding(
    found: list[tuple[bool, float, float, dict[str, str]]], measured: str, limit: str, about: str, total: float
) -> Finding:
    """What slices (not faulty, adjusted p, rank, row of the table) come to, the worst one first."""
    found.sort(key=lambda item: item[:3])
    faulty = [row for passed, _, _, row in found if not passed]
    first = found[0][3]
    return Finding(
        "weak slices",
        FAULT if faulty else PASS,
        f"{len(faulty)} of {len(found)} slices; worst: {first['slice']}: {first[measured]}",
        limit,
        f"{about} Slices of fewer than {SMALLEST} rows were left out.",
        ("weak-group",) if faulty else (),
        {"slices": len(found), "faulty": [row["slice"] for row in faulty], "all": total},
        tuple(row for _, _, _, row in found[:SHOWN]),
    )


def _others_better(case: Case, others: np.ndarray | None, mask: np.ndarray) -> float:
    """One-sided exact McNemar p that others are right more often on these rows; 1 where there are no others."""
    if others is None:
        return 1.0
    right = case.right == 1
    gained, lost = int((others & ~right & mask).sum()), int((right & ~others & mask).sum())
    return float(binom.sf(gained - 1, gained + lost, 0.5)) if gained else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment of p-values by name."""
    found, largest = {}, 0.0
    for i, name in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        found[name] = largest
    return found


def _worse(right: np.ndarray, mask: np.ndarray) -> float:
    """Chance of as many errors in the slice or more, were errors spread at random."""
    errors, size = int((right == 0).sum()), int(mask.sum())
    return float(hypergeom.sf(int((right[mask] == 0).sum()) - 1, len(right), errors, size))


def _larger(loss: np.ndarray, mask: np.ndarray) -> float:
    return float(ttest_ind(loss[mask], loss[~mask], equal_var=False, alternative="greater").pvalue)


def _masks(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> rows of the slice, and the rows among which a model could tell them by x: favouring one class is no skill."""
    classes = case.rows.spec.classes
    whole = np.ones(len(case.rows), dtype=bool)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if case.task == "classes":
        for k in np.unique(case.y):
            found[f"class {classes[k]}"] = (case.y == k, whole)
        for k in np.unique(case.guess):
            found[f"answer {classes[k]}"] = (case.guess == k, case.guess == k)
    for levels in _columns(case):
        for level in np.unique(levels):
            here = levels == level
            found[str(level)] = (here, here)
            if case.task == "classes":
                for k in np.unique(case.y):
                    found[f"{level}, class {classes[k]}"] = (here & (case.y == k), here)
    return found


def _columns(case: Case) -> list[np.ndarray]:
    """Arrays (n,) of level names: of the data's columns, or of simple facts of images, series and texts."""
    rows, spec = case.rows, case.rows.spec
    x = rows.part.x
    if how(spec).COLUMNS:
        frame = rows.columns
        if frame is None:
            frame = pl.DataFrame({spec.features[i]: x[:, i].numpy() for i in range(x.shape[1])})
        named = [_levels(frame[name], name) for name in frame.columns[:MOST_COLUMNS]]
    else:
        named = [_levels(pl.Series(name, value.numpy()), name) for name, value in how(spec).facts(x, spec).items()]
    return [np.asarray(levels) for levels in named if levels and len(set(levels)) > 1]


def _levels(series: pl.Series, name: str) -> list[str]:
    """Name of each row's level: words and few numbers as they are, many numbers by quarters; [] for ids and free texts."""
    distinct = series.drop_nulls().n_unique()
    if series.dtype.is_numeric() and distinct > MOST_LEVELS // 2:
        values = series.cast(pl.Float64).to_numpy()
        inner = np.unique(np.nanquantile(values, np.linspace(0, 1, QUANTILES + 1)))
        place = np.clip(np.searchsorted(inner[1:-1], values, side="right"), 0, len(inner) - 2)
        words = [f"{name} {a:.4g} to {b:.4g}" for a, b in itertools.pairwise(inner)] or [f"{name} {inner[0]:.4g}"]
        return [f"{name} missing" if value != value else words[at] for value, at in zip(values, place, strict=True)]
    if distinct > MOST_LEVELS or series.dtype.is_temporal():
        return []
    told = [f"{value:g}" if isinstance(value, float) else str(value) for value in series.to_list()]
    return [f"{name} = {value}" if value != "None" else f"{name} missing" for value in told]
