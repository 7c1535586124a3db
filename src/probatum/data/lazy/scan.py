"""The pass over a streamed table that finds out what it is: column kinds, target, groups, duplicates, notices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from probatum.data.columns import (
    READINGS,
    Column,
    blank_missing,
    can_be,
    canonical,
    conform,
    floats,
    infer_column,
    words_column,
)
from probatum.data.facts import HIGH_CARDINALITY, Facts
from probatum.data.target import Target, read_target
from probatum.errors import InputError

if TYPE_CHECKING:  # importing pyarrow takes 50 MiB, and images are scanned without it
    from probatum.data.lazy.parquet import ParquetRows

MOST_WORDS = 100_000
"""Distinct words of a column that are counted; beyond, the rows seen so far say whether it looks like an id."""
MOST_NUMBERS = 1_000
"""Distinct numbers of a target that are counted where no task is given: more are reals."""


def column_kinds(source: ParquetRows, names: Sequence[str], rows: int) -> dict[str, Column]:
    """Kind of each column, from its type, and for words from all its cells as in memory."""
    kinds = {
        name: infer_column(pl.Series(name, [], dtype=source.schema[name]))
        for name in names
        if source.schema[name] != pl.String
    }
    left = {name: list(READINGS) for name in names if source.schema[name] == pl.String}
    filled: set[str] = set()
    for group in source.groups:
        open_names = [name for name, readings in left.items() if readings]
        if not open_names:
            break
        for _, frame in source.read(group, open_names, rows):
            for name in open_names:
                cells = blank_missing(frame[name]).drop_nulls().unique()
                if len(cells):
                    filled.add(name)
                    left[name] = [reading for reading in left[name] if can_be(cells, reading)]
    for name, readings in left.items():
        kinds[name] = words_column(name, next(iter(readings), None)) if name in filled else Column(name, "number")
    return {name: kinds[name] for name in names}


class Coder:
    """Cells -> codes 0, 1, ... in order of appearance; keeps a code a row and the distinct cells."""

    def __init__(self, n: int, word: Callable[[Any], Any] = lambda cell: cell) -> None:
        self.codes = np.empty(n, dtype=np.int32)
        self.known: dict[Any, int] = {}
        self._word = word

    def add(self, first: int, cells: pl.Series) -> None:
        """Code these cells, the first of which is row `first`."""
        distinct = cells.unique(maintain_order=True)
        codes = [self.known.setdefault(self._word(cell), len(self.known)) for cell in distinct.to_list()]
        spread = cells.replace_strict(distinct, pl.Series(codes, dtype=pl.Int32), return_dtype=pl.Int32)
        self.codes[first : first + len(cells)] = spread.to_numpy()


def stream_target(source: ParquetRows, name: str, task: str, rows: int) -> Target:
    """The target as `read_target` reads it, from pieces: 8 bytes a row are kept."""
    n = len(source)
    words = source.schema[name] in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)
    coder = Coder(n) if words else None
    numbers = np.empty(0 if words else n, dtype=np.float64)
    distinct: np.ndarray | None = np.zeros(0)
    gone, first_gone = 0, 0
    kind: Any = pl.String if source.schema[name] != pl.Boolean else pl.Boolean
    for first, frame in source.scan([name], rows):
        cells = frame[name]
        if cells.dtype in (pl.Categorical, pl.Enum):
            cells = cells.cast(pl.String)
        if cells.dtype == pl.String:
            cells = blank_missing(cells)
        elif coder is None:
            cells = cells.cast(pl.Float64).fill_nan(None)
        if cells.null_count():
            first_gone = first_gone if gone else first + int(cells.is_null().arg_true()[0])
            gone += cells.null_count()
        elif coder is not None:
            coder.add(first, cells)
        else:
            values = cells.to_numpy()
            if np.isinf(values).any():
                row = first + int(np.isinf(values).argmax())
                raise InputError(f"target {name!r} is infinite in row {row}; mend it or leave the row out")
            numbers[first : first + len(values)] = values
            if distinct is not None:
                distinct = np.union1d(distinct, values)
                distinct = None if len(distinct) > MOST_NUMBERS and task != "classes" else distinct
    if gone:
        raise InputError(
            f"target {name!r} is missing in {gone} row(s), first row {first_gone}; fill them or leave them out"
        )
    if coder is not None:
        found = read_target(pl.Series(name, list(coder.known), dtype=kind), name, task, rows=n)
        return Target(found.task, found.names, found.values[coder.codes], found.classes)
    if distinct is None:
        return Target("reals", (name,), numbers[:, None])
    found = read_target(pl.Series(name, distinct), name, task, rows=n)
    if found.task == "reals":
        return Target("reals", (name,), numbers[:, None])
    return Target("classes", (name,), np.searchsorted(distinct, numbers), found.classes)


def mix(bits: np.ndarray, salt: int) -> np.ndarray:
    """A well-mixed 64-bit number for each of these and a salt (the finalizer of splitmix64, Steele et al. 2014)."""
    z = bits ^ np.uint64(salt)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def salt_of(name: str) -> int:
    """A 64-bit number for a name, equal in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def word_hashes(words: pl.Series, salt: int) -> np.ndarray:
    """(n,) uint64: equal words of a column have equal numbers, in every process."""
    distinct = words.unique(maintain_order=True)
    hashes = [0 if word is None else salt_of(word) for word in distinct.to_list()]
    spread = words.replace_strict(distinct, pl.Series(hashes, dtype=pl.UInt64), return_dtype=pl.UInt64)
    return mix(spread.to_numpy(), salt)


def number_hashes(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(n,) uint64: the sum over columns of a number that equal cells of a column share; `values` (n, k) float64."""
    total = np.zeros(len(values), dtype=np.uint64)
    for j, name in enumerate(names):  # a column at a time stays in the processor's cache
        total += mix(canonical(values[:, j]).view(np.uint64), salt_of(name))
    return total


def plain_numbers(columns: Sequence[Column], schema: Mapping[str, pl.DataType]) -> list[str]:
    """Names of the columns that are numbers by their type and take no more than a cast."""
    return [c.name for c in columns if c.kind == "number" and schema[c.name].is_numeric()]


@dataclass(frozen=True)
class Piece:
    """Some rows of a table: numbers and dates as a matrix, NaN = missing, and words by column."""

    first: int
    numbers: np.ndarray
    words: dict[str, pl.Series]


class Cells:
    """How the columns of a table become pieces: plain numbers by one cast for all, the others one by one."""

    def __init__(self, columns: Sequence[Column], schema: Mapping[str, pl.DataType]) -> None:
        by_name = {column.name: column for column in columns}
        plain = plain_numbers(columns, schema)
        self.names = [column.name for column in columns]
        self.plain = plain
        rest = [column for column in columns if column.name not in set(plain)]
        self.other = [column for column in rest if column.kind in ("number", "date")]
        self.words = [column for column in rest if column.kind not in ("number", "date")]
        self.numbers = [by_name[name] for name in plain] + self.other

    def read(self, frame: pl.DataFrame, first: int) -> Piece:
        """Raises InputError for a cell that does not fit its column's kind."""
        cast = frame.select(pl.col(self.plain).cast(pl.Float64)).to_numpy() if self.plain else None
        if cast is not None and np.isinf(cast).any():
            row, j = (int(place) for place in np.argwhere(np.isinf(cast))[0])
            conform(frame[self.plain[j]], self.numbers[j], first)  # which tells it
            raise InputError(f"column {self.plain[j]!r} is infinite in row {first + row}; replace it by a number")
        others = [floats(conform(frame[column.name], column, first))[:, None] for column in self.other]
        parts = ([] if cast is None else [cast]) + others
        numbers = np.concatenate(parts, axis=1) if others else parts[0] if parts else np.empty((frame.height, 0))
        words = {column.name: conform(frame[column.name], column, first) for column in self.words}
        return Piece(first, numbers, words)


class _Pairs:
    """Whether values of a column and classes of the target correspond one to one, as far as seen."""

    def __init__(self, values: Target) -> None:
        self.most = len(values.classes)
        self.found: set[tuple[Any, int]] | None = set() if values.task == "classes" else None

    def add(self, cells: np.ndarray | pl.Series, target: np.ndarray) -> None:
        if self.found is None:
            return
        pairs = pl.DataFrame({"cell": cells, "class": target}).unique()
        if len(pairs) <= self.most and pairs["cell"].null_count() == 0:
            self.found |= set(pairs.iter_rows())
        if len(pairs) > self.most or len(self.found) > self.most or pairs["cell"].null_count():
            self.found = None

    def tell(self) -> bool:
        return self.found is not None and len(self.found) == self.most == len({cell for cell, _ in self.found})


class _Numbers:
    """What is counted of all number and date columns as their pieces go by."""

    def __init__(self, columns: Sequence[Column], values: Target) -> None:
        k = len(columns)
        self.columns, self.rows = columns, 0
        self.missing = np.zeros(k, dtype=np.int64)
        self.low, self.high = np.full(k, np.inf), np.full(k, -np.inf)
        self.up = np.array([column.kind == "number" for column in columns], dtype=bool)
        self.down = self.up.copy()
        self.last: np.ndarray | None = None
        self.pairs = [_Pairs(values) for _ in columns]
        self.line = values.task == "reals" and values.values.shape[1] == 1
        self.origin, self.height = np.zeros(k), 0.0
        self.sums = np.zeros((5, k))

    def add(self, values: np.ndarray, target: np.ndarray) -> None:
        gaps = np.isnan(values)
        self.missing += gaps.sum(axis=0)
        self.low = np.fmin(self.low, np.fmin.reduce(values, axis=0))
        self.high = np.fmax(self.high, np.fmax.reduce(values, axis=0))
        before = values[:1] if self.last is None else self.last
        for j in np.flatnonzero((self.up | self.down) & (self.missing == 0)):
            steps = np.diff(values[:, j], prepend=[] if self.last is None else before[0, j])
            whole = bool((values[:, j] == np.round(values[:, j])).all())
            self.up[j] &= whole and bool((steps > 0).all())
            self.down[j] &= whole and bool((steps < 0).all())
        self.last = values[-1:]
        for column, pairs in enumerate(self.pairs):
            if self.missing[column]:
                pairs.found = None
            pairs.add(values[:, column], target)
        if self.line:
            y = target[:, 0]
            if self.rows == 0:
                self.origin, self.height = np.nan_to_num(values[0]), float(y[0])
            a, b = values - self.origin, y - self.height
            self.sums += [
                a.sum(axis=0),
                np.full(len(self.origin), b.sum()),
                (a * a).sum(axis=0),
                b @ b + 0 * a[0],
                b @ a,
            ]
        self.rows += len(values)

    def facts(self, firsts: Mapping[str, Any]) -> list[Facts]:
        return [self._facts(j, column, firsts[column.name]) for j, column in enumerate(self.columns)]

    def _facts(self, j: int, column: Column, first: Any) -> Facts:
        missing = int(self.missing[j])
        seen = 0 if missing == self.rows else 1 if self.low[j] == self.high[j] else 2
        running = bool(self.up[j] or self.down[j]) and missing == 0 and self.rows > 1
        tells = not missing and seen > 1 and (self.pairs[j].tell() or (column.kind == "number" and self._straight(j)))
        return Facts(
            column, self.rows, missing, seen + (missing > 0), first, False, running, bool(tells), counted=False
        )

    def _straight(self, j: int) -> bool:
        """Whether column and target lie on a line."""
        if not self.line:
            return False
        a, b, aa, bb, ab = self.sums[:, j] / self.rows
        spread = (aa - a * a) * (bb - b * b)
        return bool(spread > 0 and abs(ab - a * b) / np.sqrt(spread) > 1 - 1e-9)


class _Words:
    """What is counted of a column of words as its pieces go by."""

    def __init__(self, column: Column, values: Target) -> None:
        self.column = column
        self.rows = self.missing = 0
        self.known: set[str] | None = set()
        self.scattered = False
        self.pairs = _Pairs(values)

    def add(self, words: pl.Series, target: np.ndarray) -> None:
        self.missing += words.null_count()
        self.pairs.add(words, target)
        self.rows += len(words)
        if self.known is not None:
            self.known.update(words.drop_nulls().unique().to_list())
            if len(self.known) > MOST_WORDS:
                self.scattered = len(self.known) > HIGH_CARDINALITY * self.rows
                self.known = None

    def facts(self, first: Any) -> Facts:
        counted = self.known is not None
        levels = MOST_WORDS + 1 if self.known is None else len(self.known)
        scattered = levels > HIGH_CARDINALITY * self.rows if counted else self.scattered
        scattered = scattered and self.column.kind == "category"
        tells = self.pairs.tell()
        return Facts(
            self.column, self.rows, self.missing, levels + (self.missing > 0), first, scattered, False, tells, counted
        )


@dataclass(frozen=True)
class Scanned:
    """What a pass over the feature columns found: facts on each, and a 64-bit number a row that equal rows share."""

    facts: tuple[Facts, ...]
    hashes: np.ndarray


def scan(source: ParquetRows, columns: Sequence[Column], values: Target, rows: int) -> Scanned:
    """Read every cell of these columns once; raises InputError for a cell that does not fit its column's kind."""
    cells = Cells(columns, source.schema)
    numbers = _Numbers(cells.numbers, values)
    words = {column.name: _Words(column, values) for column in cells.words}
    hashes = np.zeros(len(source), dtype=np.uint64)
    firsts: dict[str, Any] = {}
    for first, frame in source.scan(cells.names, rows):
        firsts = firsts or {column.name: conform(frame[column.name][:1], column)[0] for column in columns}
        piece = cells.read(frame, first)
        target = values.values[first : first + frame.height]
        numbers.add(piece.numbers, target)
        for name, tally in words.items():
            tally.add(piece.words[name], target)
        hashes[first : first + frame.height] = _row_hashes(cells, piece)
    found = {facts.column.name: facts for facts in numbers.facts(firsts)}
    found |= {name: tally.facts(firsts[name]) for name, tally in words.items()}
    return Scanned(tuple(found[name] for name in cells.names), hashes)


def without(source: ParquetRows, hashes: np.ndarray, columns: Sequence[Column], rows: int) -> None:
    """Take columns that are not used out of the rows' numbers again, in place."""
    cells = Cells(columns, source.schema)
    for first, frame in source.scan(cells.names, rows) if columns else ():
        hashes[first : first + frame.height] -= _row_hashes(cells, cells.read(frame, first))


def _row_hashes(cells: Cells, piece: Piece) -> np.ndarray:
    found = number_hashes(piece.numbers, [column.name for column in cells.numbers])
    for name, words in piece.words.items():
        found += word_hashes(words, salt_of(name))
    return found


def units_of(hashes: np.ndarray) -> np.ndarray:
    """(n,) int64 as `split.unit_numbers`: rows of equal number share a unit, counted in order of appearance.

    Two different rows share a number by chance once in 2^64 / n^2 tables or so; they would stay on one side.
    """
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    firsts = np.arange(len(hashes), dtype=np.int64)
    if not len(repeated):
        return firsts
    place = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
    rows = np.flatnonzero(repeated[place] == hashes)
    which = place[rows]
    leader = np.full(len(repeated), len(hashes), dtype=np.int64)
    np.minimum.at(leader, which, rows)
    firsts[rows] = leader[which]
    return (np.cumsum(firsts == np.arange(len(hashes))) - 1)[firsts]
