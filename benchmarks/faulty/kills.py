"""SIGKILL at random moments, to a study's process and to its workers: the same command goes on, to the same records."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faulty import studies
from faulty.command import LOOK, Command

OWN = {studies.STORE, studies.REPORT, studies.JSON}
MEANWHILE = OWN | {
    f"{studies.STORE}-wal",
    f"{studies.STORE}-shm",
    *(f"{n}.part" for n in (studies.REPORT, studies.JSON)),
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
    """So many kills of studies in `home`; with workers half of them are of workers, each followed by one of the study."""
    command = studies.words(workers=workers)
    whole = studies.calm(home / "calm", command).seconds
    right, said = studies.records(home / "calm" / studies.STORE), studies.verdicts(home / "calm" / studies.JSON)
    draw, found, place = random.Random(seed), Kills(0, 0, 0, 0.0, []), home / "wild"
    (home / "tmp").mkdir()
    while True:
        place.mkdir(exist_ok=True)
        last = found.main + found.worker >= count
        running = Command(command, place, {"TMPDIR": str(home / "tmp")})
        if not last and workers and _a_worker(running, draw.uniform(0, whole)):
            found.worker += 1
        ended = running.wait(_alone(last, draw, whole))
        if ended is None:
            running.kill()
            found.main += 1
        seconds, left = running.left(TO_GO)
        found.longest = max(found.longest, seconds)
        found.faults += _faults(place, OWN if ended else MEANWHILE) + [f"{left} processes left over"] * bool(left)
        if ended is not None:
            found.studies += 1
            found.faults += [ended.words()] * (ended.code != 0)
            if ended.code == 0 and studies.records(place / studies.STORE) != right:
                found.faults.append("other records")
            if ended.code == 0 and studies.verdicts(place / studies.JSON) != said:
                found.faults.append("other verdicts")
            shutil.rmtree(place)
            tell(f"  {found.main + found.worker} of {count} kills, {found.studies} studies, {len(found.faults)} faults")
            if last:
                break
    found.faults += [f"left in TMPDIR: {path.name}" for path in (home / "tmp").iterdir() if not _of_torch(path)]
    return asdict(found)


def _alone(last: bool, draw: random.Random, whole: float) -> float:
    """Seconds that a study is left alone before it is killed: any moment of it, or to its end."""
    return 3600.0 if last else draw.uniform(0, 1.1 * whole)


def _a_worker(running: Command, moment: float) -> bool:
    """Kill the youngest of its processes at this moment; False where none ran."""
    end = time.monotonic() + moment
    while time.monotonic() < end:
        if running.wait(0.0) is not None:
            return False
        time.sleep(LOOK)
    for pid in running.beside()[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


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
