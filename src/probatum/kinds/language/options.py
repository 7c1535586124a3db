"""What is asked when a long text is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Language modelling.

    Attributes:
        tokens: char (characters, the default) or bpe (byte pairs).
        vocabulary: number of byte pairs' ids.
        length: tokens of a window.
    """

    tokens: str | None = None
    vocabulary: int | None = None
    length: int | None = None
