"""An arena: the rules of one kind of contest, in a folder that is found by name.

``arenas/NAME/arena.py`` defines

- ``BASELINE``: name of the built-in arm that the others are compared with,
- ``references(spec) -> tuple[str, ...]``: built-in arms shown beside the baseline,
- ``measures(spec) -> tuple[str, ...]``: names of the measures it takes, the primary one first,
- ``trial(work) -> Outcome``: one arm, one seed; a pure function of its plan,
- ``timings(work) -> dict[str, float]``: speed ratios against the baseline, measured interleaved,
- ``rehearse(work)``: the arm on a few rows, before any long work; InputError where it cannot take part,
- where techniques take whole trainings, so that the rehearsal leaves them out, ``play(work)``: the technique alone, of which
  a rehearsal wants to know whether it refuses settings,
- if need be ``COMPETES = False`` (arms are measured, not compared) and ``RIVALS = False`` (references are bounds, no rivals),

and, where the contest has rules that a user may set, ``contest(spec, train, ...) -> dict``, with a frozen dataclass `Rules`
in ``rules.py`` beside. What it has to show beyond verdicts stands in ``report.py``: ``blocks(results)``, a list of
`probatum.drawing.blocks.Block`. Which slots play in it, their contracts say (`ARENA`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from probatum.engine import PLAIN, Engine
from probatum.recipe import Arm, Recipe, Use
from probatum.rooms import find
from probatum.spec import Data, Spec, Truth

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

ModelFactory = Callable[[Spec], "nn.Module"]
"""Builds the baseline's network for data of a spec."""


class TrainingFailed(RuntimeError):
    """The loss or the outputs stopped being finite; the trial is recorded as failed with this reason."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all trials of a study share.

    Attributes:
        base: the baseline's recipe.
        primary: the measure that decides, by whose kind choices are made on validation rows.
        equal_compute: whether steps are set so that arms cost what the baseline costs.
        tune: tuner trials every arm gets; 0 = defaults.
        engine: where and how networks are trained.
        contest: the arena's own rules, as its `contest` gave them; empty = its usual ones, or it has none.
    """

    base: Recipe
    primary: str = "accuracy"
    equal_compute: bool = False
    tune: int = 0
    engine: Engine = PLAIN
    contest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """One trial: who plays, on which rows, on the study's terms.

    Attributes:
        arm: what takes part; a built-in arm has the baseline's recipe and is known by its name.
        builtin: name of the built-in arm (baseline or reference) it is, or "" for techniques.
        terms: what all trials share.
        data: the seed's split, without its truth.
        seed: the paired seed.
        factory: builds the baseline network, None = the built-in one.
        progress: called as (step, steps) now and then.
        truth: what is known of the split in a made world, for measuring alone; taken off `data`, which techniques get.
    """

    arm: Arm
    builtin: str
    terms: Terms
    data: Data
    seed: int
    factory: ModelFactory | None = None
    progress: Callable[[int, int], None] | None = None
    truth: Truth | None = None

    def __post_init__(self) -> None:
        if self.data.truth is not None:  # however a Work is made, no technique sees what is true
            object.__setattr__(self, "truth", self.data.truth)
            object.__setattr__(self, "data", replace(self.data, truth=None))

    @property
    def base(self) -> Recipe:
        """The baseline's recipe."""
        return self.terms.base

    @property
    def recipe(self) -> Recipe:
        """The arm's recipe."""
        return self.arm.recipe

    @property
    def engine(self) -> Engine:
        """Where and how networks are trained."""
        return self.terms.engine

    @property
    def player(self) -> Use:
        """The technique that an arena other than predict tries: the one that the baseline does not have."""
        return next(use for use in self.recipe.uses() if use not in self.base.uses())

    def baseline(self, *, data: Data | None = None) -> Work:
        """The same trial of the baseline, on other rows if given; nobody is told of its progress."""
        arm = Arm("baseline", self.base)
        return replace(self, arm=arm, builtin="baseline", data=data or self.data, progress=None)

    def on(self, **terms: Any) -> Work:
        """The same trial on other terms, e.g. ``work.on(tune=0)``."""
        return replace(self, terms=replace(self.terms, **terms))


def alone(
    recipe: Recipe,
    data: Data,
    seed: int,
    *,
    factory: ModelFactory | None = None,
    engine: Engine = PLAIN,
    salt: str = "",
) -> Work:
    """One recipe on one split, outside any study: what `assemble` and `train` need."""
    return Work(Arm("alone", recipe, salt), "", Terms(base=recipe, engine=engine), data, seed, factory)


@dataclass
class Outcome:
    """What a trial leaves.

    Attributes:
        measures: numbers that are the same whenever the plan is run again.
        timing: measured seconds and bytes.
        digest: hash of weights and outputs, by which bit-identical arms are known.
        details: curves, tables and notes for the report, JSON values.
        rows: for measures that have them, by name, what each test row adds (`probatum.measure.row_values`): float64 (n_test,)
            in the order of the test rows, NaN where a row does not count; the mean of the others is the measure.
    """

    measures: dict[str, float]
    timing: dict[str, float] = field(default_factory=dict)
    digest: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class Arena(Protocol):
    """The functions of an arena's module."""

    BASELINE: str

    def references(self, spec: Spec) -> tuple[str, ...]: ...

    def measures(self, spec: Spec) -> tuple[str, ...]: ...

    def trial(self, work: Work) -> Outcome: ...

    def timings(self, work: Work) -> dict[str, float]: ...

    def rehearse(self, work: Work) -> None: ...


@cache
def arena(name: str) -> Arena:
    """The module that runs the arena called `name`."""
    return find.load("arena", name)  # type: ignore[return-value]


def competes(name: str) -> bool:
    """Whether arms are compared with the baseline."""
    return bool(getattr(arena(name), "COMPETES", True))


def blocks_of(name: str, results: Any) -> list[Any]:
    """What the arena shows beyond verdicts, as `probatum.drawing.blocks.Block`."""
    module = find.part(find.room("arena", name), "report")
    return [] if module is None else module.blocks(results)


def rule_words(name: str) -> Mapping[str, str]:
    """What the arena calls its rules in a report, where not by their names."""
    module = find.part(find.room("arena", name), "report")
    return {} if module is None else getattr(module, "WORDS", {})
