"""A few training steps at a time, methods attached all along: for timing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from probatum.recipe import Recipe
from probatum.rooms.arena import Work
from probatum.train.assemble import assemble
from probatum.train.loop import Single, detach
from probatum.train.rng import generator_for, seeded

BLOCK = 4
"""Training steps of one call."""


class Stepper:
    """Takes a few training steps each time it is called, on and on through the epochs of one training.

    Args:
        session: what takes the steps, its methods attached.
        draws: seed of what is drawn in training.

    Attributes:
        seconds: what each call took.
    """

    def __init__(self, session: Single, draws: int) -> None:
        self.session, self.draws = session, draws
        self.model: nn.Module = session.model
        self.seconds: list[float] = []
        self._left: list[Tensor] = []

    def step(self) -> None:
        """`BLOCK` updates, epochs begun and ended on the way."""
        begun = time.perf_counter()
        with seeded(self.draws, "timing"):
            for _ in range(BLOCK):
                if not self._left:
                    if self.session.run.epoch >= 0:
                        self.session.epoch_end()
                    self._left = list(self.session.epoch())
                self.session.step(self._left.pop(0), 1.0)
        self.seconds.append(time.perf_counter() - begun)


@contextmanager
def stepping(work: Work, recipe: Recipe) -> Iterator[Stepper]:
    """A stepper of this recipe on the work's rows; its methods are taken off afterwards."""
    parts = assemble(work, recipe)
    try:
        with seeded(work.seed, "timing"):
            session = Single(parts.run, parts.methods, generator_for(work.seed, "timing order"))
        yield Stepper(session, work.seed)
    finally:
        detach(parts.methods)
