"""The small study that faults are done to, and what it comes to when nothing is done to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faulty.command import Ended, ran

STORE, REPORT, JSON = "s.sqlite", "r.html", "j.json"
ARMS = ("encouraging-loss", "gradient-noise")
FEW = ("--data", "iris", "--seeds", "6", "--no-timing", "--no-references", "--no-confirm", "--stack", "never")
"""Seeds are trained alone: whether they are trained as one is decided by the clock, and changes last digits."""


def words(
    *arms: str, steps: int = 20, workers: int | None = None, store: str = STORE, report: str = REPORT, told: str = JSON
) -> list[str]:
    """The words of the study's command."""
    found = ["try", *(arms or ARMS), *FEW, "--steps", str(steps), "--store", store, "--report", report, "--json", told]
    return found if workers is None else [*found, "--workers", str(workers)]


def records(store: Path) -> dict[str, str]:
    """Key -> what a trial came to, of every trial that a store's studies find in it, and why one is not believed."""
    from probatum.bench.store import Store

    with Store(store) as opened:
        keys = [key for study in opened.studies() for key in study.plan["keys"]["fit"]]
        trials = [trial for key in keys if (trial := opened.get(key)) is not None]
        told = {damage.key: damage.words() for damage in opened.damaged}
    return told | {t.key: json.dumps([t.arm, t.seed, t.status, t.record, t.rows.hex()], sort_keys=True) for t in trials}


def verdicts(path: Path) -> list[str]:
    """What a study found, as ``--json`` writes it; in an order of its own."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return sorted(json.dumps(one, sort_keys=True) for one in found["verdicts"])


def calm(home: Path, command: list[str]) -> Ended:
    """The study, undisturbed."""
    home.mkdir(parents=True)
    ended = ran(command, home)
    if ended.code:
        raise SystemExit(f"the undisturbed study fails: {ended.words()}")
    return ended
