"""How rows of tables are shown: by the names of their columns."""

from __future__ import annotations

from probatum.spec import Spec


def place_names(spec: Spec) -> list[str]:
    """The names of the columns."""
    return list(spec.features)
