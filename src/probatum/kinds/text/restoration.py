"""Texts in arena generate: they cannot be restored."""

from __future__ import annotations

from probatum.errors import InputError
from probatum.spec import Spec


def check(spec: Spec) -> None:
    """InputError: there are no numbers to add noise to."""
    raise InputError("arena generate adds noise to numbers; texts have none")
