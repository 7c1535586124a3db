"""Slot `acquire`: ``entry(pool, count, ...) -> positions (count,)`` of the rows whose labels to ask for next.

`pool` is a `probatum.spec.Pool`: all rows, the labels given so far and the network trained on them. The answer is one
position each of `count` different rows of ``pool.open()``, most wanted first; a strategy that also labels rows by machine
gives a `probatum.spec.Query`, whose `machine` rows and `guesses` replace those of the round before and join the training
rows (they cost no label, and may be wrong). `count` is at most ``len(pool.open())``; where a strategy finds fewer rows
worth asking for it may give fewer. It may ask for `model_factory`, `generator` and `spec` by parameter name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from probatum.spec import Pool, Query

ARENA = "acquire"
TRAINED = False
FIXED: tuple[str, ...] = ("pool", "count")
OFFERED: tuple[str, ...] = ()


class Strategy(Protocol):
    """(pool, how many) -> which rows."""

    def __call__(self, pool: Pool, count: int) -> Tensor | Query: ...
