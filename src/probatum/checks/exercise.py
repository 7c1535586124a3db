"""One small deterministic use of a technique of any slot; what that is, the slot's own module says.

``checks/SLOT.py`` has ``exercise(subject, settings)``, which returns what identifies the result; where a technique can have
settings at which it does nothing, ``neutral(subject, settings)``, the result without it and with it at these settings; and, where
global random numbers are no fault, ``draws(subject)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch

from probatum.checks.subject import NotThisOneError, Subject, fingerprint


class Used(NamedTuple):
    """A use at the card's tiny settings: the result's fingerprint, and whether torch's global state moved."""

    result: str
    drew: bool


def slot_checks(slot: str) -> ModuleType:
    """The module that checks a slot."""
    return importlib.import_module(f"probatum.checks.{slot}")


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Any:
    """Use the technique once on toy data, the way its slot does."""
    return slot_checks(subject.slot).exercise(subject, settings)


def used(subject: Subject) -> Used:
    """A use at the card's tiny settings; the first one is kept for whoever asks later."""
    return _used(subject)


@cache
def _used(subject: Subject) -> Used:
    return use_again(subject)


def use_again(subject: Subject) -> Used:
    """One more use."""
    before = torch.get_rng_state()
    result = fingerprint(exercise(subject))
    return Used(result, not torch.equal(before, torch.get_rng_state()))


def global_draws(subject: Subject) -> bool:
    """Whether using the technique moves torch's global random state."""
    own = getattr(slot_checks(subject.slot), "draws", None)
    return used(subject).drew if own is None else own(subject)


def neutral_pair(subject: Subject) -> tuple[Any, Any]:
    """The result without the technique and with it at its neutral settings."""
    if subject.card.neutral is None:
        raise NotThisOneError("the card says it has no neutral point")
    pair = getattr(slot_checks(subject.slot), "neutral", None)
    if pair is None:
        raise AssertionError(f"slot {subject.slot} has no notion of doing nothing; let the card's neutral be None")
    return pair(subject, dict(subject.card.neutral))
