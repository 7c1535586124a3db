"""Images in arena generate: pixels as they are."""

from __future__ import annotations

from probatum.spec import Spec

NOISE = 0.1
NEIGHBOURS = True


def check(spec: Spec) -> None:
    """Images can always be restored."""


def units_over(spec: Spec) -> tuple[int, ...]:
    """None: pixels keep their values."""
    return ()
