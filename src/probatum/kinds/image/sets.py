"""Images that are known by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from probatum.data.arrays import Arrays, read_arrays
from probatum.data.dataset import Dataset
from probatum.data.library import root
from probatum.kinds.image.read import from_arrays
from probatum.rooms.kind import NamedSet
from probatum.settings import Reading

NAMES = ("mnist", "fashion_mnist", "cifar10_subset")


def sets() -> dict[str, NamedSet]:
    """Every set of images that can be opened by its name."""
    found = {"digits": NamedSet(lambda reading: digits(), embedded=True)}
    folder = root()
    for name in NAMES:
        if folder is None:
            break
        path = folder / name / f"{name}.npz"
        if path.is_file():
            found[name] = NamedSet(partial(_from_library, path), ("task",))
    return found


def digits() -> Dataset:
    """1797 handwritten digits, images 1 x 8 x 8, values / 16; 10 classes (UCI optical recognition, test part)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = (source.images / 16.0).astype(np.float32)
    return from_arrays(Arrays(images[:, None], source.target, "digits", "digit"), Reading(task="classes"))


def _from_library(path: Path, reading: Reading) -> Dataset:
    return from_arrays(read_arrays(path, path.stem, "class"), Reading(task="classes"))
