"""What earlier studies and recorded claims say of techniques, and how alike two data sets are."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from probatum import catalogue, slots
from probatum.advising.facts import Profile, profile
from probatum.bench.plan import StudyPlan
from probatum.bench.results import Results
from probatum.bench.store import Store
from probatum.bench.stored import results_of
from probatum.claims.record import evidence as recorded_claims
from probatum.errors import InputError

RECORD = Path(__file__).with_name("record.json")
"""What `make advice` found, with the studies that it rests on; ships with Probatum."""
SHIPPED = "shipped with Probatum"
APART = 2.0
"""Steps between data of two modalities, and between two tasks; each step halves the weight of a study."""
UNTRIED = "not applicable"


@dataclass(frozen=True)
class Outcome:
    """What one study found of one technique on its primary measure.

    Attributes:
        word: the verdict's word.
        gain: mean paired difference to the baseline in margins (smallest differences that matter), positive = better; None
            where it failed.
        seeds: how many paired seeds it rests on.
    """

    word: str
    gain: float | None
    seeds: int


@dataclass(frozen=True)
class Earlier:
    """One earlier study.

    Attributes:
        data: name of its data.
        fingerprint: of its data.
        profile: what its data are compared by.
        source: where it is kept, e.g. "store.sqlite, study 3f2a91c0".
        outcomes: technique -> what it found.
        unfit: technique -> why it could not be tried there.
    """

    data: str
    fingerprint: str
    profile: Profile
    source: str
    outcomes: Mapping[str, Outcome]
    unfit: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; `earlier_from` reads it."""
        return asdict(self)


def earlier_from(value: Mapping[str, Any]) -> Earlier:
    """What `Earlier.as_json` wrote."""
    outcomes = {name: Outcome(**its) for name, its in value["outcomes"].items()}
    return Earlier(**{**value, "profile": Profile(**value["profile"]), "outcomes": outcomes})


def likeness(a: Profile, b: Profile) -> float:
    """How alike two data sets are, from 0 to 1: every step between them halves it.

    A step is: ten times the rows; four times the classes; a rarest class ten times as rare (beside even shares). Another
    modality is two steps, another task two.
    """
    steps = APART * (a.modality != b.modality) + APART * (a.task != b.task)
    if a.task == b.task and a.modality == b.modality:
        steps += abs(math.log10(max(a.n, 1) / max(b.n, 1)))
    if a.classes and b.classes:
        steps += abs(math.log2(a.classes / b.classes)) / 2
        steps += abs(math.log10(max(a.rarest, 1e-6) / max(b.rarest, 1e-6)))
    return 2.0**-steps


def earlier_of(results: Results, source: str) -> Earlier:
    """What a finished study says: techniques tried alone, on its primary measure."""
    plan, counts = results.plan, (results.summary.get("classes") or {})
    found: dict[str, list[Outcome]] = {}
    ids = {arm.name: name for arm in plan.arms if (name := _alone(plan, arm)) is not None}
    for verdict in results.verdicts():
        name = ids.get(verdict.arm)
        if name is None or verdict.measure != plan.primary or verdict.word == UNTRIED:
            continue
        if verdict.word == "failed":
            found.setdefault(name, []).append(Outcome(verdict.word, None, len(plan.seeds)))
        elif (gain := in_margins(verdict.mean, verdict.margin)) is not None:
            found.setdefault(name, []).append(Outcome(verdict.word, gain, verdict.n))
    profiled = profile(plan.data.modality, plan.data.task, plan.data.n, tuple(counts.values()))
    outcomes = {name: _together(several) for name, several in found.items()}
    unfit = {} if plan.model else dict(plan.skipped)  # of a network of one's own it says nothing for others
    return Earlier(plan.data.name, plan.data.fingerprint, profiled, source, outcomes, unfit)


def in_margins(mean: float, margin: float) -> float | None:
    """A difference in units of the smallest that matters; None where it was not measured, or where any difference matters."""
    return mean / margin if math.isfinite(mean) and margin > 0 else None


def _alone(plan: StudyPlan, arm: Any) -> str | None:
    """The technique of an arm that differs from the baseline by it alone."""
    before = plan.base.uses()
    mine = [use.id for use in arm.recipe.uses() if use not in before]
    return mine[0] if len(mine) == 1 else None


def _together(several: Sequence[Outcome]) -> Outcome:
    """A technique that a study tried with several settings counts once: as the best of them, which a user would keep."""
    return max(several, key=lambda one: -math.inf if one.gain is None else one.gain)


def in_store(path: str) -> tuple[list[Earlier], list[str]]:
    """The finished studies of techniques for prediction in a store, and what is told of those that are left out.

    Raises:
        InputError: no store is there, or it cannot be read.
    """
    if "://" not in path and not Path(path).is_file():
        raise InputError(f"no store at {path}; `probatum try ... --store {path}` writes one")
    found: list[Earlier] = []
    left: Counter[str] = Counter()
    told: list[str] = []
    with Store(path, forgiving=True) as store:
        store.tell(told.append)
        for study in store.studies():
            why = _left_out(study.plan["plan"])
            if why:
                left[why] += 1
                continue
            try:
                found.append(earlier_of(results_of(store, study), f"{store.name}, study {study.key[:8]}"))
            except InputError:
                left["not finished"] += 1
        name = store.name
    return found, told + [f"{count} of the studies in {name} not looked at: {why}" for why, count in left.items()]


def once(studies: Sequence[Earlier]) -> list[Earlier]:
    """The studies with every technique counted once for each data set: where it had most seeds, of equals the last.

    Studies of the same data share their trials, so that a longer one holds a shorter one's.
    """
    best: dict[tuple[str, str], int] = {}
    for i, study in enumerate(studies):
        for name, its in study.outcomes.items():
            held = best.get((study.fingerprint, name))
            if held is None or its.seeds >= studies[held].outcomes[name].seeds:
                best[study.fingerprint, name] = i
    return [
        replace(study, outcomes={k: v for k, v in study.outcomes.items() if best[study.fingerprint, k] == i})
        for i, study in enumerate(studies)
    ]


def _left_out(plan: Mapping[str, Any]) -> str:
    """Why a stored study is no evidence for plain training on data as they are; "" where it is."""
    if plan["arena"] != slots.PREDICT:
        return "of another arena"
    if plan["data"].get("world"):
        return "in worlds of known truth"
    if plan.get("pretrained"):
        return "from pretrained weights"
    return ""


def shipped() -> tuple[list[Earlier], dict[str, Any] | None]:
    """The studies that ship with Probatum and what `make advice` measured on them; nothing where none was recorded."""
    if not RECORD.is_file():
        return [], None
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return [earlier_from(one) for one in record["studies"]], record["measured"]


def claims() -> dict[str, tuple[int, int]]:
    """technique -> how many claims of its paper were reproduced here, and of how many that were run."""
    found: dict[str, tuple[int, int]] = {}
    known = set(catalogue.names())
    for entry in recorded_claims().values():
        name = entry["technique"]
        if name in known:
            good, of = found.get(name, (0, 0))
            found[name] = (good + (entry["verdict"] == "reproduced"), of + 1)
    return found
