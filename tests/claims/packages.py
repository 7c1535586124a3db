"""A small package ``ours`` with one technique, its claim and what they reach, and fingerprints of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from probatum.catalogue import Place
from probatum.claims.fingerprint import Sources

TECHNIQUE = '''"""A technique."""

import math
from dataclasses import dataclass

from ours.card import Card
from ours.numerics.maths import scaled

CARD = Card(title="A title", entry="Mine", tags=("a",))


@dataclass
class Mine:
    """It."""

    rate: float = 0.5

    def step(self, x: float) -> float:
        """One step."""
        if x < 0:
            raise ValueError(f"x is {x}; it must not be negative")
        return scaled(x) * self.rate + math.sqrt(x)
'''
CLAIM = '''"""Its claim."""

from ours.claims.tools import fit
from ours.techniques.loss.mine import Mine


def _run(seeds: list[int]) -> float:
    return fit(Mine(), seeds, "mine")


CLAIMS = (Claim(id="it-works", run=_run, minutes=1.0),)
'''
TOOLS = '''"""Shared by claims."""

from ours.numerics import deeper
from ours.train.loop import train


def fit(technique: object, seeds: list[int], name: str) -> float:
    from ours.lazily import late

    return train(technique, seeds) + late(deeper.depth(2))


def not_used() -> float:
    return 7.0
'''
MATHS = '''"""Shared maths."""

import numpy as np

SCALE = 2.0
OTHER = 3.0


def scaled(x: float) -> float:
    """x, scaled."""
    return _helper(x) * SCALE


def _helper(x: float, power: int = 1) -> float:
    return np.power(x, power)


def unreached(x: float) -> float:
    return x * OTHER
'''
LOOP = '''"""The loop."""

from functools import cache

STEPS = 10


class Run:
    """A run."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps = steps

    @cache
    def ratio(self) -> float:
        return 1 / self.steps


def train(technique: object, seeds: list[int]) -> float:
    """Trains."""
    run = Run()

    def inner(seed: int) -> float:
        return technique.step(float(seed)) * run.ratio()

    return sum(inner(seed) for seed in seeds) if len(seeds) > 1 else again(technique, seeds)


def again(technique: object, seeds: list[int]) -> float:
    return train(technique, [*seeds, 1])
'''
FILES = {
    "card.py": "class Card:\n    pass\n",
    "techniques/loss/mine.py": TECHNIQUE,
    "claims/loss/mine.py": CLAIM,
    "claims/tools.py": TOOLS,
    "numerics/maths.py": MATHS,
    "numerics/deeper.py": "def depth(n: int) -> int:\n    return n + 1\n\n\ndef shallow() -> int:\n    return 0\n",
    "train/loop.py": LOOP,
    "lazily.py": "def late(x: float) -> float:\n    return x - 1\n",
}


def written(folder: Path, files: Mapping[str, str | bytes], techniques: Mapping[str, str]) -> Sources:
    """A package ``ours`` of these files."""
    root = folder / "ours"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for path in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        if not (path / "__init__.py").exists():
            (path / "__init__.py").touch()
    places = {}
    for id, file in techniques.items():
        module = ".".join(("ours", *Path(file).with_suffix("").parts))
        places[id] = Place(id, "loss", root / file, module)
    return Sources(root, "ours", places)


def mark(
    folder: Path,
    files: Mapping[str, str | bytes],
    techniques: Mapping[str, str] | None = None,
    claim: str = "loss.mine",
) -> str:
    """The fingerprint of the technique `mine` in a package of these files."""
    folder = folder / str(len(list(folder.iterdir())))
    found = written(folder, files, techniques or {"mine": "techniques/loss/mine.py"})
    return found.fingerprint("mine", f"ours.claims.{claim}")


def edited(path: str, old: str, new: str, files: Mapping[str, str | bytes] = FILES) -> dict[str, str | bytes]:
    text = files[path]
    assert isinstance(text, str)
    assert text.count(old) == 1, (path, old)
    return {**files, path: text.replace(old, new)}


def moved(
    old: str, new: str, names: Mapping[str, str], files: Mapping[str, str | bytes] = FILES
) -> dict[str, str | bytes]:
    """A file under another path, and imports rewritten."""
    found = {new if path == old else path: text for path, text in files.items()}
    for before, after in names.items():
        found = {path: text.replace(before, after) if isinstance(text, str) else text for path, text in found.items()}
    assert found != dict(files)
    return found
