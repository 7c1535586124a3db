"""Equal cost instead of equal steps: how many updates an arm may take for the arithmetic the baseline takes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from probatum import catalogue
from probatum.numerics.cost.operations import counted
from probatum.recipe import Recipe
from probatum.rooms.arena import Work
from probatum.spec import Part
from probatum.train.adapt import Adapted
from probatum.train.assemble import Assembly, assemble, budget_for
from probatum.train.loop import Single, detach, train_session
from probatum.train.rng import generator_for, seeded

TRIES = 5
CLOSE = 0.02
"""A schedule is tried at other lengths until its cost is so near to what is allowed, or it has been tried so often."""


_baselines = WeakTensorKeyDictionary()
"""What baselines cost, by the targets of their training rows: the arms of a seed ask for the same one."""


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of a training of `steps` updates: those of the steps, and the `fixed` ones besides.

    `even`: batches of one size cost the same at every step, and the ends of epochs nothing.
    """

    fixed: float
    stepwise: float
    steps: int
    even: bool = False

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
    allowed = _allowed(work)
    found = costs(work, recipe, budget_for(recipe.training, len(work.data.train)).steps)
    steps = found.fitting(allowed)
    shorter = steps <= found.steps and found.fixed <= CLOSE * allowed  # of what costs the same all along
    if not can_change(work, recipe) or (found.even and shorter):
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


def _allowed(work: Work) -> float:
    """Operations of the whole baseline run on these rows, counted once."""
    base, train = work.baseline(), work.data.train
    steps = budget_for(base.base.training, len(train)).steps
    if not can_change(base, base.base):
        return costs(base, base.base, steps).total
    asked = (work.seed, base.base.plan(), work.factory, work.engine)
    kept: list[Any] = _baselines.setdefault(train.y, [])
    for rows, before, total in kept:
        if rows() is train.x and before == asked:
            return total
    total = costs(base, base.base, steps).total
    kept.append((weakref.ref(train.x), asked, total))
    return total


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

    Where something may change its cost on the way, the training is run through, with its own draws, and all of it is
    counted; elsewhere a whole and a last batch tell all.
    """
    parts = assemble(replace(work, progress=None), recipe, steps)
    order = generator_for(work.seed, "order", work.arm.salt)
    try:
        with seeded(work.seed, "training", work.arm.salt):
            session = _Counting(parts, order)
            if can_change(work, recipe):
                train_session(session, recipe.training.schedule, "last")
            else:
                session.one_epoch(steps)
    finally:
        detach(parts.methods)
    return session.costs(steps)


def can_change(work: Work, recipe: Recipe) -> bool:
    """Whether a step may cost more than another: with all that is not the built-in network and a loss without state."""
    made = work.factory.make if isinstance(work.factory, Adapted) else work.factory
    inside = [use for use in recipe.uses() if use != recipe.posthoc]
    return made is not None or any(use != recipe.loss or not catalogue.card(use.id).separable for use in inside)


class _Counting:
    """A session of one run that counts what it does; validation rows are not looked at.

    Every step is counted: techniques act every k steps and networks draw what they run, so that some of the steps, evenly
    spread or drawn, tell too little of the others.
    """

    def __init__(self, parts: Assembly, order: Any) -> None:
        with counted() as operations:
            self.inner = Single(parts.run, parts.methods, order)
        self.runs, self.taken = self.inner.runs, 0
        self.fixed, self.stepwise, self.between = float(operations.total), 0.0, 0.0
        self.seen: dict[int, set[int]] = {}

    def one_epoch(self, steps: int) -> None:
        """Steps that cost the same but for the size of the last batch: what so many of them cost."""
        batches = self.epoch()
        ahead = self.stepwise
        self.step(batches[0], 1.0)
        whole = self.stepwise - ahead
        last = whole
        if len(batches) > 1 and len(batches[-1]) != len(batches[0]):
            self.step(batches[-1], 1.0)
            last = self.stepwise - ahead - whole
        epochs, rest = divmod(steps, len(batches))
        self.stepwise = epochs * ((len(batches) - 1) * whole + last) + rest * whole
        self.taken = steps

    def costs(self, steps: int) -> Costs:
        """Those of so many steps; of a training that was broken off, what was taken tells of the rest."""
        even = not self.between and all(len(spent) == 1 for spent in self.seen.values())
        stepwise = (self.stepwise + self.between) * steps / max(1, self.taken)
        return Costs(self.fixed, stepwise, steps, even)

    def epoch(self) -> Sequence[Tensor]:
        """Begin an epoch."""
        with counted() as operations:
            batches = self.inner.epoch()
        self.between += operations.total
        return batches

    def step(self, index: Tensor, factor: float, *, each: bool = True) -> Tensor:
        """One update."""
        self.taken += 1
        with counted() as operations:
            loss = self.inner.step(index, factor, each=each)
        self.seen.setdefault(len(index), set()).add(operations.total)
        self.stepwise += operations.total
        return loss

    def epoch_end(self) -> None:
        """The ends of epochs."""
        with counted() as operations:
            self.inner.epoch_end()
        self.between += operations.total

    def values(self, losses: Tensor) -> list[float]:
        """The loss."""
        return self.inner.values(losses)

    def looks(self, select: str, parts: Sequence[Part] | None = None) -> list[dict[str, float]]:
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
