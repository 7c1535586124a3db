"""Shared steps of claims: train an arm on one split and look at it, or let its arena do so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from probatum.bench.contest import contest_of
from probatum.measure.base import all_measures
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import ModelFactory, Terms, Work, alone, arena
from probatum.rooms.task import task
from probatum.spec import Data, Part
from probatum.train.assemble import assemble
from probatum.train.baselines import training_for
from probatum.train.loop import outputs, train
from probatum.train.rng import generator_for, seeded
from probatum.train.run import Run


def fit(
    arm: str | None, data: Data, seed: int, *, training: Training | None = None, factory: ModelFactory | None = None
) -> Run:
    """Train an arm ("id(setting=...)+id", None = the baseline) on `data` as the bench would; returns the finished run."""
    data = replace(data, truth=None)
    base = Recipe(training=training or training_for(data.spec.modality, data.spec.task))
    recipe = base if arm is None else make_arm(arm, base).recipe
    if data.spec.task == "reals" and recipe.training.select == "accuracy":
        recipe = replace(recipe, training=replace(recipe.training, select="rmse"))
    parts = assemble(alone(recipe, data, seed, factory=factory))
    with seeded(seed, "training"):
        train(
            parts.run,
            parts.methods,
            generator_for(seed, "order"),
            schedule=recipe.training.schedule,
            select=recipe.training.select,
        )
    return parts.run


def measured(
    where: str,
    arm: str | None,
    data: Data,
    seed: int,
    *,
    training: Training | None = None,
    rules: Any = None,
    factory: ModelFactory | None = None,
) -> dict[str, float]:
    """What an arena measures of an arm on one split, as the bench would: named numbers.

    Args:
        where: the arena's name, which a claim says itself, so that its evidence rests on that arena.
        arm: "id(setting=...)+id"; None = the arena's baseline.
        data: the split.
        seed: the paired seed; the same one for both arms.
        training: how networks are trained; None = as the baseline of such data is.
        rules: the frozen value of the arena's rules; None = its usual ones.
        factory: builds the baseline network, None = the built-in one.
    """
    room, spec = arena(where), data.spec
    primary = room.measures(spec)[0]
    found = training or training_for(spec.modality, spec.task)
    found = replace(found, select=task(spec.task).selection(primary, all_measures()[primary].axis))
    base = Recipe(training=found)
    playing = Arm(room.BASELINE, base) if arm is None else make_arm(arm, base)
    terms = Terms(base=base, primary=primary, contest=contest_of(where, rules, data))
    return room.trial(Work(playing, room.BASELINE if arm is None else "", terms, data, seed, factory)).measures


def first_rows(part: Part, n: int) -> Part:
    """The first n rows of a part, which are a random sample where the data were shuffled."""
    text = None if part.text is None else part.text[:n]
    return Part(part.x[:n], part.y[:n], part.rows[:n], text)


def accuracy(model: nn.Module, part: Part) -> float:
    """Share of rows whose largest output is the target's."""
    return float((outputs(model, part.x).argmax(dim=1) == part.y).float().mean())


def margins(output: Tensor, target: Tensor) -> Tensor:
    """Logit of the true class less the largest other one: (n, classes), (n,) -> (n,)."""
    own = output.gather(1, target[:, None]).squeeze(1)
    others = output.scatter(1, target[:, None], float("-inf"))
    return own - others.amax(dim=1)


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences, with its standard error and Student's interval."""

    mean: float
    error: float
    low: float
    high: float

    def told(self, name: str) -> dict[str, float]:
        """As entries of `Evidence.measured`: the mean under its name, bounds and error under names that end so."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high, f"{name}_error": self.error}


def interval(differences: Sequence[float], level: float = 0.9) -> Interval:
    """Student's interval for the mean of independent differences, one a seed (or a disjoint draw of rows).

    A threshold reads "the interval's lower end is at least m", so that at level 0.9 a claim is wrongly held in one of twenty.

    Args:
        differences: at least two numbers, the same unit.
        level: the two-sided coverage, between 0 and 1.
    """
    values = torch.tensor(list(differences), dtype=torch.float64)
    if len(values) < 2:
        raise ValueError(f"an interval needs two differences or more, got {len(values)}")
    centre, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
    reach = float(student.ppf(0.5 + level / 2, len(values) - 1)) * error
    return Interval(centre, error, centre - reach, centre + reach)


def mean(values: list[float]) -> float:
    """The mean of a list of numbers."""
    return float(torch.tensor(values, dtype=torch.float64).mean())
