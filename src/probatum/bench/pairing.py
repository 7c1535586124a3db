"""Pairing: the trials of an arm and of the baseline, seed by seed, as differences that the statistics take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probatum.bench.packed_rows import UnitRows
from probatum.bench.two_way import Trial
from probatum.measure.base import Measure

STATUSES = ("ok", "failed", "not applicable")


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

    def first(self, seeds: Sequence[int]) -> Pairs:
        """The same of these seeds alone; what was lost is left out."""
        kept = [k for k, seed in enumerate(self.seeds) if seed in set(seeds)]

        def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[k] for k in kept)

        trials = None if self.trials is None else some(self.trials)
        return Pairs(
            self.arm, some(self.seeds), some(self.baseline), some(self.values), some(self.delta), trials,
            self.identical, (), (), 0, 0,
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
    """The arm's records beside the baseline's, by seed."""
    name = measure.name
    seeds, left, right, same, lost, own = [], [], [], [], [], []
    trials: list[Trial | None] = []
    baseline_lost = own_lost = 0
    for seed in sorted(set(base) & set(mine)):
        theirs, its = _problem(base[seed], name, "the baseline: "), _problem(mine[seed], name, "")
        if its:
            own.append(f"seed {seed}: {its}")
        if theirs or its:
            lost.append(f"seed {seed}: {theirs or its}")
            own_lost += not theirs
            baseline_lost += not its
        elif name in base[seed]["measures"] and name in mine[seed]["measures"]:
            seeds.append(seed)
            left.append(float(base[seed]["measures"][name]))
            right.append(float(mine[seed]["measures"][name]))
            digests = base[seed].get("digest"), mine[seed].get("digest")
            same.append(bool(digests[0]) and digests[0] == digests[1])
            trials.append(_trial(measure, left[-1], right[-1], base[seed].get("rows"), mine[seed].get("rows")))
    complete = [trial for trial in trials if trial is not None]
    return Pairs(
        arm,
        tuple(seeds),
        tuple(left),
        tuple(right),
        tuple(differences(left, right, measure)),
        tuple(complete) if complete and len(complete) == len(trials) else None,
        bool(same) and all(same),
        tuple(lost),
        tuple(own),
        baseline_lost,
        own_lost,
    )


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
        units, moved = units[tested], moved[tested]
    binary = measure.kind != "ratio" and name in base.binary and name in mine.binary
    (difference,) = differences([baseline], [value], measure)
    return Trial(difference, units, moved, int(counts.sum()), 1.0 if binary else 0.0)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other)


def _problem(record: Mapping[str, Any], name: str, whose: str) -> str:
    if record["status"] != "ok":
        return f"{whose}{record.get('reason') or record['status']}"
    value = record["measures"].get(name, 0.0)
    return "" if math.isfinite(value) else f"{whose}{name} is {value}"
