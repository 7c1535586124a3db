"""A kind of data under check, the small data that it is tried on, and what checks of it share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator

from probatum.checks.subject import NotThisOneError, demand, fingerprint
from probatum.checks.toy import toy_of
from probatum.data.dataset import Dataset
from probatum.data.library import subset
from probatum.rooms.kind import Kind, kind
from probatum.settings import Reading
from probatum.spec import Data

ROWS = 240
"""Rows of the example that are used at most, drawn by a fixed seed."""
LEAST = 60
"""Rows that an example must have, so that every part of a split has some."""


@dataclass(frozen=True)
class KindSubject:
    """One kind of data under check."""

    name: str

    @property
    def kind(self) -> Kind:
        """The kind."""
        return kind(self.name)

    def toy(self, task: str) -> Data:
        """Its toy data with this task."""
        return toy_of(self.kind, task)

    def opened(self) -> Any:
        """The example, opened anew."""
        name, known = self.kind.EXAMPLE, self.kind.sets()
        demand(
            bool(name), "it names no example: embed a small set and let EXAMPLE say its name, see kinds/series/sets.py"
        )
        demand(name in known, f"EXAMPLE is {name!r}; sets() has {', '.join(known) or 'none'}")
        demand(known[name].embedded, f"the set {name!r} needs a file; let EXAMPLE name an embedded one")
        return known[name].open(Reading())

    @cached_property
    def example(self) -> Any:
        """The example; of rows a few."""
        found = self.opened()
        if not isinstance(found, Dataset):
            return found
        demand(found.n >= LEAST, f"{found.name} has {found.n} rows; an example needs {LEAST} or more")
        return subset(found, min(found.n, ROWS), 0)

    @cached_property
    def rows(self) -> Dataset:
        """The example's rows; NotThisOneError for a kind that has none of its own."""
        if not self.kind.ROWS:
            raise NotThisOneError(f"{self.name} data have no rows of their own; they are cut out of something longer")
        demand(
            isinstance(self.example, Dataset), f"{self.kind.EXAMPLE} is no Dataset, although ROWS says that it has rows"
        )
        return self.example

    @cached_property
    def split(self) -> Data:
        """The example's split of seed 0, encoded."""
        return self.example.prepare(0)


def drawn_from(make: Callable[[Generator], Any], what: str) -> Any:
    """What `make` gives with a generator; demand that it gives the same again, and draws from nowhere else."""
    before = torch.get_rng_state(), str(np.random.get_state())
    first, second = (make(torch.Generator().manual_seed(5)) for _ in range(2))
    demand(
        fingerprint(first) == fingerprint(second), f"{what}: one seed gives two results; draw from the generator given"
    )
    still = torch.equal(before[0], torch.get_rng_state()) and before[1] == str(np.random.get_state())
    demand(still, f"{what}: it moved a global random state; draw from the generator given")
    return first


def same(first: Data, second: Data) -> bool:
    """Whether two splits are equal to the bit."""
    return all(
        fingerprint([mine.x, mine.y, mine.rows, mine.text]) == fingerprint([other.x, other.y, other.rows, other.text])
        for mine, other in ((first.train, second.train), (first.valid, second.valid), (first.test, second.test))
    )
