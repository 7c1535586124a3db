"""What is kept of each class, where there are thousands: confusions that occurred, not a square of zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SQUARE = 100
"""Classes up to which the whole confusion matrix is kept; the report draws far smaller ones."""
MOST_PAIRS = 20_000
"""Confusions that are kept of more classes, those that occurred most often; the rest is counted."""


def compact(details: Mapping[str, Any]) -> Mapping[str, Any]:
    """A trial's details, with ``confusion`` of many classes as ``pairs`` of (truth, answer, rows) where there are rows.

    ``rows_left_out`` counts test rows whose pairs are too many to be kept.
    """
    table = details.get("per_class") or {}
    matrix = table.get("confusion") or []
    if len(matrix) <= SQUARE:
        return details
    pairs = [[i, j, count] for i, row in enumerate(matrix) for j, count in enumerate(row) if count]
    kept = sorted(sorted(pairs, key=lambda pair: -pair[2])[:MOST_PAIRS])
    left = sum(count for _, _, count in pairs) - sum(count for _, _, count in kept)
    own = {name: value for name, value in table.items() if name != "confusion"}
    return {**details, "per_class": {**own, "pairs": kept, "rows_left_out": left}}


def classes_of(table: Mapping[str, Any]) -> int:
    """How many classes a trial's ``per_class`` tells of."""
    return len(table.get("support") or table.get("confusion") or ())


def occurred(table: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(truth, answer) that occurred among the test rows, in whichever form they are kept."""
    yield from ((truth, answer) for truth, answer, _ in table.get("pairs") or ())
    for truth, row in enumerate(table.get("confusion") or ()):
        yield from ((truth, answer) for answer, count in enumerate(row) if count)
