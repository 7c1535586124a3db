"""The best weights of a training, by the validation rows and, at no further training, by other rows as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from probatum.spec import Part

Score = tuple[float, ...]
State = dict[str, Any]


@dataclass
class Kept:
    """Copies of the weights that were best so far, of several runs.

    Attributes:
        scores: of those weights by run, lower = better; None = there are none yet.
        states: the weights.
    """

    scores: list[Score | None]
    states: list[State | None]

    @classmethod
    def of(cls, runs: int) -> Kept:
        """Nothing yet of so many runs."""
        return cls([None] * runs, [None] * runs)

    def offer(self, run: int, score: Score, state: Callable[[], State]) -> None:
        """Keep what `state` makes where this score is better than any before."""
        before = self.scores[run]
        if before is None or score < before:
            self.scores[run], self.states[run] = score, state()


@dataclass
class SecondChoice:
    """The best weights by other rows, which the runs themselves do not hold, so that no technique sees them.

    Attributes:
        parts: the rows of each run, where its network is.
        kept: the best weights by them.
    """

    parts: Sequence[Part]
    kept: Kept = field(init=False)

    def __post_init__(self) -> None:
        self.kept = Kept.of(len(self.parts))
