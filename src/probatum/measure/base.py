"""What a measure is, and how the measures of this package are found."""

from __future__ import annotations

import importlib
import math
import pkgutil
from dataclasses import dataclass

KINDS = ("difference", "ratio")


@dataclass(frozen=True)
class Measure:
    """A named number with a direction and an axis.

    Attributes:
        name: kebab-case, unique among all measures.
        axis: quality, calibration, robustness, size, speed, faithfulness, attack, detection ...
        higher_is_better: the direction.
        margin: default region of practical equivalence, at least 0; for kind ``"ratio"`` a log-ratio such as log(1.1).
        kind: ``"difference"``, or ``"ratio"`` for positive numbers that are compared on their logs.
        unit: such as ``"s"`` or ``"bytes"``; empty for pure numbers.
        tasks: the tasks for which it is defined.
        about: one line on what it is.

    Raises:
        ValueError: for an unknown kind, or a margin that is negative or not finite.
    """

    name: str
    axis: str
    higher_is_better: bool
    margin: float
    kind: str = "difference"
    unit: str = ""
    tasks: tuple[str, ...] = ("classes", "reals")
    about: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"measure {self.name}: kind is {self.kind!r}; use one of {', '.join(KINDS)}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"measure {self.name}: margin is {self.margin}; use a finite number of at least 0")


def all_measures() -> dict[str, Measure]:
    """Return every measure by name, from the ``MEASURES`` tuples of this package's modules; imports them all.

    Raises:
        ValueError: if two modules declare the same name.
    """
    package = importlib.import_module(__package__)
    found: dict[str, Measure] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{__package__}."):
        for measure in getattr(importlib.import_module(module.name), "MEASURES", ()):
            if measure.name in found:
                raise ValueError(f"measure {measure.name!r} is declared twice; the second time in {module.name}")
            found[measure.name] = measure
    return dict(sorted(found.items()))
