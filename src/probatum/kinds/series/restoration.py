"""Series in arena generate: channels in units of their spread over rows and steps."""

from __future__ import annotations

from probatum.errors import InputError
from probatum.spec import Spec

NEIGHBOURS = True


def check(spec: Spec) -> None:
    """InputError where series are padded."""
    if spec.masked:
        raise InputError("arena generate restores series of one length; these are padded")


def units_over(spec: Spec) -> tuple[int, ...]:
    """Rows and steps."""
    return (0, 2)
