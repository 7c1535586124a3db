"""What a technique says of what it did, as names and numbers: whatever else it gives is refused where it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reported(technique: object, name: str) -> dict[str, float]:
    """What the ``report()`` of a method or learner gives; {} where it has none.

    Args:
        technique: the method or learner.
        name: its id, for the messages.

    Raises:
        TypeError: it is no mapping of names to single real numbers.
    """
    found: Any = getattr(technique, "report", dict)()
    if not isinstance(found, Mapping):
        raise TypeError(f"report() of {name} gives {type(found).__name__}; give a dict of names and numbers")
    return {_name(key, name): _number(value, key, name) for key, value in found.items()}


def _name(key: Any, technique: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"report() of {technique} has {key!r} for a name; give strings")
    return str.__str__(key)  # of classes of their own, as of enumerations, the text alone


def _number(value: Any, key: str, technique: str) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"report() of {technique} has {type(value).__name__} for {key!r}; give one real number"
        ) from None
