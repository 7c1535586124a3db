"""A table larger than memory: raw rows read by row groups, the part of a split encoded as it is asked for."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, cast

import numpy as np
import polars as pl
import torch
from torch import Generator, Tensor

from probatum.data.columns import Column, conform
from probatum.data.facts import Facts
from probatum.data.lazy.groups import GroupCache, Plan, groups_of
from probatum.data.lazy.memory import Sizes, told
from probatum.data.lazy.parquet import CELL, Group, ParquetRows
from probatum.data.lazy.rows import LazyRows
from probatum.data.lazy.scan import plain_numbers
from probatum.data.pipeline import pipeline_from
from probatum.errors import InputError
from probatum.kinds.table.encode import RawTable, TableEncoder
from probatum.spec import Data

SPARSE = 0.1
"""Under this share of a group's rows, asked for out of the plan, only they are encoded and nothing is kept."""


@dataclass(frozen=True, eq=False)
class StreamedTable:
    """Raw rows of a table that stay in Parquet files.

    Attributes:
        source: the row groups.
        columns: columns that are used, with their kinds.
        facts: what the first pass found about them.
        sizes: what may be held at a time.
        mark: digest of all cells.
    """

    source: ParquetRows
    columns: tuple[Column, ...]
    facts: tuple[Facts, ...]
    sizes: Sizes
    mark: bytes = field(repr=False)
    streamed: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.source)

    @property
    def whole(self) -> float:
        """Bytes of the decoded table, estimated."""
        return self.source.size

    @property
    def piece(self) -> int:
        """Rows decoded at a time."""
        return piece_rows(self.source, self.sizes)

    @property
    def opened_with(self) -> int:
        """A limit in bytes with which the files are opened as they are now."""
        return min(self.sizes.grain, int(self.whole / 2))

    def prepared(self, dataset: Any, parts: Sequence[np.ndarray], seed: int) -> Data:
        """The split encoded: x of training and test rows is a `probatum.spec.Rows`.

        The pipeline is fitted on at most `Sizes.fit_rows` training rows drawn by the seed, and at most `Sizes.valid_rows`
        validation rows, drawn likewise, are used and kept as a tensor; targets are standardised on all training rows.
        """
        train, valid, test = parts
        valid = self.held_out(valid, seed)
        fitted, other = self.select((self.sample(train, seed), valid))
        encoder = TableEncoder.fit(fitted)
        del fitted
        pipeline = pipeline_from(dataset.kind, encoder, dataset.targets, train)
        held = dataset.with_targets(pipeline, valid, pipeline.encode(other))
        lazy = [dataset.with_targets(pipeline, rows, self.rows(encoder, rows)) for rows in (train, test)]
        return Data(pipeline.spec, lazy[0], held, lazy[1], pipeline)

    def take(self, rows: np.ndarray) -> RawTable:
        """The rows with these numbers, in this order, in memory; raises InputError where they would not fit."""
        ordered = np.unique(rows)
        size = len(ordered) * CELL * len(self.columns)
        if size > self.sizes.grain:
            raise InputError(
                f"{len(ordered)} rows take {told(size)}, and the data are streamed because memory is limited; "
                "take fewer, or raise memory= (--memory, PROBATUM_MEMORY)"
            )
        found = self.select((ordered,))[0]
        return found if np.array_equal(ordered, rows) else found.take(np.searchsorted(ordered, rows))

    def select(self, wanted: Sequence[np.ndarray]) -> list[RawTable]:
        """Several sets of ascending row numbers, found in one pass over the row groups."""
        kept: list[list[pl.DataFrame]] = [[] for _ in wanted]
        for group in self.source.groups:
            if any(_between(rows, group.first, group.first + group.rows).size for rows in wanted):
                for first, frame in self.source.read(group, self._names, self.piece):
                    for rows, frames in zip(wanted, kept, strict=True):
                        local = _between(rows, first, first + frame.height) - first
                        if local.size:
                            frames.append(self._cells(frame[local]))
        return [RawTable(pl.concat(f) if f else self._cells(self._empty()), self.columns) for f in kept]

    def encode(self, encoder: TableEncoder, group: Group, rows: np.ndarray) -> Tensor:
        """(k, columns) float32 of k ascending rows of one row group."""
        out = torch.empty((len(rows), _width(encoder)), dtype=torch.float32)
        done = 0
        for first, frame in self.source.read(group.between(int(rows[0]), int(rows[-1]) + 1), self._names, self.piece):
            local = _between(rows, first, first + frame.height) - first
            if local.size:
                cells = RawTable(self._cells(frame[local]), self.columns)
                out[done : done + local.size] = encoder.encode(cells)
                done += local.size
        return out

    def digest(self, sha: hashlib._Hash) -> None:
        """Feed schema, cells, row groups and window to a hash: all that the order of visits depends on."""
        layout = [group.rows for group in self.source.groups]
        sha.update(json.dumps(["streamed", [asdict(c) for c in self.columns], layout, self.sizes.grain]).encode())
        sha.update(self.mark)

    def describe(self) -> list[dict[str, Any]]:
        """Name, kind, missing cells and distinct values of each column."""
        return [facts.describe() for facts in self.facts]

    def sample(self, train: np.ndarray, seed: int) -> np.ndarray:
        """Training rows the pipeline is fitted on: all of them up to `Sizes.fit_rows`, else as many drawn by the seed."""
        return _draw(train, self.sizes.fit_rows(len(self.columns)), seed, 1)

    def held_out(self, valid: np.ndarray, seed: int) -> np.ndarray:
        """Validation rows in use: all of them up to `Sizes.valid_rows`, else as many drawn by the seed."""
        return _draw(valid, self.sizes.valid_rows(len(self.columns)), seed, 2)

    def rows(self, encoder: TableEncoder, rows: np.ndarray) -> Tensor:
        """These ascending rows as a `probatum.spec.Rows`."""
        return cast(Tensor, TableRows(self, encoder, rows))

    @property
    def _names(self) -> list[str]:
        return [column.name for column in self.columns]

    def _cells(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Cells of these columns as `conform` gives them; they were checked when the table was opened."""
        plain = plain_numbers(self.columns, self.source.schema)
        # One expression for all plain numbers: a call for each column and piece would take longer than the work.
        frame = frame.with_columns(pl.col(plain).cast(pl.Float64).fill_nan(None)) if plain else frame
        quick = set(plain)
        return pl.DataFrame([frame[c.name] if c.name in quick else conform(frame[c.name], c) for c in self.columns])

    def _empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema={c.name: self.source.schema[c.name] for c in self.columns})


class TableRows(LazyRows):
    """Encoded rows of one part of a streamed table.

    A block is what the part has in one row group, cut where it is larger than half a window. Training visits windows of
    several blocks: blocks in random order, rows mixed inside a window. Two windows are held, the one in use and the one
    that a thread reads ahead. Slices are read from first to last, a block at a time.
    """

    def __init__(self, raw: StreamedTable, encoder: TableEncoder, rows: np.ndarray) -> None:
        width = _width(encoder)
        super().__init__((len(rows), width), raw.sizes.most, raw.whole)
        self._raw, self._encoder, self._rows = raw, encoder, rows
        self._row_bytes = 4 * max(1, width)
        window = self._window = raw.sizes.window
        self._blocks, starts = _blocks(raw.source.groups, rows, max(1, window // 2 // self._row_bytes))
        self._starts = torch.from_numpy(starts)
        self._sizes = np.diff(starts) * self._row_bytes
        blocks = self._blocks

        def load(block: int) -> Tensor:
            return raw.encode(encoder, blocks[block], rows[starts[block] : starts[block + 1]])

        largest = int(self._sizes.max(initial=0))
        self._cache = GroupCache(load, self._sizes, max(2 * window, largest), window)
        self._plan: Plan | None = None
        self._end = 0
        weakref.finalize(self, self._cache.close)

    def order(self, generator: Generator) -> Tensor:
        """All positions: blocks shuffled, rows mixed inside windows of `Sizes.window` bytes of them."""
        shuffled = torch.randperm(len(self._blocks), generator=generator)
        visit = torch.empty(len(self), dtype=torch.int64)
        done, window, size = 0, [], 0
        for place, block in enumerate(shuffled.tolist()):
            window.append(torch.arange(int(self._starts[block]), int(self._starts[block + 1])))
            size += int(self._sizes[block])
            if size >= self._window or place == len(shuffled) - 1:
                positions = torch.cat(window)
                visit[done : done + len(positions)] = positions[torch.randperm(len(positions), generator=generator)]
                done, window, size = done + len(positions), [], 0
        return visit

    def ahead(self, batches: Sequence[Tensor]) -> None:
        """Read the row groups of these batches ahead, in a thread."""
        self._plan = plan = Plan(batches, self._gather, self._row_bytes, self._raw.sizes.grain // 32)
        starts, block = self._starts, plan.block  # the thread must not hold this object, or it would never go
        self._cache.follow(lambda: groups_of(batches, block, lambda index: _block_of(starts, index)))

    def read_index(self, index: Tensor) -> Tensor:
        """Rows of the plan from the groups held; others are read for themselves."""
        planned = None if self._plan is None else self._plan.take(index)
        return self._gather(index, sparse=True) if planned is None else planned

    def read_slice(self, first: int, last: int) -> Tensor:
        """Rows first .. last - 1; slices that follow one another are read ahead."""
        out = torch.empty((last - first, *self.shape[1:]))
        if first == last:
            return out
        onward = first == self._end > 0 and self._plan is None
        low, high = (int(_block_of(self._starts, torch.tensor([at]))) for at in (first, last - 1))
        if onward and not self._cache.following and last < len(self):
            self._cache.follow(lambda: range(low, len(self._sizes)))
        for block in range(low, high + 1):
            start, end = int(self._starts[block]), int(self._starts[block + 1])
            a, b = max(first, start), min(last, end)
            if a < b:
                out[a - first : b - first] = self._cache.get(block)[a - start : b - start]
        if self._plan is None:
            self._cache.drop_before(high)
            if last == len(self):
                self.close()
        self._end = last
        return out

    def close(self) -> None:
        """Stop the thread and free the groups held."""
        self._plan, self._end = None, 0
        self._cache.close()

    def _gather(self, index: Tensor, sparse: bool = False) -> Tensor:
        out = torch.empty((len(index), *self.shape[1:]))
        index = index.where(index >= 0, index + len(self))
        blocks = _block_of(self._starts, index)
        for block in blocks.unique().tolist():
            places = (blocks == block).nonzero().squeeze(1)
            start = int(self._starts[block])
            local = index[places] - start
            held = self._cache.peek(block) if sparse else None
            if sparse and held is None and len(local) * self._row_bytes < SPARSE * self._sizes[block]:
                wanted, back = local.unique(return_inverse=True)
                rows = self._rows[start + wanted.numpy()]
                out[places] = self._raw.encode(self._encoder, self._blocks[block], rows)[back]
            else:
                out[places] = self._cache.get(block)[local]
        return out


def piece_rows(source: ParquetRows, sizes: Sizes) -> int:
    """Rows of all columns that may be decoded at a time."""
    return int(min(65_536, max(256, sizes.piece // (CELL * max(1, len(source.schema))))))


def _blocks(groups: Sequence[Group], rows: np.ndarray, most: int) -> tuple[list[Group], np.ndarray]:
    """Row group of each block, and where blocks start among the positions of a part; at most `most` rows in each."""
    ends = np.searchsorted(rows, [group.first for group in groups] + [groups[-1].first + groups[-1].rows])
    blocks, starts = [], [0]
    for group, (a, b) in zip(groups, pairwise(ends.tolist()), strict=True):
        parts = -(-(b - a) // most)
        blocks += [group] * parts
        starts += [a + (b - a) * part // parts for part in range(1, parts + 1)]
    return blocks, np.array(starts, dtype=np.int64)


def _block_of(starts: Tensor, index: Tensor) -> Tensor:
    """Block of each position."""
    return torch.searchsorted(starts, index, right=True) - 1


def _between(rows: np.ndarray, first: int, last: int) -> np.ndarray:
    low, high = np.searchsorted(rows, [first, last])
    return rows[low:high]


def _width(encoder: TableEncoder) -> int:
    return len(encoder.numeric_names) + len(encoder.levels)


def _draw(rows: np.ndarray, most: int, seed: int, purpose: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    rng = np.random.Generator(np.random.PCG64([seed, purpose]))
    return rows[np.sort(rng.choice(len(rows), most, replace=False, shuffle=False))]
