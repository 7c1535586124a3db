"""The splits of a study: every seed's is encoded once, and kept for the next arm as long as there is room."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from probatum.spec import Data, Part, Truth

STRETCHES = 40
"""Stretches of time into which the test rows of a split by time are cut, each a unit."""
KEPT_BYTES = 2**29
"""Bytes of encoded splits that are kept."""


class Preparing(Protocol):
    """What the bench needs of a dataset."""

    def prepare(self, seed: int, *, fractions: tuple[float, float, float], folds: bool) -> Data: ...


@dataclass
class Splits:
    """The encoded splits of a dataset, by seed.

    Attributes:
        dataset: the data.
        fractions: shares of train, valid and test.
        folds: whether seeds are repeated folds, in which every row is tested equally often; else each splits at random.
    """

    dataset: Preparing
    fractions: tuple[float, float, float]
    folds: bool = True
    _kept: dict[int, Data] = field(default_factory=dict, init=False, repr=False)
    _sums: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def data(self, seed: int) -> Data:
        """The split of one seed; the last ones are kept, as many as fit."""
        found = self._kept.pop(seed, None)
        if found is None:
            found = self.dataset.prepare(seed, fractions=self.fractions, folds=self.folds)
            while self._kept and sum(map(size, self._kept.values())) + size(found) > KEPT_BYTES:
                del self._kept[next(iter(self._kept))]
            self._sums.setdefault(seed, checksum(found))
        self._kept[seed] = found
        return found

    def intact(self, seed: int) -> bool:
        """Whether a split that is kept is still as it was encoded; one that is not, is kept no longer."""
        found = self._kept.get(seed)
        if found is None or checksum(found) == self._sums[seed]:
            return True
        del self._kept[seed]
        return False

    def mended(self, seed: int) -> bool:
        """Whether the split, encoded anew, is what it was; if not, the data have been changed that it is encoded from."""
        return checksum(self.data(seed)) == self._sums[seed]

    def units(self, seed: int, part: str = "test") -> tuple[np.ndarray, int] | None:
        """The unit of each test row of this seed (copies of a row, a group, a stretch), and how many there are at most.

        Of a split by time and of long texts, whose neighbours are alike, units are stretches. Of another part by the same
        numbers. None where the data do not say which rows they are.
        """
        plan, n = getattr(self.dataset, "plan", None), int(getattr(self.dataset, "n", 0))
        rows = getattr(self.data(seed), part).rows.numpy()
        if not len(rows) or rows.min() < 0 or rows.max() >= (n if plan is None else len(plan.units)):
            return None
        if plan is None:  # places in a text; the part that is tested need be but a piece of it
            return rows * (10 * STRETCHES) // n, 10 * STRETCHES
        if plan.moment is not None:
            order = np.argsort(np.argsort(plan.moment[rows], kind="stable"), kind="stable")
            return order * STRETCHES // len(rows), STRETCHES
        return plan.units[rows], int(plan.units.max()) + 1

    def __getstate__(self) -> dict[str, Any]:
        """What travels to other processes: splits are encoded there."""
        return {**self.__dict__, "_kept": {}}


def size(data: Data) -> int:
    """Bytes that a split holds: rows, targets, strings, and what is known of a made world; on disk: more than is kept."""
    parts = [data.train, data.valid, data.test]
    total = 0
    if data.truth is not None:
        parts += [part for part in (data.truth.shifted, data.truth.outside) if part is not None]
        total += sum(v.nbytes for v in _tensors(data.truth))
    for part in parts:
        if not isinstance(part.x, Tensor):
            return KEPT_BYTES + 1
        total += part.x.nbytes + part.y.nbytes + part.rows.nbytes + sum(map(len, part.text or ()))
    return total


def checksum(data: Data) -> int:
    """A number that changes with any bit of the rows and answers of a split; of rows on disk, with the answers'."""
    found = 0
    for part in (data.train, data.valid, data.test):
        for value in (part.x, part.y, part.rows):
            if isinstance(value, Tensor):
                plain = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
                found = zlib.crc32(plain.data, found)
    return found


def _tensors(value: Part | Truth) -> Iterator[Tensor]:
    found = (getattr(value, one.name) for one in fields(value))
    return (one for one in found if isinstance(one, Tensor))
