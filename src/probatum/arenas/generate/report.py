"""What a study of restoration is called by in words; it shows nothing beyond verdicts."""

from __future__ import annotations

from typing import Any

from probatum.drawing.blocks import Block

WORDS = {"noise": "standard deviation of the noise", "kept": "share of places kept for inpainting"}
"""What the rules are called."""


def blocks(results: Any) -> list[Block]:
    """None."""
    return []
