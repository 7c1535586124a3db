"""The cross-entropy method over settings: draw from a product law, refit it to the best draws, repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Space = Mapping[str, Sequence[Any] | tuple[float, float] | tuple[float, float, str]]
"""Name -> list of choices, or (low, high), or (low, high, "log")."""


@dataclass(frozen=True)
class Found:
    """What a search ends with: the best settings and their loss, all (settings, loss), and the spread of each law."""

    best: dict[str, Any]
    loss: float
    tried: tuple[tuple[dict[str, Any], float], ...]
    spread: dict[str, float]


def cross_entropy_search(
    space: Space,
    loss: Callable[[dict[str, Any]], float],
    rng: np.random.Generator,
    *,
    rounds: int = 5,
    draws: int = 20,
    elite: float = 0.1,
    smooth: float = 0.7,
) -> Found:
    """Minimise a loss over settings (Rubinstein and Kroese 2004, "The Cross-Entropy Method", algorithm 4.1).

    Args:
        space: what may be set; choices get a probability each, ranges a normal law (of the log) cut to the range.
        loss: settings -> number; what is not finite counts as worst.
        rng: for the draws.
        rounds: refits.
        draws: settings tried in each.
        elite: share in (0, 1] that the law is refitted to, at least two.
        smooth: weight in (0, 1] of the refitted law against the one before.

    Raises:
        ValueError: an empty space, a range or setting that makes no sense.
    """
    if not space or rounds < 1 or draws < 2 or not 0 < elite <= 1 or not 0 < smooth <= 1:
        raise ValueError(
            f"space has {len(space)} entries, rounds is {rounds}, draws {draws}, elite {elite}, smooth {smooth}; "
            "need a space, rounds >= 1, draws >= 2, elite and smooth in (0, 1]"
        )
    laws: dict[str, _Choice | _Range] = {
        name: _Range(name, values) if isinstance(values, tuple) else _Choice(name, values)
        for name, values in space.items()
    }
    tried: list[tuple[dict[str, Any], float]] = []
    for _ in range(rounds):
        batch = []
        for _ in range(draws):
            units = {name: law.draw(rng) for name, law in laws.items()}
            settings = {name: laws[name].value(unit) for name, unit in units.items()}
            value = float(loss(settings))
            tried.append((settings, value))
            batch.append((value if math.isfinite(value) else math.inf, units))
        batch.sort(key=lambda item: item[0])
        chosen = [units for _, units in batch[: max(2, math.ceil(elite * draws))]]
        for name, law in laws.items():
            law.refit([units[name] for units in chosen], smooth)
    best, least = min(tried, key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)
    return Found(best, least, tuple(tried), {name: law.spread() for name, law in laws.items()})


class _Choice:
    def __init__(self, name: str, values: Sequence[Any]) -> None:
        if len(values) == 0:
            raise ValueError(f"{name!r} has no choices")
        self.values, self.weights = list(values), np.full(len(values), 1 / len(values))

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.choice(len(self.values), p=self.weights))

    def value(self, unit: float) -> Any:
        return self.values[int(unit)]

    def refit(self, units: list[float], smooth: float) -> None:
        counts = np.bincount([int(unit) for unit in units], minlength=len(self.values)) / len(units)
        self.weights = smooth * counts + (1 - smooth) * self.weights

    def spread(self) -> float:
        """1 - the largest probability."""
        return float(1 - self.weights.max())


class _Range:
    def __init__(self, name: str, values: tuple[Any, ...]) -> None:
        low, high = values[:2]
        self.log = len(values) == 3
        if not low < high or (self.log and (values[2] != "log" or not low > 0)):
            raise ValueError(
                f"{name!r} ranges over {values}; give (low, high), or (low, high, 'log') with 0 < low < high"
            )
        self.low, self.high = (math.log(low), math.log(high)) if self.log else (float(low), float(high))
        self.mean, self.sd = 0.5, 0.5  # of the position in the range, 0 .. 1

    def draw(self, rng: np.random.Generator) -> float:
        for _ in range(100):
            unit = float(rng.normal(self.mean, self.sd))
            if 0 <= unit <= 1:
                return unit
        return min(1.0, max(0.0, self.mean))

    def value(self, unit: float) -> float:
        value = self.low + unit * (self.high - self.low)
        return math.exp(value) if self.log else value

    def refit(self, units: list[float], smooth: float) -> None:
        self.mean = smooth * float(np.mean(units)) + (1 - smooth) * self.mean
        self.sd = smooth * float(np.std(units)) + (1 - smooth) * self.sd

    def spread(self) -> float:
        """Standard deviation of the position in the range."""
        return self.sd
