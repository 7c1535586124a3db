"""SIGKILL at random moments, to a study's process and to its workers: the same command goes on, to the same records."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faulty import studies
from faulty.command import Command

OWN = {studies.STORE, studies.REPORT, studies.JSON}
MEANWHILE = OWN | {
    *(f"{studies.STORE}-{ending}" for ending in ("wal", "shm", "journal")),  # the last one while a store is made
    *(f"{name}.part" for name in (studies.REPORT, studies.JSON)),
}
"""What a killed process may leave, which the same command uses or removes."""
TO_GO = 60.0
"""Seconds that what a killed process started may take to end."""


@dataclass
class Kills:
    """What came of kills.

    Attributes:
        main: kills of the study's own process; likewise `worker`.
        studies: studies that came to their end, each with the records of the undisturbed one.
        longest: seconds that the last process of a killed study lived on.
        faults: what should not be, in words.
    """

    main: int
    worker: int
    studies: int
    longest: float
    faults: list[str]


def kills(home: Path, count: int, workers: int | None, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """So many kills of studies in `home`; with several workers half of them are of workers, each followed by one of the study."""
    command, place = studies.words(workers=workers), home / "wild"
    right, said, whole = _calm(home, command)
    draw, found = random.Random(seed), Kills(0, 0, 0, 0.0, [])
    while True:
        place.mkdir(exist_ok=True)
        last = found.main + found.worker >= count
        running = Command(command, place, {"TMPDIR": str(home / "tmp")})
        if not last and workers != 1 and running.until(draw.uniform(0, whole)) is None:
            found.worker += _kill_one_beside(running)
        ended = running.wait() if last else running.until(max(running.spent, draw.uniform(0, whole)))
        if ended is None:
            running.kill()
            found.main += 1
        seconds, left = running.left(TO_GO)
        found.longest = max(found.longest, seconds)
        found.faults += _faults(place, OWN if ended else MEANWHILE) + [f"{left} processes left over"] * bool(left)
        if ended is not None:
            found.studies += 1
            found.faults += [ended.words()] if ended.code else _others(place, right, said)
            shutil.rmtree(place)
            tell(f"  {found.main + found.worker} of {count} kills, {found.studies} studies, {len(found.faults)} faults")
            if last:
                break
    found.faults += [f"left in TMPDIR: {_seen(path)}" for path in (home / "tmp").iterdir() if not _of_torch(path)]
    return asdict(found)


def _calm(home: Path, command: list[str]) -> tuple[dict[str, str], list[str], float]:
    """Records and verdicts of the study that nobody disturbs, and the seconds that it computes."""
    (home / "tmp").mkdir(parents=True)
    (home / "calm").mkdir()
    running = Command(command, home / "calm", {"TMPDIR": str(home / "tmp")})
    ended = running.until(float("inf"))
    if ended is None or ended.code:
        raise SystemExit(f"the undisturbed study fails: {ended and ended.words()}")
    store, told = home / "calm" / studies.STORE, home / "calm" / studies.JSON
    return studies.records(store), studies.verdicts(told), running.spent


def _kill_one_beside(running: Command) -> int:
    """Kill the youngest process that a study has started, a worker where there is one; how many were killed."""
    for pid in running.beside()[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return 1
    return 0


def _others(place: Path, right: dict[str, str], said: list[str]) -> list[str]:
    """What differs from the undisturbed study, in words."""
    found = ["other records"] if studies.records(place / studies.STORE) != right else []
    return found + (["other verdicts"] if studies.verdicts(place / studies.JSON) != said else [])


def _faults(place: Path, may: set[str]) -> list[str]:
    """What lies there that may not, and what is written by half."""
    found = [f"{path.name} is left" for path in place.iterdir() if path.name not in may]
    page, told = place / studies.REPORT, place / studies.JSON
    if page.exists() and not page.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        found.append("half a report")
    if told.exists():
        try:
            json.loads(told.read_text(encoding="utf-8"))
        except ValueError:
            found.append("half a JSON file")
    return found


def _of_torch(path: Path) -> bool:
    """The empty folder that PyTorch makes when it is loaded."""
    return path.name.startswith("torchinductor")


def _seen(path: Path) -> str:
    """A path with what is in it, so that it can be told whose it is."""
    return (
        f"{path.name} ({len([*path.rglob('*')])} paths)" if path.is_dir() else f"{path.name} {path.read_bytes()[:40]!r}"
    )
