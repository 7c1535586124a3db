"""Pairing: the trials of an arm and of the baseline, seed by seed, as differences that the statistics take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probatum.bench.packed_rows import UnitRows
from probatum.bench.records import STATUSES
from probatum.bench.two_way import FEW_UNITS, Trial
from probatum.measure.base import Measure

COSTS = frozenset({"size", "speed"})
"""Axes of what is counted of a network or timed: equal numbers are certain, and its tests are no part of the others' family."""
OF_CLASSES = frozenset({"balanced-accuracy", "macro-f1"})
"""Measures that are made of right and wrong answers, averaged over classes."""


@dataclass(frozen=True)
class Pairs:
    """One arm against the baseline on one measure.

    Attributes:
        arm: its name.
        seeds: those on which both have a value.
        baseline: the baseline's values by paired seed.
        values: the arm's.
        delta: paired differences, positive = better; of logs for ratio measures.
        trials: the same with the test rows they rest on; None where rows of a seed are missing.
        identical: whether all results are equal bit for bit.
        lost: why the other seeds are lost, whoever failed.
        own: why, where the arm itself failed.
        baseline_lost: seeds on which the baseline alone failed.
        own_lost: seeds on which the arm alone failed.
        swapped: whether validation rows count too, tested by the weights that test rows chose, on every seed of both.
        lacking: seeds that both finished and on which the baseline alone has the measure.
        baseline_lacking: seeds that both finished and on which the arm alone has it.
    """

    arm: str
    seeds: tuple[int, ...]
    baseline: tuple[float, ...]
    values: tuple[float, ...]
    delta: tuple[float, ...]
    trials: tuple[Trial, ...] | None
    identical: bool
    lost: tuple[str, ...]
    own: tuple[str, ...]
    baseline_lost: int
    own_lost: int
    swapped: bool = False
    lacking: int = 0
    baseline_lacking: int = 0

    def first(self, seeds: Sequence[int]) -> Pairs:
        """The same of these seeds alone; what was lost is left out."""
        kept = [k for k, seed in enumerate(self.seeds) if seed in set(seeds)]

        def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[k] for k in kept)

        trials = None if self.trials is None else some(self.trials)
        return Pairs(
            self.arm, some(self.seeds), some(self.baseline), some(self.values), some(self.delta), trials,
            self.identical, (), (), 0, 0, self.swapped,
        )  # fmt: skip


def by_arm(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Records by arm and seed.

    Raises:
        ValueError: for two records of one arm and seed, or an unknown status.
    """
    arms: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        arm, seed, status = record["arm"], record["seed"], record["status"]
        if status not in STATUSES:
            raise ValueError(f"arm {arm!r}, seed {seed}: status is {status!r}; use ok, failed or not applicable")
        if seed in arms.setdefault(arm, {}):
            raise ValueError(f"arm {arm!r} has two records for seed {seed}; give one per arm and seed")
        arms[arm][seed] = record
    return arms


def pair(
    arm: str, base: Mapping[int, Mapping[str, Any]], mine: Mapping[int, Mapping[str, Any]], measure: Measure
) -> Pairs:
    """The arm's records beside the baseline's, by seed; with validation rows where all of these have tested them."""
    name = measure.name
    seeds, same, lost, own = [], [], [], []
    baseline_lost = own_lost = 0
    lacking = [0, 0]
    for seed in sorted(set(base) & set(mine)):
        theirs, its = _problem(base[seed], name, "the baseline: "), _problem(mine[seed], name, "")
        if its:
            own.append(f"seed {seed}: {its}")
        if theirs or its:
            lost.append(f"seed {seed}: {theirs or its}")
            own_lost += not theirs
            baseline_lost += not its
            continue
        has = [name in record[seed]["measures"] for record in (base, mine)]
        lacking[0] += has == [True, False]
        lacking[1] += has == [False, True]
        if all(has):
            seeds.append(seed)
            digests = base[seed].get("digest"), mine[seed].get("digest")
            same.append(bool(digests[0]) and digests[0] == digests[1])
    records = [(base[seed], mine[seed]) for seed in seeds]
    swapped = all(tests_both(record, measure) for pair in records for record in pair)
    found = _paired(records, measure, swapped)
    if swapped and found[2] is None:  # not the same validation rows for both
        swapped, found = False, _paired(records, measure, False)
    left, right, trials = found
    return Pairs(
        arm,
        tuple(seeds),
        tuple(left),
        tuple(right),
        tuple(differences(left, right, measure)),
        trials,
        bool(same) and all(same),
        tuple(lost),
        tuple(own),
        baseline_lost,
        own_lost,
        swapped and bool(seeds),
        *lacking,
    )


def no_ratio(base: Mapping[int, Mapping[str, Any]], mine: Mapping[int, Mapping[str, Any]], measure: Measure) -> str:
    """Why an arm cannot be compared by ratio, where one of its or the baseline's values is not positive; else ""."""
    name = measure.name
    for seed in sorted(set(base) & set(mine)) if measure.kind == "ratio" else ():
        both = (base[seed], mine[seed])
        if any(name not in record["measures"] or _problem(record, name, "") for record in both):
            continue
        for record, whose in zip(both, ("the baseline: ", ""), strict=True):
            if record["measures"][name] <= 0:
                return f"{whose}{name} is {record['measures'][name]:g} on seed {seed}; a ratio needs positive numbers"
    return ""


def value_of(record: Mapping[str, Any], name: str, swapped: bool) -> float:
    """A trial's measure: of its test rows, or of these and its validation rows together, each half by its rows."""
    value = float(record["measures"][name])
    if not swapped:
        return value
    rows = record["rows"]
    tested, others = float(rows.counts[name].sum()), float(rows.swapped.counts[name].sum())
    return (tested * value + others * float(record["swapped"][name])) / (tested + others)


def tests_both(record: Mapping[str, Any], measure: Measure) -> bool:
    """Whether a trial has this measure of its validation rows too."""
    name, rows = measure.name, record.get("rows")
    value = (record.get("swapped") or {}).get(name, math.nan)
    if rows is None or rows.swapped is None or not math.isfinite(value) or (measure.kind == "ratio" and value <= 0):
        return False
    return name in rows.deviations and name in rows.swapped.deviations


def _paired(
    records: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], measure: Measure, swapped: bool
) -> tuple[list[float], list[float], tuple[Trial, ...] | None]:
    """The values of baseline and arm by seed, and their differences with the rows, None where rows of a seed are missing."""
    left, right = ([value_of(pair[k], measure.name, swapped) for pair in records] for k in (0, 1))
    trials = []
    for (base, mine), theirs, its in zip(records, left, right, strict=True):
        trial = _trial(measure, theirs, its, _rows(base, swapped), _rows(mine, swapped))
        if trial is None:
            return left, right, None
        size = _of_a_row_of_classes(measure, base)
        if size is not None:
            trial = replace(trial, discordant=size)
        trials.append(_from_one_mean(trial, measure, (base, theirs), (mine, its)) if swapped else trial)
    return left, right, tuple(trials) or None


def _from_one_mean(
    trial: Trial, measure: Measure, base: tuple[Mapping[str, Any], float], mine: tuple[Mapping[str, Any], float]
) -> Trial:
    """Deviations from the mean of both halves where a half has few units: of its own mean a single one would have none.

    Otherwise each half has its own, since how many rows it has is given, not drawn. `base` and `mine`: the record, and the
    measure of both halves.
    """
    name, rows = measure.name, base[0]["rows"]
    halves = [half.counts[name] > 0 for half in (rows, rows.swapped)]  # many units are hashed: one may lie in both
    if min(map(np.sum, halves)) >= FEW_UNITS:
        return trial
    moved = trial.deviations.copy()
    for half, has, values in ((rows, halves[0], "measures"), (rows.swapped, halves[1], "swapped")):
        apart = [float(record[values][name]) - whole for record, whole in (base, mine)]
        if measure.kind == "ratio":  # as the rows' own deviations
            apart = [one / whole for one, (_, whole) in zip(apart, (base, mine), strict=True)]
        shift = (1.0 if measure.higher_is_better else -1.0) * (apart[1] - apart[0])
        moved[np.searchsorted(trial.units, half.units[has])] += shift * half.counts[name][has]
    return replace(trial, deviations=moved)


def _of_a_row_of_classes(measure: Measure, record: Mapping[str, Any]) -> float | None:
    """The size of one discordant row where classes are averaged; None for other measures, or if supports are not known.

    In a mean over K classes an answer to a row of a class with s of the n rows moves the measure by 1 / (K s): in a recall
    by all of it, in F1 one half by its own class and about the other by the class that was taken for it. A difference
    of plain 0/1 answers moves by 1 / n, so that the row is worth n / (K s) of those. Which class the row belongs to is not
    known: the mean square over the rows is (n / K^2) sum_c 1 / s_c.
    """
    support = [count for count in record.get("support") or () if count > 0]
    if measure.name not in OF_CLASSES or not support:
        return None
    return math.sqrt(sum(support) * math.fsum(1 / count for count in support)) / len(support)


def _rows(record: Mapping[str, Any], swapped: bool) -> UnitRows | None:
    rows: UnitRows | None = record.get("rows")
    return rows.both if rows is not None and swapped else rows


def differences(baseline: Sequence[float], values: Sequence[float], measure: Measure) -> list[float]:
    """Return the paired differences, positive = better; differences of logs for ratio measures.

    Raises:
        ValueError: if a ratio measure has a value that is not positive.
    """
    sign = 1.0 if measure.higher_is_better else -1.0
    if measure.kind == "ratio":
        bad = [value for value in (*baseline, *values) if value <= 0]
        if bad:
            raise ValueError(
                f"measure {measure.name} is compared by ratio and has the value {bad[0]}; it must be positive"
            )
        return [sign * math.log(b / a) for a, b in zip(baseline, values, strict=True)]
    return [sign * (b - a) for a, b in zip(baseline, values, strict=True)]


def _trial(
    measure: Measure, baseline: float, value: float, base: UnitRows | None, mine: UnitRows | None
) -> Trial | None:
    """One trial's difference with its rows; None where there are none, or other ones for the arm."""
    name = measure.name
    if base is None or mine is None or name not in base.deviations or name not in mine.deviations:
        return None
    counts = base.counts[name]
    if not _equal(base.units, mine.units) or not _equal(counts, mine.counts[name]):
        return None
    sign = 1.0 if measure.higher_is_better else -1.0
    scale = (
        (baseline, value) if measure.kind == "ratio" else (1.0, 1.0)
    )  # rows of a logarithm are those of the measure by it
    left, right = base.deviations[name].astype(np.float64), mine.deviations[name].astype(np.float64)
    moved = sign * (right / scale[1] - left / scale[0])
    units = base.units
    if counts.min(initial=1) < 1:
        tested = counts > 0
        units, moved, counts = units[tested], moved[tested], counts[tested]
    binary = measure.kind != "ratio" and name in base.binary and name in mine.binary
    (difference,) = differences([baseline], [value], measure)
    return Trial(difference, units, moved, int(counts.sum()), 1.0 if binary else 0.0, counts)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other)


def _problem(record: Mapping[str, Any], name: str, whose: str) -> str:
    if record["status"] != "ok":
        return f"{whose}{record.get('reason') or record['status']}"
    value = record["measures"].get(name, 0.0)
    return "" if math.isfinite(value) else f"{whose}{name} is {value}"
