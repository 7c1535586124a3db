"""Corruptions of a kind of data that has none of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probatum.spec import Spec


def corruptions(spec: Spec) -> Mapping[str, Any]:
    """Those that can change examples of this spec, by name: none."""
    return {}
