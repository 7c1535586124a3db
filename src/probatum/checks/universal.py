"""Checks that every technique must pass, whatever its slot; what "trying it" means is the slot's own `exercise`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from probatum import inject, slots
from probatum.checks import exercise
from probatum.checks.fresh import elsewhere
from probatum.checks.subject import NotThisOneError, Subject, demand, expect_error, fingerprint

ABSURD = -12345
ANY = ("seed", "ignore_index")
"""Settings whose every whole number means something."""


def check_global_random_state_untouched(subject: Subject) -> None:
    """A technique draws from its own stream; torch's global state is the same before and after."""
    demand(not exercise.global_draws(subject), "it moved torch's global random state; draw from the generator offered")


def check_same_result_twice(subject: Subject) -> None:
    """The same seed gives the same bits."""
    demand(exercise.used(subject).result == exercise.use_again(subject).result, "two runs with one seed differ")


def check_same_result_in_a_fresh_process(subject: Subject) -> None:
    """The same seed gives the same bits in another process with other hash seeds."""
    here = exercise.used(subject).result
    demand(here == elsewhere(subject.name), "a fresh process gives another result for the same seed")


def check_absurd_settings_are_refused(subject: Subject) -> None:
    """A number of -12345, or a word that is no choice, raises an error that names it, whatever the setting's default is."""
    entry = getattr(subject.entry, "for_model", subject.entry)
    absurd = _absurd(entry, inject.settings_of(entry, slots.fixed(subject.slot)))
    if not absurd:
        raise NotThisOneError("no settings that a number or a word could be wrong for")
    for name, value in absurd.items():
        settings = {**subject.card.tiny, name: value}
        expect_error(lambda chosen=settings: exercise.exercise(subject, chosen), "12345", f"{name}={value!r}")


def _absurd(entry: object, usual: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Nonsense for every setting by its default's type, or where that is None by what it is annotated with."""
    function = entry.__init__ if isinstance(entry, type) else entry  # type: ignore[misc]
    told = {name: str(one.annotation) for name, one in inspect.signature(function).parameters.items()}  # type: ignore[arg-type]
    found: dict[str, int | float | str] = {}
    for name, value in usual.items():
        words = [word.strip() for word in told.get(name, "").split("|")]
        if name in ANY or isinstance(value, bool):
            continue
        if isinstance(value, int) or (value is None and "int" in words):
            found[name] = ABSURD
        elif isinstance(value, float) or (value is None and "float" in words):
            found[name] = float(ABSURD)
        elif isinstance(value, str) or (value is None and "str" in words):
            found[name] = f"no-such-{-ABSURD}"
    return found


def check_public_docstrings(subject: Subject) -> None:
    """The entry says what it takes and gives."""
    text = inspect.getdoc(subject.entry) or ""
    demand(len(text.split()) >= 8, f"{subject.card.entry} needs a docstring with shapes, ranges and errors")


def check_neutral_equals_doing_nothing(subject: Subject) -> None:
    """At the card's neutral settings the result is the baseline's, bit for bit."""
    plain, neutral = exercise.neutral_pair(subject)
    demand(
        fingerprint(plain) == fingerprint(neutral),
        f"at {dict(subject.card.neutral or {})} it differs from the baseline",
    )
