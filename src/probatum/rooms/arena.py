"""What an arena is: the rules of one kind of contest, in one module that `bench` finds by the arena's name.

A module ``arenas/<name>.py`` defines

- ``BASELINE``: name of the built-in arm that the others are compared with,
- ``references(spec) -> tuple[str, ...]``: built-in arms shown beside the baseline,
- ``measures(spec) -> tuple[str, ...]``: names of the measures it takes, the primary one first,
- ``trial(work) -> Outcome``: one arm, one seed; a pure function of its plan,
- ``timings(work) -> dict[str, float]``: speed ratios against the baseline, measured interleaved,

and, where the contest has rules that a user may set, ``contest(spec, train, ...) -> dict`` and ``rehearse(work)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

from probatum.recipe import Arm, Recipe
from probatum.spec import Data, Spec, Truth
from probatum.train.assemble import ModelFactory
from probatum.train.engine import PLAIN, Engine


@dataclass(frozen=True)
class Work:
    """Everything one trial needs.

    Attributes:
        arm: what takes part; a built-in arm has the baseline's recipe and is known by its name.
        builtin: name of the built-in arm (baseline or reference) it is, or "" for techniques.
        base: the baseline's recipe.
        data: the seed's split, without its truth.
        seed: the paired seed.
        factory: builds the baseline network, None = the built-in one.
        equal_compute: whether steps are set so that arms cost what the baseline costs.
        tune: tuner trials every arm gets; 0 = defaults.
        primary: the measure choices are made by on validation rows.
        progress: called as (step, steps) now and then.
        engine: where and how networks are trained.
        contest: the arena's own rules, as its `contest` gave them; empty = its usual ones, or it has none.
        truth: what is known of the split in a made world, for measuring alone; taken off `data`, which techniques get.
    """

    arm: Arm
    builtin: str
    base: Recipe
    data: Data
    seed: int
    factory: ModelFactory | None = None
    equal_compute: bool = False
    tune: int = 0
    primary: str = "accuracy"
    progress: Callable[[int, int], None] | None = None
    engine: Engine = PLAIN
    contest: Mapping[str, Any] = field(default_factory=dict)
    truth: Truth | None = None

    def __post_init__(self) -> None:
        if self.data.truth is not None:  # however a Work is made, no technique sees what is true
            object.__setattr__(self, "truth", self.data.truth)
            object.__setattr__(self, "data", replace(self.data, truth=None))


@dataclass
class Outcome:
    """What a trial leaves.

    Attributes:
        measures: numbers that are the same whenever the plan is run again.
        timing: measured seconds and bytes.
        digest: hash of weights and outputs, by which bit-identical arms are known.
        details: curves, tables and notes for the report, JSON values.
    """

    measures: dict[str, float]
    timing: dict[str, float] = field(default_factory=dict)
    digest: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class Arena(Protocol):
    """The functions of an arena's module."""

    BASELINE: str

    def references(self, spec: Spec) -> tuple[str, ...]: ...

    def measures(self, spec: Spec) -> tuple[str, ...]: ...

    def trial(self, work: Work) -> Outcome: ...

    def timings(self, work: Work) -> dict[str, float]: ...


@cache
def arena(name: str) -> Arena:
    """The module that runs the arena called `name`."""
    return importlib.import_module(f"probatum.arenas.{name}")  # type: ignore[return-value]
