"""Series that are known by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from probatum.data.arrays import Arrays, read_arrays
from probatum.data.dataset import Dataset
from probatum.data.library import root
from probatum.data.read import read_npz
from probatum.kinds.series.read import from_arrays
from probatum.rooms.kind import NamedSet
from probatum.settings import Reading

SEED = 20_240_601
CBF_STEPS = 128


def sets() -> dict[str, NamedSet]:
    """Every set of series that can be opened by its name."""
    found = {"cbf": NamedSet(lambda reading: cbf(), embedded=True)}
    folder = root()
    for path in sorted((folder / "ucr_series").glob("*.npz")) if folder is not None else ():
        found[f"ucr_series/{path.stem}"] = NamedSet(partial(_from_library, path), ("task",))
    return found


def cbf(n: int = 930) -> Dataset:
    """Cylinder, bell, funnel: 128 steps, 3 classes (Saito 1994).

    On [a, b], a ~ U{16..32}, b - a ~ U{32..96}, the series is (6 + eta) times 1, (t - a)/(b - a) or (b - t)/(b - a);
    elsewhere 0; eta and the noise of every step are standard normal.
    """
    rng = np.random.Generator(np.random.PCG64(SEED))
    t = np.arange(1, CBF_STEPS + 1)
    labels = rng.permutation(np.arange(n) % 3)
    x = np.empty((n, 1, CBF_STEPS), dtype=np.float32)
    for i, kind in enumerate(labels):
        a = int(rng.integers(16, 33))
        b = a + int(rng.integers(32, 97))
        inside = (t >= a) & (t <= b)
        shape = (np.ones(CBF_STEPS), (t - a) / (b - a), (b - t) / (b - a))[kind]
        x[i, 0] = (6 + rng.standard_normal()) * inside * shape + rng.standard_normal(CBF_STEPS)
    classes = ("cylinder", "bell", "funnel")
    return from_arrays(Arrays(x, labels, "cbf", "shape", classes=classes), Reading(task="classes"))


def _from_library(path: Path, reading: Reading) -> Dataset:
    task = reading.task
    if task == "auto":
        task = "classes" if "classes" in read_npz(path) else "reals"
    return from_arrays(read_arrays(path, path.stem, "class" if task == "classes" else "value"), Reading(task=task))
