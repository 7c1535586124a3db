"""What is kept of a trial's test rows: for each measure, how far every unit of rows lies from the trial's mean.

A unit is a row, or rows that belong together (copies of one row, a group of the user's, a stretch of time). Of large data
units are thrown into a fixed number of groups, by a hash of their numbers, which costs a little width and no validity.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

ALONE = 2048
"""Units of a data set up to which each is kept by itself."""
GROUPS = 512
"""Groups into which the units of larger data sets are thrown."""
LARGEST = float(np.finfo(np.float32).max)
"""Deviations beyond it, of arms that diverged, are kept as this."""
_MAGIC, _BOTH = b"rows1", b"rows2"


@dataclass(frozen=True)
class UnitRows:
    """Deviations of one trial.

    Attributes:
        units: (g,) int64 numbers of the groups of units that were tested, ascending.
        deviations: measure -> (g,) sum over the group's rows of (value - the measure).
        counts: measure -> (g,) rows of the group that count for it.
        binary: measures whose rows are all 0 or 1.
        swapped: the same of the validation rows, where they were tested too, by weights that test rows chose.
    """

    units: np.ndarray
    deviations: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]
    binary: frozenset[str]
    swapped: UnitRows | None = None

    @cached_property
    def both(self) -> UnitRows | None:
        """Test and validation rows as those of one trial, of the measures that both have; None without validation rows.

        Deviations stay those from the mean of the row's own half: how many rows each half has is given, not drawn.
        """
        return None if self.swapped is None else _joined(self, self.swapped)


def grouped(units: np.ndarray, known: int) -> np.ndarray:
    """The fixed group of each unit of a data set that has `known` of them; (n,) as given."""
    if known <= ALONE:
        return units.astype(np.int64)
    # Fibonacci hashing: neighbours are scattered, and groups are of equal size for numbers in a row
    mixed = (units.astype(np.uint64) * np.uint64(2654435769)) & np.uint64(0xFFFFFFFF)
    return (mixed * np.uint64(GROUPS) >> np.uint64(32)).astype(np.int64)


def gather(values: Mapping[str, np.ndarray], units: np.ndarray, known: int) -> UnitRows:
    """Sum the rows of every group of units.

    Args:
        values: measure -> (n,) influence values of the test rows, whose mean is the measure; NaN where a row does not count.
        units: (n,) unit of each test row.
        known: how many units the data set has.
    """
    names, where = np.unique(grouped(units, known), return_inverse=True)
    deviations, counts, binary = {}, {}, []
    for measure, rows in values.items():
        counted = ~np.isnan(rows)
        kept = np.where(counted, rows - rows[counted].mean() if counted.any() else 0.0, 0.0)
        summed = np.bincount(where, kept, len(names))
        deviations[measure] = np.clip(summed, -LARGEST, LARGEST).astype(np.float32)
        counts[measure] = np.bincount(where[counted], minlength=len(names))
        if np.isin(rows[counted], (0.0, 1.0)).all():
            binary.append(measure)
    return UnitRows(names, deviations, counts, frozenset(binary))


def pack(rows: UnitRows, swapped: UnitRows | None = None) -> bytes:
    """Bytes from which `unpack` makes the same again, with the validation rows if there are any."""
    if swapped is None:
        return _packed(rows)
    first = _packed(rows)
    return _BOTH + struct.pack("<I", len(first)) + first + _packed(swapped)


def _packed(rows: UnitRows) -> bytes:
    columns: list[tuple[int, ...]] = []
    which = []
    for measure in rows.deviations:
        column = tuple(rows.counts[measure].tolist())
        if column not in columns:  # most measures count the same rows
            columns.append(column)
        which.append(columns.index(column))
    head = {
        "measures": list(rows.deviations),
        "counts": which,
        "binary": sorted(rows.binary),
        "groups": len(rows.units),
    }
    parts = [
        rows.units.astype("<i4"),
        np.array(columns, dtype="<i4").reshape(-1),
        np.array([rows.deviations[measure] for measure in rows.deviations], dtype="<f4").reshape(-1),
    ]
    text = json.dumps(head, separators=(",", ":")).encode()
    body = b"".join(part.tobytes() for part in parts)
    return _MAGIC + zlib.compress(struct.pack("<II", len(text), len(columns)) + text + body, 6)


def unpack(packed: bytes) -> UnitRows:
    """What `pack` was given.

    Raises:
        ValueError: for bytes that are none of its.
    """
    if not packed.startswith(_BOTH):
        return _unpacked(packed)
    start = len(_BOTH) + 4
    if len(packed) < start:
        raise ValueError("the rows of a trial cannot be read: they are cut off")
    (length,) = struct.unpack_from("<I", packed, len(_BOTH))
    return replace(_unpacked(packed[start : start + length]), swapped=_unpacked(packed[start + length :]))


def _unpacked(packed: bytes) -> UnitRows:
    if not packed.startswith(_MAGIC):
        raise ValueError("these are no rows of a trial")
    try:
        raw = zlib.decompress(packed[len(_MAGIC) :])
        length, columns = struct.unpack_from("<II", raw)
        head = json.loads(raw[8 : 8 + length])
        groups, measures = head["groups"], head["measures"]
        start = 8 + length
        numbers = [_interned(raw[start + 4 * groups * k : start + 4 * groups * (k + 1)]) for k in range(1 + columns)]
        values = np.frombuffer(raw, "<f4", groups * len(measures), start + 4 * groups * len(numbers))
    except (zlib.error, struct.error, KeyError, ValueError) as problem:
        raise ValueError(f"the rows of a trial cannot be read: {problem}") from problem
    return UnitRows(
        numbers[0],
        dict(zip(measures, values.reshape(len(measures), groups), strict=True)),
        {measure: numbers[1 + k] for measure, k in zip(measures, head["counts"], strict=True)},
        frozenset(head["binary"]),
    )


def _joined(one: UnitRows, other: UnitRows) -> UnitRows:
    units, first, second = _union(one.units.astype("<i4").tobytes(), other.units.astype("<i4").tobytes())
    deviations, counts = {}, {}
    for measure in one.deviations:
        if measure not in other.deviations:
            continue
        moved = np.zeros(len(units), dtype=np.float32)
        moved[first] = one.deviations[measure]
        moved[second] += other.deviations[measure]
        rows = np.zeros(len(units), dtype="<i4")
        rows[first] = one.counts[measure]
        rows[second] += other.counts[measure]
        deviations[measure], counts[measure] = moved, _interned(rows.tobytes())
    return UnitRows(units, deviations, counts, one.binary & other.binary)


@lru_cache(maxsize=1024)
def _union(one: bytes, other: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All units of two arrays, ascending, and where those of the first and of the second are among them."""
    first, second = _interned(one), _interned(other)
    units = np.union1d(first, second)
    return _interned(units.astype("<i4").tobytes()), np.searchsorted(units, first), np.searchsorted(units, second)


@lru_cache(maxsize=4096)
def _interned(numbers: bytes) -> np.ndarray:
    """One array for equal numbers, as all arms of a seed have them, so that they need not be compared one by one."""
    return np.frombuffer(numbers, "<i4").astype(np.int64)
