"""What an audit says of one thing, and the limits beyond which it says fault."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from probatum.errors import InputError

PASS, FAULT, NOT_MEASURABLE = "pass", "fault", "not measurable"


@dataclass(frozen=True)
class Limits:
    """How large a defect must be to be a fault; that it is no chance finding is asked for besides (`level`).

    Attributes:
        calibration: root mean squared calibration error, debiased.
        error_auroc: chance that a right answer is more confident than a wrong one; less is a fault.
        corruption: loss of accuracy (of R2-like share for reals) under the mildest corruptions.
        shift: AUROC at which a classifier tells audited from reference rows.
        label_shift: total variation distance of the class shares.
        suspicious: share of rows whose label is contradicted.
        outliers: share of rows farther from the others than 99 % of the reference rows are.
        group: how far below the whole a group's accuracy is, at the upper end of its interval.
        reliance: share of the model's answers that hang on one column or patch.
        level: chance of a false alarm of one check.
    """

    calibration: float = 0.03
    error_auroc: float = 0.7
    corruption: float = 0.15
    shift: float = 0.6
    label_shift: float = 0.1
    suspicious: float = 0.05
    outliers: float = 0.03
    group: float = 0.05
    reliance: float = 0.6
    level: float = 0.01

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise InputError(f"limit {name} is {value}; use a number from 0 to 1")

    def changed(self, values: Mapping[str, float]) -> Limits:
        """These limits with others of theirs; InputError for a name that is none."""
        known = [field.name for field in fields(self)]
        for name in values:
            if name not in known:
                raise InputError(f"no limit {name!r}; limits are {', '.join(known)}")
        return replace(self, **values)


@dataclass(frozen=True)
class Finding:
    """One check's result.

    Attributes:
        check: what was checked.
        verdict: pass, fault or not measurable.
        value: the measured number with its interval, in words.
        threshold: what would be a fault, in words.
        about: one or two sentences: what it means here.
        faults: names out of `probatum.auditing.faults.FAULTS`; empty unless a fault.
        numbers: what was measured, JSON values.
        table: rows to show, all with the same keys.
    """

    check: str
    verdict: str
    value: str = ""
    threshold: str = ""
    about: str = ""
    faults: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    table: tuple[Mapping[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**asdict(self), "faults": list(self.faults), "table": [dict(row) for row in self.table]}


def not_measurable(check: str, why: str) -> Finding:
    """A check that these data or this model do not allow, with the reason."""
    return Finding(check, NOT_MEASURABLE, about=why)


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %"
