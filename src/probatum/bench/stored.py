"""Studies that are in a store already: find one, and put its results together again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from probatum.bench.plan import plan_from
from probatum.bench.results import Results
from probatum.bench.store import Store, Study, Trial
from probatum.errors import InputError


def find_study(store: Store, beginning: str | None = None) -> Study:
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


def results_of(store: Store, study: Study) -> Results:
    """The results of a stored study; InputError where trials of its screen are missing still."""
    held = {kind: trials_of(store, study, kind) for kind in ("fit", "timing", "confirm")}
    missing = len(study.plan["keys"]["fit"]) - len(held["fit"])
    if missing:
        raise InputError(
            f"study {study.key[:8]} lacks {missing} trials; run the same `probatum try` again to finish it"
        )
    plan, fits = plan_from(study.plan["plan"]), tuple(held["fit"])
    results = Results(plan, fits, tuple(held["timing"]), (), dict(study.plan["summary"]))
    winner = results.winner()  # other studies in the store may have left confirmations of other arms
    confirmation = tuple(trial for trial in held["confirm"] if trial.arm in (results.baseline, winner))
    both = len({trial.arm for trial in confirmation}) == 2
    return replace(results, confirmation=confirmation if both else ())


def trials_of(store: Store, study: Study, kind: str) -> list[Trial]:
    """The stored trials of one kind: fit, timing or confirm."""
    return [trial for key in study.plan["keys"][kind] if (trial := store.get(key)) is not None]


def progress_of(store: Store, study: Study) -> dict[str, Any]:
    """How many trials of the screen are there, of how many."""
    return {"done": len(trials_of(store, study, "fit")), "total": len(study.plan["keys"]["fit"])}
