"""Cyclical curriculum: epochs shrink and grow in cycles, and small epochs hold mostly easy examples.

Paper     Kesgin and Amasyali 2023, "Cyclical curriculum learning", IEEE TNNLS, arXiv:2202.05531, algorithm 1
Computes  share of the rows an epoch visits: start, start/m, ... end, end*m, ... start, ...; rows are drawn without
          replacement with probability proportional to 1/l_i ("easy"), l_i ("hard") or 1 ("random"), where l_i is the
          row's loss under a reference model trained beforehand
Shapes    order (n,) int64, a permutation of the rows -> the rows of this epoch (int(share * n),), in the same order
Departs   1. training ends after the budgeted gradient steps, so that visits equal the baseline's; the published code
             finishes the epoch in which the sum of shares passes the budget
          2. rows are drawn by Gumbel top-k and visited in the loop's own shuffled order
          3. the schedule of the learning rate follows steps taken, not epochs, which here differ in length
          4. a loss of zero is raised to the smallest positive one, else its row would be drawn with certainty
          5. the reference model is trained by AdamW with cosine decay for scorer_steps, which are charged
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.optimisation.fit_network import fit_network, row_losses
from probatum.numerics.tensors.precision import as_weights, widened

CARD = Card(
    paper="arXiv:2202.05531",
    title="Cyclical Curriculum Learning",
    entry="CyclicalCurriculum",
    number=110,
    tags=("training", "curriculum", "order"),
    neutral={"start": 1.0},
    tiny={"scorer_steps": 2},
    tune={"start": (0.1, 0.7), "multiplier": [0.25, 0.5, 0.75], "prefer": ["easy", "random", "hard"]},
    claims=("no-worse-than-plain-order",),
)

PREFERENCES = ("easy", "exponential", "hard", "random")
PACES = ("cycle", "rise")
ROUNDING = 1e-6
"""Of a row, so that a share of 0.7 of 40 rows is 28 of them, though 0.7 * 40 may come out a little below."""


def cycle_sizes(start: float, end: float, multiplier: float, total: float) -> list[float]:
    """Shares of the data per epoch until their sum reaches `total`: cycle_sizes(.25, 1, .5, 2) -> [.25, .5, 1, .5]."""
    sizes, size, rising = [], start, True
    while sum(sizes) < total:
        sizes.append(size)
        size, rising = next_size(size, rising, start, end, multiplier)
    return sizes


def next_size(size: float, rising: bool, start: float, end: float, multiplier: float) -> tuple[float, bool]:
    """The share after `size`, and whether shares are (still, or again) rising."""
    if rising and size >= end:
        rising = False
    elif not rising and size <= start:
        rising = True
    return (min(size / multiplier, end), True) if rising else (max(size * multiplier, start), False)


def log_weights(losses: Tensor, prefer: str, rate: float = 1.0) -> Tensor:
    """Unnormalised log-probability of being drawn, from losses (n,) >= 0.

    Args:
        losses: loss of each row.
        prefer: "easy" 1/l, "exponential" rate * exp(-rate * l), "hard" l, "random" 1.
        rate: of the exponential form, > 0.

    Raises:
        ValueError: losses of another shape, negative or not finite.
    """
    if losses.ndim != 1:
        raise ValueError(f"scores are {tuple(losses.shape)}; give one loss for every row, (n,)")
    bad = ~torch.isfinite(losses) | (losses < 0)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"the score of row {row} is {float(losses[row])}; scores are losses, finite and at least 0")
    positive = losses[losses > 0]
    if prefer == "random" or len(positive) == 0:
        return torch.zeros_like(losses)
    if prefer == "exponential":
        return -rate * losses
    log = losses.clamp(min=float(positive.min())).log()
    return -log if prefer == "easy" else log


def draw(log_q: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Weighted sampling without replacement by Gumbel top-k: log_q (n,) -> membership (n,) bool with `size` rows."""
    uniform = torch.rand(log_q.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    keys = log_q.double() - (-uniform.log()).log()
    member = torch.zeros(log_q.shape, dtype=torch.bool)
    member[keys.topk(size).indices] = True
    return member


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Loss of every row in evaluation mode (n,); the model's mode is put back."""
    with evaluating(model):
        parts = zip(x.split(1024), y.split(1024), strict=True)
        rows = ((as_weights(model, a.clone()), b) for a, b in parts)  # a network may begin in place
        return torch.cat([row_losses(widened(model(a)), b) for a, b in rows])


class CyclicalCurriculum:
    """Chooses the rows of every epoch; alone from losses you give it, on the bench from a reference model it trains.

    Args:
        start: smallest share of the rows, in (0, 1]; 1 = every epoch visits every row, nothing is scored.
        end: largest share, in [start, 1].
        multiplier: factor between the shares of neighbouring epochs, in (0, 1).
        prefer: "easy", "exponential" (another easy form), "hard" (an anti-curriculum) or "random".
        rate: of the exponential form.
        pace: "cycle", or "rise" linearly from start to end (a plain curriculum).
        warm: share of the training in [0, 1) that visits all rows before the curriculum begins.
        self_paced: score by the model in training before every epoch, instead of by a reference model.
        scorer_steps: updates of the reference model; None = as many as the training itself takes.
        scorer_lr: its learning rate.
        scores: losses (n,) from elsewhere; nothing is trained then.
        model_factory: makes the reference model.
        generator: own random stream.

    Raises:
        ValueError: a setting outside its range, or scores that are negative or not finite.

    Example:
        >>> curriculum = CyclicalCurriculum(scores=torch.tensor([0.1, 0.2, 5.0, 9.0]), start=0.5)
        >>> [len(curriculum.epoch(torch.randperm(4))) for _ in range(5)]
        [2, 4, 2, 4, 2]
    """

    writes = ("order",)

    def __init__(
        self,
        start: float = 0.25,
        end: float = 1.0,
        multiplier: float = 0.5,
        prefer: str = "easy",
        rate: float = 1.0,
        pace: str = "cycle",
        warm: float = 0.0,
        self_paced: bool = False,
        scorer_steps: int | None = None,
        scorer_lr: float = 2e-3,
        scores: Tensor | None = None,
        model_factory: Callable[[], nn.Module] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 < start <= 1:
            raise ValueError(f"start is {start}; it must lie in (0, 1]")
        if not start <= end <= 1:
            raise ValueError(f"end is {end}; it must lie in [start, 1] = [{start}, 1]")
        if not 0 < multiplier < 1:
            raise ValueError(f"multiplier is {multiplier}; it must lie in (0, 1)")
        if not 0 <= warm < 1:
            raise ValueError(f"warm is {warm}; it must lie in [0, 1)")
        if not (rate > 0 and scorer_lr > 0):
            raise ValueError(f"rate is {rate} and scorer_lr is {scorer_lr}; both must be above 0")
        if scorer_steps is not None and scorer_steps < 1:
            raise ValueError(f"scorer_steps is {scorer_steps}; it must be at least 1")
        for name, value, allowed in (("prefer", prefer, PREFERENCES), ("pace", pace, PACES)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
        self.start, self.end, self.multiplier = start, end, multiplier
        self.prefer, self.rate, self.pace, self.warm, self.self_paced = prefer, rate, pace, warm, self_paced
        self.scorer_steps, self.scorer_lr, self.model_factory = scorer_steps, scorer_lr, model_factory
        self.generator = generator or torch.Generator().manual_seed(0)
        self.log_q = None if scores is None else log_weights(scores, prefer, rate)
        self.size, self.rising = start, True

    @property
    def idle(self) -> bool:
        """Whether every epoch visits every row, so that there is nothing to choose."""
        return self.start == 1.0

    def epoch(self, order: Tensor, progress: float = 0.0) -> Tensor:
        """The rows of the next epoch out of a permutation (n,); `progress` in [0, 1] sets the share where pace="rise"."""
        size = self.size if self.pace == "cycle" else self.start + (self.end - self.start) * progress
        self.size, self.rising = next_size(self.size, self.rising, self.start, self.end, self.multiplier)
        if size >= 1.0:
            return order
        log_q = self.log_q if self.log_q is not None else torch.zeros(len(order))
        if len(log_q) != len(order):
            raise ValueError(f"there are {len(log_q)} scores for {len(order)} rows; give one score for every row")
        rows = int(size * len(order) + ROUNDING)
        return order[draw(log_q, max(1, rows), self.generator)[order]]

    def prepare(self, run: Any) -> None:
        """Train the reference model and score every training row, unless scores were given or are not needed."""
        if self.idle or self.self_paced or self.log_q is not None or self.prefer == "random":
            return
        if self.model_factory is None:
            raise ValueError("model_factory is None; give one, or scores, or self_paced=True")
        steps, size = self.scorer_steps or run.budget.steps, run.budget.batch_size
        x, y = run.train.x, run.train.y
        model = fit_network(self.model_factory(), x, y, steps, size, self.scorer_lr, self.generator)
        self.log_q = log_weights(score(model, x, y).cpu(), self.prefer, self.rate)  # orders are drawn on the CPU
        run.extra_passes += steps * size + len(y) / 3  # scoring is a forward pass, about a third of an update

    def order(self, run: Any, order: Tensor) -> Tensor:
        """The rows this epoch visits."""
        progress = run.step / run.budget.steps
        if self.idle or progress < self.warm:
            return order
        if self.self_paced and self.prefer != "random":
            self.log_q = log_weights(score(run.model, run.train.x, run.train.y).cpu(), self.prefer, self.rate)
            run.extra_passes += len(order) / 3
        return self.epoch(order, (progress - self.warm) / (1 - self.warm))

    def state_dict(self) -> dict[str, Any]:
        """Scores, place in the cycle, random stream."""
        place = {"size": self.size, "rising": self.rising, "generator": self.generator.get_state()}
        return place if self.log_q is None else {**place, "log_q": self.log_q.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.size, self.rising, self.log_q = state["size"], state["rising"], state.get("log_q")
        self.generator.set_state(state["generator"])
