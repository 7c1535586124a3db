"""The faults an audit can find, what they are called, and the tags of techniques that answer them."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probatum import catalogue, inject, slots
from probatum.rooms.kind import takes
from probatum.spec import Spec

MOST = 6
"""Techniques named for one fault."""
PLAYED = ("predict", "select", "probe")
"""Arenas whose techniques mend or measure a fault of a trained model."""


@dataclass(frozen=True)
class Fault:
    """A fault: words for it, and the tags that a technique's card carries if it was made against it."""

    words: str
    tags: tuple[str, ...]


FAULTS = {
    "overconfident": Fault("surer than right", ("calibration",)),
    "underconfident": Fault("less sure than right", ("calibration",)),
    "miscalibrated": Fault("confidence is not the chance of being right", ("calibration",)),
    "errors-unnoticed": Fault("confidence does not tell errors from right answers", ("uncertainty", "calibration")),
    "fragile": Fault("mild corruption of the inputs costs much", ("corruption", "domain shift", "robustness")),
    "shifted": Fault("the rows are not like the reference rows", ("domain shift", "shift")),
    "label-shift": Fault("the classes come in other shares", ("label shift", "imbalance")),
    "noisy-labels": Fault("labels contradict what like rows say", ("label-noise", "noisy labels")),
    "outliers": Fault("rows unlike any reference row", ("ood", "outliers")),
    "weak-group": Fault("a group of rows fares much worse", ("worst-group", "shortcut", "imbalance")),
    "shortcut": Fault("nearly every answer hangs on one part of the input", ("shortcut", "worst-group")),
}
"""Name -> fault; a card tagged "binary" is for two classes alone. Techniques are found through their cards' tags, so a new one is advised without being listed here."""


def advised(faults: Iterable[str], spec: Spec, most: int = MOST) -> list[str]:
    """Ids of techniques that answer these faults and take such data: those of the first tags first, what mends before what measures, then by id."""
    found: dict[str, None] = {}
    for fault in faults:
        for tag in FAULTS[fault].tags:
            fitting = [name for name in catalogue.find(tag=tag) if _fits(name, spec)]
            found |= dict.fromkeys(sorted(fitting, key=_arena))
    return list(found)[:most]


def try_commands(ids: Sequence[str], data: str, target: str) -> list[str]:
    """`probatum try` of these techniques on the data: one command for each arena they play in."""
    found = []
    for arena in PLAYED:
        mine = [name for name in ids if slots.arena_of(catalogue.place(name).slot) == arena]
        words = ["probatum", "try", *mine, "--data", data, *(["--target", target] if target else [])]
        found += [shlex.join(words)] if mine else []
    return found


def _fits(name: str, spec: Spec) -> bool:
    card = catalogue.card(name)
    if _arena(name) == len(PLAYED) or "pretrained" in card.needs or ("binary" in card.tags and spec.outputs != 2):
        return False
    return not takes(card, spec.modality, spec.task) and not asks_for_a_setting(name)


def asks_for_a_setting(name: str) -> bool:
    """Whether it cannot be tried by its bare name."""
    fixed = slots.fixed(catalogue.place(name).slot)
    entry = catalogue.entry(name)
    settings = inject.settings_of(getattr(entry, "for_model", entry), fixed)
    return any(default is inspect.Parameter.empty for default in settings.values())


def _arena(name: str) -> int:
    """Place of its arena in `PLAYED`; behind the last where it is none of them."""
    arena = slots.arena_of(catalogue.place(name).slot)
    return PLAYED.index(arena) if arena in PLAYED else len(PLAYED)
