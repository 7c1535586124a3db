"""Tables: a column a feature, numbers, categories, booleans and dates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probatum.errors import InputError
from probatum.recipe import Training
from probatum.rooms.kind import Kind, NamedSet, Toy

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import Tensor, nn

    from probatum.spec import Spec


class Table(Kind):
    """Rows of numbers and categories."""

    NAME = "table"
    ABOUT = "tables, as .csv, .tsv, .parquet, data frames or arrays (n, columns)"
    ORDER = 90
    EXAMPLE = "iris"

    def sets(self) -> Mapping[str, NamedSet]:
        """Six embedded tables, and those of the folder of data."""
        from probatum.kinds.table.sets import sets

        return sets()

    def opens(self, door: Any) -> bool:
        """Every frame, and arrays (n, columns), that are nothing else."""
        if not door.asked(self):
            return False
        if door.arrays is not None:
            return door.reading.modality != "auto" or getattr(door.arrays.x, "ndim", 0) == 2
        return door.is_table

    def open(self, door: Any) -> Any:
        """A table in memory, or one that stays in its Parquet files."""
        from probatum.kinds.table import read

        if door.arrays is not None:
            return read.from_arrays(door.arrays, door.reading)
        if door.large is not None:
            from probatum.kinds.table.open_lazy import stream_parquet

            return stream_parquet(door.large, door.limit, door.name, door.reading)
        return read.from_framed(door.framed, door.reading)

    def read_new(self, path: Any) -> Any:
        """The rows of a file."""
        from probatum.data.read import read_rows

        return read_rows(path)

    def fit(self, raw: Any) -> Any:
        """Quantiles and levels of these rows."""
        from probatum.kinds.table.encode import TableEncoder

        return TableEncoder.fit(raw)

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
        """As it was saved."""
        from probatum.kinds.table.encode import TableEncoder

        return TableEncoder.from_state(meta, arrays)

    def describe(self, encoder: Any) -> dict[str, Any]:
        """Numbers first, then the codes of categories."""
        numbers, sizes = encoder.numeric_names, encoder.cardinalities
        return {
            "shape": (len(numbers) + len(sizes),),
            "numeric": len(numbers),
            "cardinalities": sizes,
            "features": numbers + tuple(encoder.levels),
        }

    def new_rows(self, encoder: Any, source: Any, exclude: Sequence[str] = ()) -> tuple[Any, pl.DataFrame]:
        """Rows of the same columns; InputError that names those that are missing."""
        from probatum.kinds.table.encode import new_frame, read_rows

        frame = new_frame(encoder, source)
        return read_rows(frame, encoder.columns), frame

    def as_new(self, raw: Any) -> pl.DataFrame:
        """The columns as a frame."""
        return raw.frame

    def adapted(self, dataset: Any, encoder: Any) -> Any:
        """The same columns as in pretraining, and its codes."""
        from probatum.kinds.table.encode import as_in_pretraining

        return as_in_pretraining(dataset, encoder)

    def check_weights_alone(self, dataset: Any) -> None:
        """InputError where there are categories, whose codes only their encoder knows."""
        if dataset.prepare(0).spec.cardinalities:
            raise InputError(
                f"{dataset.name} has categories, and weights alone do not say what their codes mean; pretrain here "
                "instead: pretrain=DATA"
            )

    def shared_rows(self, first: Any, second: Any) -> int:
        """Rows that agree in all columns that both have."""
        names = sorted(set(first.frame.columns) & set(second.frame.columns))
        known = set(first.frame.select(names).rows())
        return sum(row in known for row in second.frame.select(names).rows())

    def training(self, task: str) -> Training:
        """Chosen on validation rows of development seeds, see decisions/baselines.md."""
        return Training(epochs=40, least_steps=300, batch_size=64, lr=8e-3, weight_decay=7e-3)

    def network(self, spec: Spec) -> nn.Module:
        """Three hidden layers over scaled numbers and embedded categories."""
        from probatum.kinds.table.network import TableMLP

        return TableMLP(spec)

    def toy(self, hidden: Tensor, generator: Any) -> Toy:
        """Five numbers, two of which tell the class, and a category that does not."""
        from probatum.kinds.table.toy import toy

        return toy(hidden, generator)


KIND = Table()
