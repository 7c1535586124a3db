"""Parquet by row groups: one file or a folder of them, read a piece at a time and never as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from probatum.errors import InputError

CELL = 8
"""Bytes of a decoded number."""


@dataclass(frozen=True)
class Group:
    """Rows of one row group.

    Attributes:
        file: number of the file.
        number: number of the row group in it.
        first: first row, counted in the whole dataset.
        rows: how many.
        skip: rows of the row group before the first.
    """

    file: int
    number: int
    first: int
    rows: int
    skip: int = 0

    def between(self, first: int, last: int) -> Group:
        """The rows first .. last - 1 of the whole dataset, which lie in this group."""
        return Group(self.file, self.number, first, last - first, self.skip + first - self.first)


@dataclass(frozen=True, eq=False)
class ParquetRows:
    """Row groups of Parquet files with one schema, in the order of the files' names; row groups without rows left out.

    Attributes:
        files: the files.
        footers: their metadata.
        stamps: size and time of change of each file, by which a change is noticed.
        schema: names and Polars types of the columns.
        groups: the row groups that have rows.
    """

    files: tuple[Path, ...]
    footers: tuple[pq.FileMetaData, ...]
    stamps: tuple[tuple[int, int], ...]
    schema: dict[str, pl.DataType]
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return self.groups[-1].first + self.groups[-1].rows if self.groups else 0

    @cached_property
    def size(self) -> float:
        """Bytes of the decoded table, estimated from the metadata: 8 a cell, or the stored size where that is more."""
        total = 0.0
        for group in self.groups:
            meta = self.footers[group.file].row_group(group.number)
            total += sum(
                max(meta.column(j).total_uncompressed_size, CELL * group.rows) for j in range(meta.num_columns)
            )
        return total

    def read(self, place: Group, columns: Sequence[str], rows: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """Pieces of at most `rows` of these rows, each with the number of its first row in the whole dataset.

        Raises InputError that names file and row group where they cannot be read.
        """
        path = self.files[place.file]
        where = f"{str(path)!r}, row group {place.number}"
        if _stamp(path) != self.stamps[place.file]:
            raise InputError(f"{where}: the file has changed since it was opened; open it again")
        first, last = place.first - place.skip, place.first + place.rows
        try:
            with pq.ParquetFile(
                path,
                metadata=self.footers[place.file],
                buffer_size=1 << 20,
                pre_buffer=False,
                page_checksum_verification=True,
            ) as file:
                for batch in file.iter_batches(rows, row_groups=[place.number], columns=columns, use_threads=False):
                    low, high = max(first, place.first), min(first + batch.num_rows, last)
                    if low < high:
                        yield low, pl.DataFrame(pl.from_arrow(batch.slice(low - first, high - low))).select(columns)
                    first += batch.num_rows
                    if first >= last:
                        break
        except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{where} cannot be read: {said}; the file is damaged, write it again") from error
        if first < last:
            raise InputError(f"{where} ends {last - first} rows early; the file is damaged, write it again")

    def scan(self, columns: Sequence[str], rows: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """All pieces of these columns, in order; see `read`."""
        for group in self.groups:
            yield from self.read(group, columns, rows)


def open_parquet(path: Path) -> ParquetRows:
    """Read the footers of a file, or of all .parquet files in a folder; no cell is read.

    Raises InputError for a file that is no Parquet, and for files whose columns differ.
    """
    files = parquet_files(path)
    footers, groups = [], []
    first, schema, stamps = 0, None, []
    for number, file in enumerate(files):
        try:
            with pq.ParquetFile(file) as opened:
                meta, arrow = opened.metadata, opened.schema_arrow
        except (pa.ArrowException, OSError) as error:
            said = str(error).splitlines()[0]
            raise InputError(f"{str(file)!r} cannot be read: {said}; give a Parquet file") from error
        if len(set(arrow.names)) < len(arrow.names):
            raise InputError(f"{str(file)!r} has two columns of one name; rename one")
        types = dict(pl.DataFrame(pl.from_arrow(arrow.empty_table())).schema)
        if schema is None:
            schema = types
        elif types != schema:
            unlike = [c for c in {**schema, **types} if schema.get(c) != types.get(c)] or ["their order"]
            raise InputError(
                f"{str(file)!r} has other columns than {str(files[0])!r}: {unlike[0]!r} is {types.get(unlike[0])} "
                f"instead of {schema.get(unlike[0])}; write both alike"
            )
        footers.append(meta)
        stamps.append(_stamp(file))
        for inner in range(meta.num_row_groups):
            rows = meta.row_group(inner).num_rows
            if rows:
                groups.append(Group(number, inner, first, rows))
                first += rows
    return ParquetRows(files, tuple(footers), tuple(stamps), schema or {}, tuple(groups))


def parquet_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or the .parquet files of a folder by name; () where there are none."""
    if path.is_dir():
        return tuple(sorted(p for p in path.iterdir() if p.name.lower().endswith(".parquet") and p.is_file()))
    return (path,)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{str(path)!r} is gone since it was opened; put it back") from error
    return found.st_size, found.st_mtime_ns
