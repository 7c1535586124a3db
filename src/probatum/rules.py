"""Rules of the contests that let a user set some: one frozen value an arena, given to `Study` as ``rules``.

Every field may be None, which leaves the choice to the arena (by the data). Bad values are refused by the arena's
``contest`` before anything is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class StreamRules:
    """Continual learning (arena stream).

    Attributes:
        stages: in how many stages the classes come; None = 5, or as many as divide the classes.
        base_classes: classes of the first stage; None = as many as in the others.
        memory: bytes, or words such as ``"50KB"``, that may be kept between stages; None = 5 % of the training rows'.
        protocol: ``"class"`` (None), ``"task"`` or ``"free"``, see `probatum.arenas.stream.arena.PROTOCOLS`.
    """

    arena: ClassVar[str] = "stream"

    stages: int | None = None
    base_classes: int | None = None
    memory: float | str | None = None
    protocol: str | None = None


@dataclass(frozen=True)
class AcquireRules:
    """Active learning (arena acquire): labels are asked for round after round.

    Attributes:
        start: labels at the beginning, drawn at random and shared by all arms of a seed; None = 2 a class, at least 20.
        query: labels asked for in a round; None = as many as at the beginning.
        rounds: how many times labels are asked for; None = 6, or as many as the rows allow.
    """

    arena: ClassVar[str] = "acquire"

    start: int | None = None
    query: int | None = None
    rounds: int | None = None


Rules = StreamRules | AcquireRules
