"""Studies that are in a store already: find one, and put its results together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from probatum.bench.budget import confirmation, whole
from probatum.bench.plan import StudyPlan, plan_from
from probatum.bench.race_run import race_through
from probatum.bench.results import Results
from probatum.bench.store import Store, StudyRecord, Trial
from probatum.errors import InputError
from probatum.recipe import Arm
from probatum.rooms.arena import arena, competes
from probatum.settings import Reading


class _Lacking(Exception):
    """A stage of a race whose trials are not all in the store: those there are (earlier ones too), and how many lack."""

    def __init__(self, held: list[Trial], missing: int) -> None:
        super().__init__(f"{missing} trials are missing")
        self.held, self.missing = held, missing


def find_study(store: Store, beginning: str | None = None) -> StudyRecord:
    """The newest study, or the one whose key begins so; InputError where there is none or more than one."""
    studies = store.studies()
    if not studies:
        raise InputError("the store holds no study yet; `probatum try ... --store` writes one")
    if beginning is None:
        return max(studies, key=lambda study: study.created)
    found = [study for study in studies if study.key.startswith(beginning)]
    if len(found) != 1:
        known = ", ".join(study.key[:8] for study in studies)
        raise InputError(f"{len(found)} studies begin with {beginning!r}; the store has {known}")
    return found[0]


def results_of(store: Store, study: StudyRecord) -> Results:
    """The results of a stored study; InputError where trials of its screen are missing still."""
    held = {kind: trials_of(store, study, kind) for kind in ("timing", "confirm")}
    screen, missing = _screen(store, study)
    if missing:
        raise InputError(
            f"study {study.key[:8]} lacks {missing} trials; run the same `probatum try` again to finish it"
        )
    plan, summary = plan_from(study.plan["plan"]), dict(study.plan["summary"])
    summary["source"] = source_of(summary)
    if "wishes" not in summary:
        summary["wishes"] = wishes_from(plan, timing=bool(study.plan["keys"].get("timing")), source=summary["source"])
    results = Results(plan, tuple(screen), tuple(held["timing"]), (), summary)
    winner = results.winner()  # other studies in the store may have left confirmations of other arms
    if plan.minutes:
        return replace(results, confirmation=confirmation(plan, held["confirm"], winner))
    fresh = tuple(trial for trial in held["confirm"] if trial.arm in (results.baseline, winner))
    both = len({trial.arm for trial in fresh}) == 2
    return replace(results, confirmation=fresh if both else ())


def source_of(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """How to open a stored study's data again, as `making.read` says it now; None where they were handed over in Python.

    Earlier versions wrote what only one kind of data asks beside the rest, and not under "options".
    """
    held = summary.get("source")
    if held is None:
        return None
    known = {"data", "kind", "folder", *Reading.__dataclass_fields__}
    own = {name: value for name, value in held.items() if name not in known and value is not None}
    rest = {name: value for name, value in held.items() if name in known}
    return {**rest, "drop": list(held.get("drop") or ()), "options": {**own, **(held.get("options") or {})}}


def wishes_from(plan: StudyPlan, *, timing: bool = True, source: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `making.said` would say of a study that was stored without it, worked out from its plan."""
    training, engine = plan.base.training, plan.engine
    by_passes = training.steps is None and training.least_steps == 0  # so it is where passes were asked for
    return {
        "techniques": [arm.name.replace(" + ", "+") for arm in plan.arms],
        "model": None if plan.base.model is None else str(plan.base.model),
        "seeds": len(plan.seeds),
        "epochs": training.epochs if by_passes else None,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "primary": plan.primary,
        "margin": plan.margins.get(plan.primary),
        "tune": plan.tune,
        "judging": {
            "budget": "compute" if plan.equal_compute else "steps",
            "references": bool(plan.references),
            "confirm": bool(plan.confirm) or not competes(plan.arena),
            "confidence": plan.confidence,
            "race": bool(plan.race),
            "holdout": plan.data.fractions[2],
        },
        "running": {
            "timing": timing,
            "threads": plan.threads,
            "device": engine.device,
            "speed": "auto" if plan.speed else "plain",
            "precision": "auto" if "bf16" in plan.speed else engine.precision,
            "devices": engine.devices,
            "strategy": engine.strategy,
        },
        "files": [],
        "kinds": [source["folder"]] if source and "folder" in source else [],
    }


def trials_of(store: Store, study: StudyRecord, kind: str) -> list[Trial]:
    """The stored trials of one kind: fit, timing or confirm."""
    return [trial for key in study.plan["keys"][kind] if (trial := store.get(key)) is not None]


def missing_beside(store: Store, study: StudyRecord, results: Results) -> str:
    """Timings and confirmations that a finished screen should have beside it and has not, in words; "" where none lack.

    A budget of time has as many as there was time for.
    """
    plan = results.plan
    if plan.minutes:
        return ""
    timings = len(study.plan["keys"].get("timing", ())) - len(results.timings)
    winner = results.winner()
    wanted = 2 * len(plan.confirm) if winner is not None and plan.confirm else 0
    confirming = wanted - sum(trial.arm in (results.baseline, winner) for trial in trials_of(store, study, "confirm"))
    counts = {"timings": timings, "trials of the confirmation": confirming if wanted else 0}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count > 0)


def progress_of(store: Store, study: StudyRecord) -> dict[str, Any]:
    """How many trials of the screen are there, of how many; for a race, of those wanted so far."""
    held, missing = _screen(store, study)
    return {"done": len(held), "total": len(held) + missing}


def _screen(store: Store, study: StudyRecord) -> tuple[list[Trial], int]:
    """The stored trials of the screen, and how many are missing still.

    A race is run through again on what is stored: trials that it never asked for may be there from other studies. A budget
    of time lacks nothing, once a trial of the baseline has ended: it is as far as it came.
    """
    held = trials_of(store, study, "fit")
    plan = plan_from(study.plan["plan"])
    if plan.minutes:
        counted = list(whole(plan, held))
        return counted, 0 if counted else 1
    if not plan.race:
        return held, len(study.plan["keys"]["fit"]) - len(held)
    known = {(trial.arm, trial.seed): trial for trial in held}
    used: list[Trial] = []

    def look_up(seeds: tuple[int, ...], arms: tuple[Arm, ...], first: bool) -> list[Trial]:
        names = [arena(plan.arena).BASELINE, *(arm.name for arm in arms), *(plan.references if first else ())]
        wanted = [(name, seed) for seed in seeds for name in names]
        found = [known[pair] for pair in wanted if pair in known]
        used.extend(found)
        if len(found) < len(wanted):
            raise _Lacking(used, len(wanted) - len(found))
        return found

    try:
        return list(race_through(plan, look_up)), 0
    except _Lacking as problem:
        return problem.held, problem.missing
