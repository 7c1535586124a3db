"""What a user may set of continual learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class StreamRules:
    """Continual learning: classes come stage after stage. What is not given is chosen by the data.

    Attributes:
        stages: in how many stages the classes come; default: 5, or as many as divide them.
        base_classes: classes of the first stage; default: as many as in the others.
        memory: what may be kept between stages, bytes or words such as 50KB; default: 5 % of the training rows' own.
        protocol: class (all classes seen compete), task (told at prediction) or free (no boundaries).
    """

    arena: ClassVar[str] = "stream"

    stages: int | None = None
    base_classes: int | None = None
    memory: float | str | None = field(default=None, metadata={"flag": "--stream-memory"})
    protocol: str | None = None


Rules = StreamRules
