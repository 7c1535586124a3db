"""What is asked when texts are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Texts in a table.

    Attributes:
        text: column that holds the text.
    """

    text: str | None = None
