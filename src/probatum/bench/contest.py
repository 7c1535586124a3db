"""The rules of a study's contest, where its arena has any that a user may set."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from probatum.errors import InputError
from probatum.rooms.arena import arena
from probatum.spec import Data


def contest_of(where: str, rules: Any, data: Data, *, tune: int = 0, budget: str = "steps") -> dict[str, Any]:
    """The arena's rules with what was given, None meaning its own choice; empty where it has none.

    `rules` is the frozen value of an arena (``arenas/NAME/rules.py``), or None.

    Raises:
        InputError: rules of another arena, a tuner or equal arithmetic in one with rules, or values out of range.
    """
    if rules is not None and not hasattr(rules, "arena"):
        raise InputError(f"rules is {rules!r}; give the rules of an arena, e.g. probatum.StreamRules(...)")
    given = {} if rules is None else {name: value for name, value in asdict(rules).items() if value is not None}
    if rules is not None and rules.arena != where:
        raise InputError(
            f"{next(iter(given), 'these rules').replace('_', ' ')} belongs to the arena {rules.arena}, and what is tried "
            f"here plays in {where}; leave it out, or try a technique of that arena (`probatum list --slot {rules.arena}`)"
        )
    own = getattr(arena(where), "contest", None)
    if own is None:
        return {}
    if tune or budget != "steps":
        what = f"tune is {tune}" if tune else f"budget is {budget!r}"
        raise InputError(
            f"{what}, but in arena {where} validation rows choose nothing and steps are equal; leave it out"
        )
    return dict(own(data.spec, data.train, **given))
