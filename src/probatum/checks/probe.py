"""What every probe promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from probatum.checks.subject import Subject, demand, fingerprint


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What it measures."""
    data = subject.data()
    return dict(subject.call(data, settings, data=data))


def check_measures_named_numbers(subject: Subject) -> None:
    """A non-empty mapping of names to finite numbers; data untouched."""
    data = subject.data()
    before = fingerprint([data.train.x, data.train.y, data.test.x])
    found = subject.call(data, data=data)
    demand(bool(found) and all(isinstance(name, str) for name in found), "give a mapping of names to numbers")
    bad = [name for name, value in found.items() if not math.isfinite(float(value))]
    demand(not bad, f"not finite: {', '.join(bad)}")
    demand(fingerprint([data.train.x, data.train.y, data.test.x]) == before, "the data were changed")
