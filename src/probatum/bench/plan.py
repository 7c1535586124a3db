"""Plans: frozen values that say everything a study and its trials depend on, and the keys made from them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from probatum.bench.keys import key_of as key_of
from probatum.engine import Engine
from probatum.recipe import Arm, Recipe, Training, Use
from probatum.rooms import find
from probatum.rooms.arena import Terms
from probatum.version import VERSION

SOURCES = (
    *("train", "arenas", "measure", "numerics", "data", "contracts", "kinds", "tasks", "worlds", "rooms"),
    *("recipe.py", "spec.py", "engine.py", "inject.py"),
)
"""What decides a trial's record besides its plan; an edit there makes old records count no more."""

LIBRARIES = ("torch", "numpy", "scikit-learn")


@dataclass(frozen=True)
class DataPlan:
    """Which data: identity, task, how they are split, and which world they are put into ("" = as they are).

    `splits` says how the seeds' parts come about: "folds" (`probatum.data.folds.draw_folds`), "given" (every seed has the
    same test rows, by the user's word or by time), or "random", as earlier versions drew them. `grouped`: whether groups of
    the user's are kept together, so that the question is about new groups.
    """

    name: str
    fingerprint: str
    modality: str
    task: str
    target: str
    n: int
    fractions: tuple[float, float, float]
    fixed_split: bool
    world: str = ""
    splits: str = "random"
    grouped: bool = False

    @property
    def ratio(self) -> float | None:
        """n_test / n_train where every seed re-draws the split, None where the test rows are given."""
        return None if self.fixed_split else self.fractions[2] / self.fractions[0]

    @property
    def kappa(self) -> float:
        """n_train / (n - n_train): what training sets of other data add to those of samples (Nadeau & Bengio 2003)."""
        return self.fractions[0] / (1 - self.fractions[0])


@dataclass(frozen=True, kw_only=True)
class StudyPlan(Terms):
    """A frozen study: what its trials share (`probatum.rooms.arena.Terms`), and all that it says besides.

    Attributes:
        arena: which contest.
        data: which data.
        arms: techniques that take part, the baseline not among them.
        references: built-in arms shown beside the baseline.
        skipped: technique -> why it does not apply.
        seeds: paired seeds of the screen.
        confirm: seeds on which a winner is tried again, fresh ones; () = no confirmation.
        margins: regions of practical equivalence that replace the measures' own.
        confidence: of every interval.
        question: what intervals are about, see `probatum.settings.Judging`.
        model: identity of the user's own network, "" for the built-in one.
        threads: torch threads in every trial (another number may change the last digits).
        race: numbers of seeds at which arms may stop, the last being all of them; () = every arm runs every seed.
        minutes: of a race that is cut by the clock (`probatum.bench.budget`); 0 = no budget of time.
        speed: speed setting -> what its probe found (`train.speed.probe`); empty = none was probed.
        pretrained: where the weights come from that networks start from, and what was copied; empty = none.
        beside: digests of the techniques from outside that run in the same processes as all others; () = none does.
        versions: what it is run with.
    """

    arena: str
    data: DataPlan
    arms: tuple[Arm, ...]
    references: tuple[str, ...]
    seeds: tuple[int, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    confirm: tuple[int, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 0.95
    question: str = "data"
    model: str = ""
    threads: int = 1
    race: tuple[int, ...] = ()
    minutes: float = 0.0
    speed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pretrained: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def over_seeds(self) -> str:
        """Over how many seeds it runs, in words."""
        return f"{'at most ' if self.race else ''}{len(self.seeds)} paired seed{'' if len(self.seeds) == 1 else 's'}"

    def trial(self, arm: Arm, builtin: str, seed: int, kind: str = "fit") -> dict[str, Any]:
        """The plan of one trial: everything its record depends on, and nothing else."""
        plan: dict[str, Any] = {
            "kind": kind,
            "arena": self.arena,
            "data": {
                "fingerprint": self.data.fingerprint,
                "fractions": list(self.data.fractions),
                "splits": self.data.splits,
                "task": self.data.task,
            },
            "recipe": arm.recipe.plan(),
            "salt": arm.salt,
            "builtin": builtin,
            "seed": seed,
            "model": self.model,
            "tune": self.tune,
            "threads": self.threads,
            "versions": dict(self.versions),
        }
        if self.swap and kind != "timing":
            plan["swap"] = True
        if self.tune or self.equal_compute or kind == "timing":
            plan["base"] = self.base.plan()
            plan["equal_compute"] = self.equal_compute
            plan["primary"] = self.primary
        if self.engine.plan():
            plan["engine"] = self.engine.plan()
        if self.contest:
            plan["contest"] = dict(self.contest)
        if self.beside:  # what these leave behind may be in the record: it is no clean study's
            plan["beside"] = list(self.beside)
        return plan

    def describe(self) -> dict[str, Any]:
        """The whole plan as JSON values, for the store and the report."""
        return {
            "arena": self.arena,
            "data": {**vars(self.data), "fractions": list(self.data.fractions)},
            "base": self.base.plan(),
            "arms": [{"name": arm.name, "salt": arm.salt, **arm.recipe.plan()} for arm in self.arms],
            "references": list(self.references),
            "skipped": dict(self.skipped),
            "seeds": list(self.seeds),
            "confirm": list(self.confirm),
            "equal_compute": self.equal_compute,
            "tune": self.tune,
            "swap": self.swap,
            "primary": self.primary,
            "margins": dict(self.margins),
            "confidence": self.confidence,
            "question": self.question,
            "model": self.model,
            "threads": self.threads,
            "race": list(self.race),
            **({"minutes": self.minutes} if self.minutes else {}),
            "engine": asdict(self.engine),
            "speed": {name: dict(found) for name, found in self.speed.items()},
            **({"pretrained": dict(self.pretrained)} if self.pretrained else {}),
            **({"contest": dict(self.contest)} if self.contest else {}),
            **({"beside": list(self.beside)} if self.beside else {}),
            "versions": dict(self.versions),
        }


def plan_from(described: Mapping[str, Any]) -> StudyPlan:
    """The plan that `StudyPlan.describe` wrote, for looking at stored studies (techniques need not be installed)."""

    def arm(value: Mapping[str, Any]) -> Arm:
        return Arm(value["name"], recipe(value), value.get("salt", ""))

    def recipe(value: Mapping[str, Any]) -> Recipe:
        found = Recipe(training=Training(**value["training"]))
        for use in value["techniques"]:
            found = found.placed(Use(use["id"], use["settings"]), use["slot"])
        return found

    data: dict[str, Any] = {**described["data"], "fractions": tuple(described["data"]["fractions"])}
    same = ("arena", "primary", "skipped", "equal_compute", "tune", "margins", "confidence", "model", "threads")
    return StudyPlan(
        data=DataPlan(**data),
        base=recipe(described["base"]),
        arms=tuple(arm(value) for value in described["arms"]),
        references=tuple(described["references"]),
        seeds=tuple(described["seeds"]),
        confirm=tuple(described["confirm"]),
        question=described.get("question", "data"),
        race=tuple(described.get("race", ())),
        swap=described.get("swap", False),
        minutes=described.get("minutes", 0.0),
        engine=Engine(**described.get("engine", {})),
        speed=described.get("speed", {}),
        pretrained=described.get("pretrained", {}),
        contest=described.get("contest", {}),
        beside=tuple(described.get("beside", ())),
        versions=described.get("versions", {}),
        **{name: described[name] for name in same},
    )


def versions() -> dict[str, str]:
    """Versions that a record depends on, the digest of Probatum's own training and measuring code among them, and of the
    kinds of data and the like that joined from outside."""
    outside = find.digest()
    return {**_versions(), **({"rooms": outside} if outside else {})}


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "probatum": VERSION, "code": _code_digest()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "unknown"
    return found


def _code_digest() -> str:
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for name in SOURCES:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:16]
