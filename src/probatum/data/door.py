"""The door: what was handed over, read once, for every kind of data that looks whether it is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from probatum.data.arrays import Arrays, given_arrays, read_arrays
from probatum.data.frame import Framed, framed
from probatum.data.lazy.memory import memory_limit
from probatum.data.read import TABLE_SUFFIXES, read_table, to_polars
from probatum.errors import InputError
from probatum.settings import Reading

if TYPE_CHECKING:
    from probatum.data.lazy.parquet import ParquetRows


class Door:
    """Data as they were given, and what the user said of them; files are read when they are first asked for.

    Args:
        source: a path, a data frame, or a pair (X, y).
        reading: what was said.

    Raises:
        InputError: a path that is not there.
    """

    def __init__(self, source: Any, reading: Reading) -> None:
        self.source, self.reading = source, reading
        self.path = Path(source) if isinstance(source, str | Path) else None
        if self.path is not None and not self.path.exists():
            raise InputError(f"{str(self.path)!r} does not exist; check the path")
        self.pair = isinstance(source, tuple) and len(source) == 2

    @property
    def name(self) -> str:
        """What the data are called."""
        if self.reading.name:
            return self.reading.name
        if self.path is not None:
            return self.path.name.split(".")[0]
        return "arrays" if self.pair else "frame"

    @property
    def options(self) -> Mapping[str, Any]:
        """What was said that only some kinds of data ask."""
        return self.reading.options

    @property
    def limit(self) -> float:
        """Bytes that the decoded data may take."""
        return memory_limit(self.reading.memory)

    def ends(self, *suffixes: str) -> bool:
        """Whether it is a file that ends so, in any case of letters."""
        return self.path is not None and self.path.is_file() and self.path.name.lower().endswith(suffixes)

    def asked(self, kind: Any) -> bool:
        """Whether what the user said lets the data be of this kind: its name or modality, and its task."""
        named = self.reading.modality in ("auto", kind.NAME, kind.modality)
        return named and (self.reading.task == "auto" or self.reading.task in kind.TASKS)

    @property
    def folder(self) -> Path | None:
        """A folder that is no table in pieces."""
        return self.path if self.path is not None and self.path.is_dir() and not self.tables else None

    @cached_property
    def tables(self) -> tuple[Path, ...]:
        """The Parquet files of a folder of them."""
        if self.path is None or not self.path.is_dir():
            return ()
        from probatum.data.lazy.parquet import parquet_files

        return tuple(parquet_files(self.path))

    @property
    def is_table(self) -> bool:
        """Whether it is a data frame, or a file or folder that holds one."""
        if self.pair:
            return False
        return self.path is None or bool(self.tables) or self.ends(*TABLE_SUFFIXES)

    @cached_property
    def large(self) -> ParquetRows | None:
        """Parquet files whose rows would take more memory than they may; None for whatever is read at once."""
        if self.path is None or not (self.tables or self.ends(".parquet")):
            return None
        from probatum.data.lazy.parquet import open_parquet  # only what is in Parquet files pays for pyarrow

        rows = open_parquet(self.path)
        return rows if rows.size > self.limit else None

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The data frame, read whole."""
        if self.path is None:
            return to_polars(self.source)
        return pl.concat([read_table(file) for file in self.tables]) if self.tables else read_table(self.path)

    @cached_property
    def framed(self) -> Framed:
        """The data frame, its target and what restricts its split; kinds add their notices to it, so ask once."""
        return framed(self.frame, self.name, self.reading)

    @cached_property
    def arrays(self) -> Arrays | None:
        """X and y, as a pair or from an .npz file; None for anything else."""
        said = self.reading
        if self.path is not None and self.path.suffix == ".npz":
            return read_arrays(self.path, self.name, said.target, said.split)
        if not self.pair:
            return None
        if said.group or said.time or said.options.get("text") or said.drop:
            raise InputError("group, time, text and drop name columns; arrays (X, y) have none: give a data frame")
        return given_arrays(self.source[0], self.source[1], self.name, said.target, said.split)
