"""The door: what was handed over, read once, for every kind of data that looks whether it is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from probatum.data.arrays import Arrays, given_arrays, read_arrays
from probatum.data.frame import Framed, framed
from probatum.data.joined import joined_arrays, joined_frames, parts_of
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
        self.test = None if reading.test is None else Door(reading.test, replace(reading, test=None, name="test rows"))

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
        if rows.size <= self.limit:
            return None
        if self.test is not None:
            raise InputError(
                f"{str(self.path)!r} does not fit in memory, and what is streamed takes no test rows; put both into one "
                "folder of Parquet files with a column split that says train or test, or raise memory= (--memory)"
            )
        return rows

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The data frame, read whole, with test rows of the user's own below it."""
        if self.test is None:
            return self._own_frame
        if not self.test.is_table:
            raise InputError(
                f"the data are a table, and the test rows are not ({self.test.told}); give a table of them"
            )
        return joined_frames(self._own_frame, self.test.frame, self.reading)

    @cached_property
    def _own_frame(self) -> pl.DataFrame:
        if self.path is None:
            return to_polars(self.source)
        return pl.concat([read_table(file) for file in self.tables]) if self.tables else read_table(self.path)

    @cached_property
    def framed(self) -> Framed:
        """The data frame, its target and what restricts its split; kinds add their notices to it, so ask once."""
        if self.test is None:
            return framed(self.frame, self.name, self.reading)
        whole, rows = self.frame, self.test.frame.height
        found = framed(whole, self.name, self.reading, parts_of(whole.height - rows, rows))
        more = [c for c in self.test.frame.columns if c not in whole.columns]
        if more:
            found.notices.append(f"column(s) {', '.join(map(repr, more))} stand in the test rows alone: left out")
        return found

    @property
    def told(self) -> str:
        """What was handed over, in words."""
        return repr(str(self.path)) if self.path is not None else f"a {type(self.source).__name__}"

    def training_targets(self, target: str) -> pl.Series | np.ndarray | None:
        """Where there are test rows of the user's own, the targets of the others; None where that is not known."""
        if self.test is None:
            return None
        if self.arrays is not None and self.arrays.given is not None:
            return self.arrays.y[: len(self.arrays.y) - len(self.test.arrays.y)] if self.test.arrays else None
        return self._own_frame[target] if self.is_table and target in self._own_frame.columns else None

    @cached_property
    def arrays(self) -> Arrays | None:
        """X and y, as a pair or from an .npz file, with test rows of the user's own behind them; None for anything else."""
        own = self._own_arrays
        if own is None or self.test is None:
            return own
        if self.test.arrays is None:
            raise InputError(f"the data are arrays, and the test rows are not ({self.test.told}); give (X, y) of them")
        return joined_arrays(own, self.test.arrays)

    @cached_property
    def _own_arrays(self) -> Arrays | None:
        said = self.reading
        if self.path is not None and self.path.suffix == ".npz":
            return read_arrays(self.path, self.name, said.target, said.split)
        if not self.pair:
            return None
        if said.group or said.time or said.options.get("text") or said.drop:
            raise InputError("group, time, text and drop name columns; arrays (X, y) have none: give a data frame")
        return given_arrays(self.source[0], self.source[1], self.name, said.target, said.split)
