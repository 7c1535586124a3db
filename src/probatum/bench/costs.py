"""What trials of each arm take."""

from __future__ import annotations

from math import fsum


class Costs:
    """Seconds that a trial of each arm took; of an arm that has none yet those of `usual`, or the mean of all others."""

    def __init__(self, usual: str = "") -> None:
        self._usual = usual
        self._seen: dict[str, list[float]] = {}

    def __bool__(self) -> bool:
        return bool(self._seen)

    def add(self, arm: str, seconds: float) -> None:
        """One more trial."""
        self._seen.setdefault(arm, []).append(seconds)

    def knows(self, arm: str) -> bool:
        """Whether the arm has a trial."""
        return arm in self._seen

    def most(self) -> float:
        """Mean seconds of the dearest; 0 where no arm has a trial."""
        return max(map(self.of, self._seen), default=0.0)

    def of(self, arm: str) -> float:
        """Mean seconds; 0 where no arm has a trial."""
        name = arm if arm in self._seen else self._usual
        if name in self._seen:
            return fsum(self._seen[name]) / len(self._seen[name])
        return fsum(map(self.of, self._seen)) / len(self._seen) if self._seen else 0.0
