"""Checks over every value that a card lets the tuner choose, not the defaults alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from probatum.checks import exercise
from probatum.checks.subject import NotThisOneError, Subject, demand, fingerprint


def check_tuned_values_work(subject: Subject) -> None:
    """At every value of `tune`, one at a time beside the card's tiny settings, it gives finite results."""
    if not subject.card.tune:
        raise NotThisOneError("its card lets the tuner choose nothing")
    for settings in subject.variants():
        bad = [value for value in _tensors(results(subject, settings)) if value.isnan().any()]
        demand(not bad, f"{_told(subject, settings)}: the result holds NaN")


def check_settings_matter(subject: Subject) -> None:
    """Of every entry of `tune` two values give other bits: a setting that is read nowhere is tuned for nothing."""
    if not subject.card.tune:
        raise NotThisOneError("its card lets the tuner choose nothing")
    idle = [name for name in subject.card.tune if not _matters(subject, name)]
    demand(
        not idle,
        f"{', '.join(idle)}: all values of `tune` give the same bits at the card's tiny settings, alone and beside other "
        "values of `tune`; is the setting used?",
    )


def _matters(subject: Subject, name: str) -> bool:
    seen = {
        fingerprint(results(subject, settings)) for settings in subject.variants() if name in _own(subject, settings)
    }
    usual = fingerprint(results(subject, {**subject.card.tiny}))
    if seen - {usual} or len(seen) > 1:
        return True
    return any(len({fingerprint(results(subject, one)) for one in pair}) > 1 for pair in _beside(subject, name))


def _beside(subject: Subject, name: str) -> Iterator[list[dict[str, Any]]]:
    """Two values of a setting beside each value of another: some act only there."""
    values = subject.values(name)
    for other in subject.card.tune:
        for value in [] if other == name else subject.values(other):
            rest = {**subject.card.tiny, other: value}
            yield [{**rest, name: values[0]}, {**rest, name: values[-1]}]


def results(subject: Subject, settings: Mapping[str, Any]) -> Any:
    """What the slot's small use gives at these settings; kept, since several checks ask."""
    key = (subject, repr(sorted(settings.items())))
    if key not in _RESULTS:
        _RESULTS[key] = exercise.exercise(subject, settings)
    return _RESULTS[key]


_RESULTS: dict[tuple[Subject, str], Any] = {}


def _own(subject: Subject, settings: Mapping[str, Any]) -> list[str]:
    tiny = subject.card.tiny
    return [
        name for name in subject.card.tune if name in settings and (name not in tiny or settings[name] != tiny[name])
    ]


def _told(subject: Subject, settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={settings[name]!r}" for name in _own(subject, settings)) or "tiny settings"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value if value.is_floating_point() else torch.zeros(1)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
