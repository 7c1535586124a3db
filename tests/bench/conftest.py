"""Shared: a technique that kills its own process, and a study's records as comparable text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from probatum import catalogue
from probatum.bench.store import Trial

DEADLY = '''"""Deadly: kills the process that trains the first of its trials to begin.

Paper     none
Computes  nothing
Shapes    none
Departs   none
"""

import hashlib
import os
import signal
import time
from pathlib import Path

from probatum.card import Card

CARD = Card(paper="unpublished", title="Deadly", entry="Deadly", slot="method", modalities=("table",))


class Deadly:
    """Kills its process as often as told, but never the one called parent; or says on which node it is and waits for a sign."""

    reads = ()
    writes = ()

    def __init__(self, folder="", parent=0, deaths=1, waits=False):
        self.folder, self.parent, self.deaths, self.waits = Path(folder), parent, deaths, waits

    def prepare(self, run):
        """Hook: die, if it is time to."""
        if os.getpid() == self.parent or len(run.train) < 60:  # a rehearsal
            return
        if self.waits:
            import ray

            (self.folder / f"node-{ray.get_runtime_context().get_node_id()}").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.02)
            return
        name = hashlib.sha256(str(run.train.rows.tolist()).encode()).hexdigest()
        try:
            with open(self.folder / "victim", "x") as file:
                file.write(name)
        except FileExistsError:
            pass
        died = len(list(self.folder.glob("death-*")))
        if (self.folder / "victim").read_text() == name and died < self.deaths:
            (self.folder / f"death-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Settings -> an arm that kills (or waits) everywhere but in this process; its file is in the catalogue."""
    monkeypatch.setattr(catalogue, "_added", {})
    (tmp_path / "method").mkdir()
    (tmp_path / "graves").mkdir()
    file = tmp_path / "method" / "deadly.py"
    file.write_text(DEADLY, encoding="utf-8")
    catalogue.add_file(file)

    def arm(deaths: int = 1, waits: bool = False) -> str:
        return f"deadly(folder={str(tmp_path / 'graves')!r}, parent={os.getpid()}, deaths={deaths}, waits={waits})"

    return arm


@pytest.fixture(scope="session")
def records() -> Callable[[Iterable[Trial]], dict[str, str]]:
    """Trials -> key -> everything that must not depend on who ran them where."""

    def found(trials: Iterable[Trial]) -> dict[str, str]:
        return {t.key: json.dumps([t.arm, t.seed, t.kind, t.status, t.plan, t.record], sort_keys=True) for t in trials}

    return found
