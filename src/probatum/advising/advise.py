"""Advice before any training: which techniques to try first on these data, why, and how well such an order has done."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probatum import catalogue, slots
from probatum.advising import evidence
from probatum.advising.evidence import Earlier
from probatum.advising.facts import DataFacts, facts_of
from probatum.advising.rank import TRAITS, Ranked, ranked
from probatum.auditing.faults import asks_for_a_setting
from probatum.bench.making import not_applicable
from probatum.card import Card
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.options import words_for
from probatum.report.commands import own_words
from probatum.settings import Reading, checked, fitting, with_target

FIRST = 5
"""Techniques that are advised where nothing else is asked; as many as `make advice` counts."""
OTHERS = ("select", "acquire", "stream")
"""Contests besides prediction whose techniques are told of where the data show what they are made for."""


@dataclass(frozen=True)
class Advice:
    """What to try first.

    Attributes:
        facts: what was found out about the data.
        order: every technique that can be tried, the most promising first.
        first: how many of them are advised.
        unfit: technique -> why it cannot be tried.
        rests: what the order rests on, in a sentence.
        measured: how well such an order has done, in a sentence.
        notes: what was not looked at, and why.
        command: the words of `probatum try` with the advised techniques; () for data handed over in Python.
    """

    facts: DataFacts
    order: tuple[Ranked, ...]
    first: int
    unfit: Mapping[str, str]
    rests: str
    measured: str
    notes: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @property
    def advised(self) -> tuple[Ranked, ...]:
        """The techniques to try first."""
        return self.order[: self.first]

    @property
    def techniques(self) -> list[str]:
        """Their ids, as `Study` takes them."""
        return [one.technique for one in self.advised]

    @property
    def shell(self) -> str:
        """The command to copy; "" for data handed over in Python."""
        return shlex.join(self.command)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "data": self.facts.name,
            "notices": list(self.facts.notices),
            "facts": [asdict(fact) for fact in self.facts.facts],
            "techniques": self.techniques,
            "order": [asdict(one) for one in self.order],
            "unfit": dict(self.unfit),
            "rests": self.rests,
            "measured": self.measured,
            "notes": list(self.notes),
            "command": self.shell,
        }

    def __str__(self) -> str:
        told = [*self.facts.notices, *(fact.words for fact in self.facts.facts)]
        lines = [f"{self.facts.name}: {'; '.join(told)}"]
        lines += [f"{i}. {one.technique} ({one.points:+.2f}): {why(one)}" for i, one in enumerate(self.advised, 1)]
        return "\n".join((*lines, self.rests, self.measured))


def advise(
    data: Any,
    *,
    target: str | None = None,
    reading: Reading | None = None,
    stores: str | Path | Sequence[str | Path] = (),
    top: int = FIRST,
) -> Advice:
    """Which techniques to try first on data, and why; nothing is trained but scikit-learn's quick looks at the rows.

    Techniques are those that `probatum try` takes when none is named. How they are ranked stands in
    `probatum.advising.rank`.

    Args:
        data: as `probatum.Study` takes them.
        target: column to predict.
        reading: how data are read, `probatum.Reading`.
        stores: files or database URLs of earlier studies, whose verdicts count by how alike their data are.
        top: how many techniques are advised.

    Raises:
        InputError: for data or stores that cannot be used.

    Example:
        >>> advice = advise("iris")
        >>> len(advice.techniques)
        5
    """
    top = fitting(top, int, "top")
    if top < 1:
        raise InputError(f"top is {top}; give 1 or more techniques to advise")
    said = with_target(checked(reading, Reading), target)
    if said.world is not None:
        raise InputError(f"world is {said.world!r}, but advice is on data as they are; leave it out")
    paths = [str(stores)] if isinstance(stores, str | Path) else [str(path) for path in stores]
    kept = [evidence.in_store(path) for path in paths]  # before the data, which may take long
    dataset = open_dataset(data, said)
    facts = facts_of(dataset, time=said.time)
    shipped, measured = evidence.shipped()
    earlier = evidence.once([*shipped, *(study for found, _ in kept for study in found)])
    cards, unfit = applicable(dataset, facts, earlier)
    order = ranked(cards, facts, earlier, evidence.claims())
    notes = (*facts.notes, *(note for _, left in kept for note in left), *elsewhere(dataset, facts))
    ids = [one.technique for one in order[:top]]
    told = [study for study in earlier if study.outcomes]
    out = sum(study.source == evidence.SHIPPED for study in told)
    return Advice(
        facts=facts,
        order=tuple(order),
        first=min(top, len(order)),
        unfit=unfit,
        rests=rests_on(order, len(told) - out, out),
        measured=how_well(measured, facts, bool(told)),
        notes=notes,
        command=try_words(ids, data, said),
    )


def applicable(dataset: Any, facts: DataFacts, earlier: Sequence[Earlier]) -> tuple[dict[str, Card], dict[str, str]]:
    """The cards of the techniques that can be tried on data by their bare names, and why the others cannot.

    Beside what cards say, a technique counts as unfit where studies of data of the same sort left it out and none tried it.

    Raises:
        InputError: none can.
    """
    cards: dict[str, Card] = {}
    unfit: dict[str, str] = {}
    for name in catalogue.names():
        if slots.arena_of(catalogue.place(name).slot) != slots.PREDICT:
            continue
        reason = _unfit(name, dataset, facts, earlier)
        if reason:
            unfit[name] = reason.removeprefix(f"{name} ").removeprefix(f"{name}: ")
        else:
            cards[name] = catalogue.card(name)
    if not cards:
        raise InputError(f"no technique applies to {dataset.name}, {facts.profile.modality} of {facts.profile.task}")
    return cards, unfit


def _unfit(name: str, dataset: Any, facts: DataFacts, earlier: Sequence[Earlier]) -> str | None:
    reason = not_applicable(name, dataset, pretrained=False)
    if reason:
        return reason
    if "binary" in catalogue.card(name).tags and len(dataset.classes) != 2:
        return f"is for two classes; there are {len(dataset.classes)}"
    if asks_for_a_setting(name):
        return "asks for a setting; `probatum show` tells which"
    mine = facts.profile
    alike = [s for s in earlier if (s.profile.modality, s.profile.task) == (mine.modality, mine.task)]
    alike = [s for s in alike if (s.profile.classes == 2) == (mine.classes == 2)]
    told = [study.unfit[name] for study in alike if name in study.unfit]
    return told[-1] if told and not any(name in study.outcomes for study in alike) else None


def elsewhere(dataset: Any, facts: DataFacts) -> list[str]:
    """Techniques of other contests that are made for what the data show, a line a trait."""
    found = []
    for trait in facts.traits:
        words, tags = TRAITS[trait]
        names = {name for tag in tags for name in catalogue.find(tag=tag)}
        arenas: dict[str, list[str]] = {}
        for name in sorted(names):
            arena = slots.arena_of(catalogue.place(name).slot)
            if arena in OTHERS and not not_applicable(name, dataset, pretrained=False):
                arenas.setdefault(arena, []).append(name)
        told = [f"{', '.join(ids)} ({arena})" for arena, ids in arenas.items()]
        found += [f"also made for {words}, judged by contests of their own: {'; '.join(told)}"] if told else []
    return found


def why(one: Ranked) -> str:
    """A technique's reasons in a sentence."""
    return "; ".join(reason.words for reason in one.reasons) or "no fact, claim or study speaks for it or against it"


def rests_on(order: Sequence[Ranked], own: int, shipped: int) -> str:
    """What an order rests on, in a sentence."""
    by = [{reason.rests for reason in one.reasons} for one in order]
    carded, claimed, studied = (sum(rests in found for found in by) for rests in ("card", "claims", "studies"))
    parts = [f"cards that fit the data's facts ({carded} of {len(order)} techniques)"]
    parts.append(f"claims recorded with Probatum ({claimed})")
    kept = [f"{own} in your stores"] if own else []
    kept += [f"{shipped} {evidence.SHIPPED}"] if shipped else []
    if kept:
        parts.append(f"earlier studies, {' and '.join(kept)} ({studied})")
    told = "The order rests on " + ", ".join(parts[:-1]) + f" and {parts[-1]}."
    return told if kept else f"{told} No earlier study speaks: give stores of yours."


def how_well(measured: Mapping[str, Any] | None, facts: DataFacts, with_studies: bool) -> str:
    """How well such an order has done by `make advice`, in a sentence; nothing is claimed where nothing was recorded."""
    if measured is None:
        return "How well this order does has not been measured (`make advice` measures it)."
    mine = measured["orders"]["advice" if with_studies else "cards"]
    basis = "with the studies of the other tables" if with_studies else "by cards and claims alone"
    told = (
        f"Over {measured['gaining']} tables on which something gains, each left out in turn, the first "
        f"{measured['tried']} {basis} held {_share(mine)} of the best technique's gain; in random order "
        f"{_share(measured['orders']['random'])}, in always the same order {_share(measured['orders']['same'])}."
    )
    difference = measured["beside"]["advice - random" if with_studies else "cards - random"]
    if difference["low"] <= 0:
        told += " So few tables do not show that it is better than a random order."
    if facts.profile.modality not in measured["modalities"]:
        told += f" That was on {', '.join(measured['modalities'])} data; on {facts.profile.modality} it has not been measured."
    return told


def _share(found: Mapping[str, float]) -> str:
    return f"{100 * found['share']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"


def try_words(ids: Sequence[str], data: Any, said: Reading) -> tuple[str, ...]:
    """`probatum try` of these techniques, with what was said of the data; () for data handed over in Python."""
    if not isinstance(data, str | Path) or not isinstance(said.split, str | None):
        return ()
    fields = {name: getattr(said, name) for name in said.__dataclass_fields__}
    words = ["probatum", "try", *ids, "--data", str(data)]
    words += [] if said.target is None else ["--target", said.target]
    return (*words, *words_for(Reading, fields), *own_words(dict(said.options)), *_outside(ids))


def _outside(ids: Sequence[str]) -> list[str]:
    """The files and folders from outside that the command needs."""
    from probatum.rooms import find

    places = [catalogue.place(name) for name in ids]
    words = [word for p in places if p.module.startswith(catalogue.ADDED) for word in ("--technique", str(p.path))]
    kinds = [str(room.folder) for room in find.added() if room.sort == "kind"]
    return words + [word for folder in kinds for word in ("--kind", folder)]
