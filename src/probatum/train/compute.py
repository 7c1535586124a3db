"""Equal cost instead of equal steps: how many updates an arm may take for the arithmetic the baseline takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from probatum.numerics.cost.operations import counted
from probatum.recipe import Recipe
from probatum.rooms.arena import Work
from probatum.train.assemble import Assembly, assemble, budget_for
from probatum.train.loop import Single, detach, train_session
from probatum.train.rng import generator_for, seeded

CHANGING = ("optimizer", "method", "compress")
"""Slots whose techniques may cost more at one step than at another."""

LOOKS = 64
"""Steps of a training that are counted, spread evenly; a row of the others costs what one of the last counted cost."""


TRIES = 5
CLOSE = 0.02
"""A schedule is tried at other lengths until its cost is so near to what is allowed, or it has been tried so often."""


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of a training of `steps` updates: those of the steps, and the `fixed` ones besides."""

    fixed: float
    stepwise: float
    steps: int

    def fitting(self, total: float) -> int:
        """Updates that use so many operations if each costs what one of these costs; at least 1."""
        if self.stepwise <= 0:
            return self.steps
        return max(1, int((total - self.fixed) * self.steps / self.stepwise + 1e-6))

    @property
    def total(self) -> float:
        """All of them."""
        return self.fixed + self.stepwise


def equal_steps(work: Work, recipe: Recipe) -> int:
    """Updates after which `recipe` has used the floating-point operations of the whole baseline run, at least 1.

    Operations are counted, not timed, so that the answer is the same on every machine. Both sides are charged for all that
    comes before, between and after the steps (`prepare`, the ends of epochs, `finish`). A schedule whose cost is not
    proportional to its length is counted at several lengths.
    """
    rows = len(work.data.train)
    allowed = costs(work, work.base, budget_for(work.base.training, rows).steps).total
    found = costs(work, recipe, budget_for(recipe.training, rows).steps)
    steps = found.fitting(allowed)
    if not _changes(recipe):
        return steps
    known = {found.steps: found.total}
    while len(known) < TRIES and steps not in known:
        last = costs(work, recipe, steps)
        known[steps] = last.total
        if abs(last.total - allowed) <= max(CLOSE * allowed, last.stepwise / steps):
            break
        steps = _between(known, allowed) or last.fitting(allowed)
    within = [count for count, total in known.items() if total <= allowed * (1 + CLOSE)]
    return max(within, default=min(known))


def _between(known: Mapping[int, float], allowed: float) -> int | None:
    """Where the line through the nearest lengths above and below meets what is allowed; None without both."""
    below = max((count for count, total in known.items() if total <= allowed), default=None)
    above = min((count for count, total in known.items() if total > allowed), default=None)
    if below is None or above is None or above - below < 2:
        return None
    share = (allowed - known[below]) / (known[above] - known[below])
    return min(above - 1, max(below + 1, below + round(share * (above - below))))


def costs(work: Work, recipe: Recipe, steps: int) -> Costs:
    """What a training of so many updates costs.

    Where something in the recipe may change its cost on the way, the training is run through, with its own draws, and
    counted; elsewhere a whole and a last batch tell all.
    """
    parts = assemble(replace(work, progress=None), recipe, steps)
    order = generator_for(work.seed, "order", work.arm.salt)
    try:
        with seeded(work.seed, "training", work.arm.salt):
            session = _Counting(parts, order, steps)
            if _changes(recipe):
                train_session(session, recipe.training.schedule, "last")
            else:
                session.one_epoch(steps)
    finally:
        detach(parts.methods)
    return Costs(session.fixed, session.stepwise, steps)


def _changes(recipe: Recipe) -> bool:
    return any(getattr(recipe, slot) for slot in CHANGING)


class _Counting:
    """A session of one run that counts what it does; validation rows are not looked at."""

    def __init__(self, parts: Assembly, order: Any, steps: int) -> None:
        with counted() as operations:
            self.inner = Single(parts.run, parts.methods, order)
        self.runs, self.every, self.taken = self.inner.runs, max(1, steps // LOOKS), 0
        self.fixed, self.stepwise, self.per_row = float(operations.total), 0.0, 0.0

    def one_epoch(self, steps: int) -> None:
        """Steps that cost the same but for the size of the last batch: what so many of them cost."""
        batches = self.epoch()
        self.every, ahead = 1, self.stepwise
        self.step(batches[0], 1.0)
        whole = self.stepwise - ahead
        last = whole
        if len(batches) > 1 and len(batches[-1]) != len(batches[0]):
            self.step(batches[-1], 1.0)
            last = self.stepwise - ahead - whole
        epochs, rest = divmod(steps, len(batches))
        self.stepwise = epochs * ((len(batches) - 1) * whole + last) + rest * whole

    def epoch(self) -> Sequence[Tensor]:
        """Begin an epoch."""
        with counted() as operations:
            batches = self.inner.epoch()
        self.fixed += operations.total
        return batches

    def step(self, index: Tensor, factor: float, *, each: bool = True) -> Tensor:
        """One update, counted now and then."""
        self.taken += 1
        if (self.taken - 1) % self.every:
            loss = self.inner.step(index, factor, each=each)
        else:
            with counted() as operations:
                loss = self.inner.step(index, factor, each=each)
            self.per_row = operations.total / len(index)
        self.stepwise += self.per_row * len(index)
        return loss

    def epoch_end(self) -> None:
        """The ends of epochs."""
        with counted() as operations:
            self.inner.epoch_end()
        self.fixed += operations.total

    def values(self, losses: Tensor) -> list[float]:
        """The loss."""
        return self.inner.values(losses)

    def looks(self) -> list[dict[str, float]]:
        """Nothing: what chooses the best weights is no part of the training."""
        return [{}]

    def close(self) -> None:
        """The optimizer's own rates again."""
        self.inner.close()

    def finish(self, k: int, best: dict[str, Any] | None) -> None:
        """What comes after the last step."""
        with counted() as operations:
            self.inner.finish(k, best)
        self.fixed += operations.total
