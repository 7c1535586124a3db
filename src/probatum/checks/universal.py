"""Checks that every technique must pass, whatever its slot; what "trying it" means is the slot's own `exercise`."""

from __future__ import annotations

import inspect

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
    """A numeric setting of -12345 raises an error that names it."""
    entry = getattr(subject.entry, "for_model", subject.entry)
    fixed = slots.fixed(subject.slot)
    usual = inject.settings_of(entry, fixed).items()
    numeric = {name: type(value)(ABSURD) for name, value in usual if type(value) in (int, float) and name not in ANY}
    if not numeric:
        raise NotThisOneError("no numeric settings")
    for name, absurd in numeric.items():
        settings = {**subject.card.tiny, name: absurd}
        expect_error(lambda chosen=settings: exercise.exercise(subject, chosen), "12345", f"{name}={absurd}")


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
