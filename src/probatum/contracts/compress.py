"""Slot `compress`: makes the model smaller within the trial's budget, through the hooks of `contracts.method`.

A compressor that works while training uses `prepare`, `step_end` and so on; one that works afterwards only `finish`.
``report() -> dict`` says what it did, with at least ``"sparsity"`` (share of zero weights) or ``"parameters"``.
"""

from __future__ import annotations

from typing import Protocol

ARENA = "predict"
TRAINED = True
FIXED: tuple[str, ...] = ()
OFFERED: tuple[str, ...] = ()


class Compressor(Protocol):
    """Any of the hooks of a method, plus a report."""

    def report(self) -> dict[str, float]: ...
