"""Series: channels over steps of time, of one length or padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probatum.recipe import Training
from probatum.rooms.kind import Kind, NamedSet, Toy

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import Tensor, nn

    from probatum.spec import Spec


class Series(Kind):
    """Numbers in the order of time."""

    NAME = "series"
    ABOUT = "series, as arrays (n, channels, time), or tables with a numeric column a step"
    ORDER = 20
    EXAMPLE = "cbf"

    def sets(self) -> Mapping[str, NamedSet]:
        """Cylinder, bell and funnel, and the sets of the folder of data."""
        from probatum.kinds.series.sets import sets

        return sets()

    def opens(self, door: Any) -> bool:
        """Arrays of three dimensions, and frames whose columns are called as steps are."""
        if not door.asked(self):
            return False
        said = door.reading.modality != "auto"
        if door.arrays is not None:
            from probatum.kinds.series.read import looks_like_series

            return said or looks_like_series(door.arrays.x)
        if door.large is not None:
            return said
        if not door.is_table:
            return False
        from probatum.kinds.series.read import looks_wide

        return said or (not door.options.get("text") and looks_wide(door.framed.features))

    def open(self, door: Any) -> Any:
        """Series in memory."""
        from probatum.kinds.series.read import from_arrays, from_framed

        if door.arrays is not None:
            return from_arrays(door.arrays, door.reading)
        if door.large is not None:
            from probatum.kinds.table.open_lazy import stream_parquet

            return stream_parquet(door.large, door.limit, door.name, door.reading)  # refuses, and says why
        return from_framed(door.framed, door.reading)

    def read_new(self, path: Any) -> Any:
        """The rows of a file."""
        from probatum.data.read import read_rows

        return read_rows(path)

    def fit(self, raw: Any) -> Any:
        """Mean and deviation of every channel."""
        from probatum.kinds.series.encode import SeriesEncoder

        return SeriesEncoder.fit(raw)

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
        """As it was saved."""
        from probatum.kinds.series.encode import SeriesEncoder

        return SeriesEncoder.from_state(meta, arrays)

    def describe(self, encoder: Any) -> dict[str, Any]:
        """Channels, the mask among them, and steps."""
        names = encoder.features
        return {"shape": (len(names), encoder.steps), "masked": encoder.masked, "features": names}

    def new_rows(self, encoder: Any, source: Any, exclude: Sequence[str] = ()) -> tuple[Any, pl.DataFrame]:
        """Series from arrays, or from the numeric columns of a frame."""
        from probatum.kinds.series.read import new_rows

        return new_rows(encoder, source, exclude)

    def as_new(self, raw: Any) -> np.ndarray:
        """The values (n, channels, time)."""
        return raw.values

    def training(self, task: str) -> Training:
        """Chosen on validation rows of development seeds, see decisions/baselines.md."""
        return Training(epochs=40, least_steps=300, batch_size=32, lr=8e-3, weight_decay=7e-3)

    def network(self, spec: Spec) -> nn.Module:
        """Three convolutions over time."""
        from probatum.kinds.series.network import SeriesNet

        return SeriesNet(spec)

    def toy(self, hidden: Tensor, generator: Any) -> Toy:
        """Noisy waves whose pace tells the class."""
        from probatum.kinds.series.toy import toy

        return toy(hidden, generator)


KIND = Series()
