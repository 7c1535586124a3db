"""A technique that holds a study in the middle of a training until it is told to go on."""

from __future__ import annotations

from pathlib import Path

TEXT = '''"""Holds: trains on as it should, but after a few trials waits in the middle of one until a file says go on.

Paper     none
Computes  nothing
Shapes    none
Departs   none
"""

import hashlib
import os
import time
from pathlib import Path

from probatum.card import Card

CARD = Card(paper="unpublished", title="Holds", entry="Holds", slot="method", modalities=("table",))


class Holds:
    """Lets `free` trials pass; later ones say in `folder` which process is held, and wait for the file ``go`` there."""

    reads = ()
    writes = ()

    def __init__(self, folder="", free=1):
        self.folder, self.free = Path(folder), free

    def step_end(self, run):
        """Hook: wait in the middle of training; a rehearsal does not come so far."""
        if run.step != 100 or (self.folder / "go").exists():
            return
        name = hashlib.sha256(str(run.train.rows.tolist()).encode()).hexdigest()
        (self.folder / f"trial-{name}").touch()
        if len(list(self.folder.glob("trial-*"))) <= self.free:
            return
        (self.folder / f"held-{os.getpid()}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)
'''


class Holding:
    """The technique's file, and how a study stands that it holds; trainings of 100 steps or fewer are not held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "holding"
        self.file = self.folder / "method" / "holds.py"
        self.file.parent.mkdir(parents=True)
        self.file.write_text(TEXT, encoding="utf-8")

    def arm(self, free: int = 1) -> str:
        """The arm that lets so many of its trials pass and holds every other."""
        return f"holds(folder={str(self.folder)!r}, free={free})"

    def held(self) -> set[int]:
        """Processes that are held."""
        return {int(path.name.removeprefix("held-")) for path in self.folder.glob("held-*")}

    def let_go(self) -> None:
        """Nothing is held from now on."""
        (self.folder / "go").touch()
