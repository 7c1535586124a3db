"""Slots: where techniques plug in. Each is one file in ``contracts/``, found by name, that says in literals

- ``ARENA``: the arena that techniques of this slot play in,
- ``TRAINED``: whether the training loop trains with them, so that they can be compared at equal steps and stacked,
- ``FIXED``: the arguments that the slot itself passes to a technique's entry, which are no settings,
- ``OFFERED``: what a technique of this slot may ask for by name beyond `probatum.inject.COMMON`.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

from probatum.errors import InputError

FOLDER = Path(__file__).parent / "contracts"
PREDICT = "predict"


@cache
def names() -> tuple[str, ...]:
    """All slots, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.py") if not file.name.startswith("_")))


@cache
def contract(slot: str) -> ModuleType:
    """What a slot promises."""
    if slot not in names():
        raise InputError(f"no slot {slot!r}; slots are {', '.join(names())}")
    return importlib.import_module(f"probatum.contracts.{slot}")


def arena_of(slot: str) -> str:
    """Which arena a slot plays in."""
    return str(contract(slot).ARENA)


def fixed(slot: str) -> tuple[str, ...]:
    """Arguments that the slot itself passes to a technique's entry."""
    return tuple(contract(slot).FIXED)


def offered(slot: str) -> tuple[str, ...]:
    """What a technique of this slot may ask for by name beyond what all may."""
    return tuple(contract(slot).OFFERED)
