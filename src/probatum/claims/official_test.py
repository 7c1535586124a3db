"""Few training rows beside all the test rows that a set comes with, for claims that compare accuracies closely, and a network."""

from __future__ import annotations

import numpy as np
from torch import nn

from probatum.data.library import library
from probatum.data.split import TEST
from probatum.spec import Data, Spec


def official_test(name: str, rows: int, valid: int, seed: int) -> Data:
    """A library set with so many of its training rows to learn from and to validate on, and its own test part.

    Args:
        name: a set that comes with a test part, e.g. mnist and fashion_mnist (10,000 rows of it).
        rows: to learn from, stratified by class and drawn by the seed.
        valid: to choose on, drawn beside them.
        seed: of both draws.

    Raises:
        ValueError: a set without a test part.
    """
    whole = library(name)
    given = whole.plan.given
    if given is None or not (given == TEST).any():
        raise ValueError(f"{name!r} comes without a test part; use subset()")
    test = np.flatnonzero(given == TEST)
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = whole.plan.labels
    rest = np.flatnonzero(given != TEST)
    # the first rows of every class after a shuffle, as many of each as its share says
    order = rest[rng.permutation(len(rest))]
    codes = np.zeros(len(order), dtype=np.int64) if labels is None else labels[order]
    place = np.empty(len(order), dtype=np.float64)
    for code in np.unique(codes):
        mine = np.flatnonzero(codes == code)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    chosen = order[np.argsort(place, kind="stable")[: rows + valid]]
    total = rows + valid + len(test)
    data = whole.take(np.sort(np.concatenate([chosen, test])))
    return data.prepare(seed, fractions=(rows / total, valid / total, 1 - (rows + valid) / total))


def small_cnn(spec: Spec, dropout: float = 0.0) -> nn.Module:
    """Two convolutions of 5 x 5 and a hidden layer of 128 on images (n, channels, side, side) at half resolution."""
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(spec.shape[0], 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (spec.shape[1] // 8) * (spec.shape[2] // 8), 128),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(128, spec.outputs),
    )
