"""A crowd of workers who answer yes or no: several answers an item, gold items, workers who are let go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Crowd:
    """Simulated workers with error rates of their own; items are decided by majority, and every answer is paid for.

    An item is asked about until no leads by `lead[0]` answers or yes by `lead[1]`, or `most` are given; where yes is rare,
    most mistaken decisions would be a yes, so that a yes has to lead by more. A share of the questions
    are gold items, whose truth is known: a worker who fails too many of them is let go, and the answers paid for gold are
    counted too.

    Args:
        truth: (n,) bool.
        generator: who answers, errors, gold items.
        errors: each worker's probability of a wrong answer, in [0, 0.5).
        lead: answers by which no and yes must lead, each at least 1.
        most: answers an item at most, at least 1; 1 = no second opinion.
        gold: share of questions that are gold, in [0, 1).
        tolerance: a worker with more than this share of gold wrong, after 10 gold items, is let go.

    Raises:
        ValueError: settings out of range, no workers.
    """

    def __init__(
        self,
        truth: Tensor,
        generator: torch.Generator,
        errors: Sequence[float] = (0.03, 0.03, 0.03),
        lead: tuple[int, int] = (2, 3),
        most: int = 5,
        gold: float = 0.05,
        tolerance: float = 0.2,
    ) -> None:
        if not errors or not all(0 <= e < 0.5 for e in errors):
            raise ValueError(f"errors are {list(errors)}; give every worker a probability in [0, 0.5)")
        if min(lead) < 1:
            raise ValueError(f"lead is {lead}; both must be at least 1")
        if most < 1 or not 0 <= gold < 1 or not 0 <= tolerance <= 1:
            raise ValueError(f"most is {most}, gold {gold}, tolerance {tolerance}; use at least 1, [0, 1) and [0, 1]")
        self.truth, self.generator, self.errors = truth, generator, list(errors)
        self.lead, self.most, self.gold, self.tolerance = lead, most, gold, tolerance
        self.active = list(range(len(errors)))
        self.tested = [[0, 0] for _ in errors]
        self.answers = 0

    def __call__(self, rows: Tensor) -> Tensor:
        """The crowd's decision (k,) bool for rows (k,)."""
        return torch.tensor([self._decide(bool(self.truth[row])) for row in rows.tolist()], dtype=torch.bool)

    def _decide(self, truth: bool) -> bool:
        lead = 0
        for _ in range(self.most):
            worker = self._worker()
            lead += 1 if self._answer(worker, truth) else -1
            if lead <= -self.lead[0] or lead >= self.lead[1]:
                break
        return lead > 0 if lead else bool(self._draw() < 0.5)

    def _worker(self) -> int:
        """Somebody who is still trusted; now and then tried on a gold item first."""
        while True:
            worker = self.active[int(torch.randint(len(self.active), (1,), generator=self.generator))]
            if self._draw() >= self.gold:
                return worker
            gold = bool(self._draw() < 0.5)
            wrong = self._answer(worker, gold) != gold
            seen = self.tested[worker]
            seen[0] += 1
            seen[1] += wrong
            if seen[0] >= 10 and seen[1] > self.tolerance * seen[0] and len(self.active) > 1:
                self.active.remove(worker)

    def _answer(self, worker: int, truth: bool) -> bool:
        self.answers += 1
        return truth != bool(self._draw() < self.errors[worker])

    def _draw(self) -> float:
        return float(torch.rand(1, generator=self.generator))
