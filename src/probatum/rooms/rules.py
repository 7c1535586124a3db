"""The rules of an arena's contest that a user may set: a frozen dataclass `Rules` in ``arenas/NAME/rules.py``."""

from __future__ import annotations

from functools import cache

from probatum.rooms import find


@cache
def rules_of(name: str) -> type | None:
    """The rules that a user may set in this arena, None where there are none; loads neither torch nor the arena."""
    module = find.part(find.room("arena", name), "rules")
    return None if module is None else module.Rules
