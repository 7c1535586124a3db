"""A short training, a few steps at a time, methods attached all along: for timing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from probatum.recipe import Recipe
from probatum.rooms.arena import Work
from probatum.train.assemble import assemble, budget_for
from probatum.train.loop import Single, detach, rate_factor
from probatum.train.rng import generator_for, seeded

BLOCK = 4
"""Training steps of one call."""

LEAST = 64
"""Steps of a training whose length is not given: shorter ones are drawn out, so that no technique is taken past its end."""


class Stepper:
    """Takes a few training steps each time it is called, through the epochs of one training.

    Args:
        session: what takes the steps, its methods attached.
        draws: seed of what is drawn in training.
        schedule: of the learning rate, as `Training.schedule`.

    Attributes:
        seconds: what each call took.
        finished: whether the training has been ended as trainings are.
    """

    def __init__(self, session: Single, draws: int, schedule: str = "cosine") -> None:
        self.session, self.draws, self.schedule = session, draws, schedule
        self.seconds: list[float] = []
        self.finished = False
        self._left: list[Tensor] = []

    @property
    def model(self) -> nn.Module:
        """The network; once finished, the one that is kept."""
        return self.session.run.model

    def step(self) -> None:
        """`BLOCK` updates, epochs begun and ended on the way.

        Raises:
            RuntimeError: the training has not so many steps left.
        """
        run = self.session.run
        if run.step + BLOCK > run.budget.steps:
            raise RuntimeError(f"{run.step} of {run.budget.steps} steps are done; there are no {BLOCK} left to time")
        _wait(run.train.y)
        begun = time.perf_counter()
        with seeded(self.draws, "timing", str(run.step)):
            for _ in range(BLOCK):
                if not self._left:
                    if run.epoch >= 0:
                        self.session.epoch_end()
                    self._left = list(self.session.epoch())
                self.session.step(self._left.pop(0), rate_factor(run.step, run.budget.steps, self.schedule))
        _wait(run.train.y)
        self.seconds.append(time.perf_counter() - begun)

    def finish(self) -> None:
        """End the training as the loop does: `model` is then what a trial would keep."""
        with seeded(self.draws, "timing", "finish"):
            self.session.epoch_end()
            self.session.close()
            self.session.finish(0, None)
        self.finished = True


@contextmanager
def stepping(work: Work, recipe: Recipe, steps: int | None = None) -> Iterator[Stepper]:
    """A stepper of this recipe on the work's rows; methods of a training that was not finished are taken off afterwards.

    Args:
        work: rows, seed, engine.
        recipe: what is trained.
        steps: the training's length, over which schedules are stretched; None = the recipe's own, at least `LEAST`.
    """
    parts = assemble(work, recipe, steps or max(LEAST, budget_for(recipe.training, len(work.data.train)).steps))
    stepper = None
    try:
        with seeded(work.seed, "timing"):
            session = Single(parts.run, parts.methods, generator_for(work.seed, "timing order"))
        stepper = Stepper(session, work.seed, recipe.training.schedule)
        yield stepper
    finally:
        if stepper is None or not stepper.finished:
            detach(parts.methods)


def _wait(where: Tensor) -> None:
    """Until an accelerator has done what it was given."""
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)
