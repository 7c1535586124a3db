"""What a user may set of active learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class AcquireRules:
    """Active learning: labels are asked for round after round. What is not given is chosen by the data.

    Attributes:
        start: labels at the beginning, drawn at random and shared by all arms of a seed; default: 2 a class, at least 20.
        query: labels asked for in a round; default: as many as at the beginning.
        rounds: how many times labels are asked for; default: 6, or as many as the rows allow.
    """

    arena: ClassVar[str] = "acquire"

    start: int | None = field(default=None, metadata={"flag": "--start-labels"})
    query: int | None = field(default=None, metadata={"flag": "--query-labels"})
    rounds: int | None = None


Rules = AcquireRules
