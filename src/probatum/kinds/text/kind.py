"""Texts: a sentence or a page a row, as token ids."""

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


class Text(Kind):
    """Words of one row."""

    NAME = "text"
    ABOUT = "texts, as a column of a table, or a list of strings"
    ORDER = 30
    EXAMPLE = "toy-topics"

    def options(self) -> type:
        """The column of the texts."""
        from probatum.kinds.text.options import Options

        return Options

    def sets(self) -> Mapping[str, NamedSet]:
        """Toy topics, and the sets of the folder of data."""
        from probatum.kinds.text.sets import sets

        return sets()

    def opens(self, door: Any) -> bool:
        """Lists of strings, and frames of which a text column is named or is all there is."""
        if not door.asked(self):
            return False
        said = door.reading.modality != "auto"
        if door.arrays is not None:
            x = door.arrays.x
            return said or isinstance(x, list) or x.dtype.kind in "OUS"
        if door.large is not None:
            return said or bool(door.options.get("text"))
        if not door.is_table:
            return False
        if said or door.options.get("text"):
            return True
        from probatum.kinds.text.read import is_text

        features = door.framed.features
        kept = [name for name in features.columns if name != door.reading.group]
        return len(kept) == 1 and is_text(features[kept[0]])

    def open(self, door: Any) -> Any:
        """Texts in memory."""
        from probatum.kinds.text.read import from_arrays, from_framed

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
        """The vocabulary of these texts."""
        from probatum.kinds.text.encode import TextEncoder

        return TextEncoder.fit(raw)

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
        """As it was saved."""
        from probatum.kinds.text.encode import TextEncoder

        return TextEncoder.from_state(meta, arrays)

    def describe(self, encoder: Any) -> dict[str, Any]:
        """Tokens of a row, and how many there are to choose from."""
        return {"shape": (encoder.length,), "vocabulary": encoder.vocabulary, "features": (encoder.column,)}

    def new_rows(self, encoder: Any, source: Any, exclude: Sequence[str] = ()) -> tuple[Any, pl.DataFrame]:
        """A list of strings, or a frame with the column of texts."""
        from probatum.kinds.text.read import new_rows

        return new_rows(encoder, source)

    def as_new(self, raw: Any) -> list[str]:
        """The strings."""
        return list(raw.texts)

    def adapted(self, dataset: Any, encoder: Any) -> Any:
        """The token ids of pretraining."""
        from dataclasses import replace

        column = getattr(dataset.raw, "column", encoder.column)
        return replace(dataset, encoder=replace(encoder, column=column))

    def check_weights_alone(self, dataset: Any) -> None:
        """InputError: only their encoder knows which word each id is."""
        raise InputError(
            "weights alone do not say which word each of their token ids is; pretrain here instead: pretrain=DATA"
        )

    def training(self, task: str) -> Training:
        """Chosen on validation rows of development seeds, see decisions/baselines.md."""
        return Training(epochs=15, least_steps=300, batch_size=64, lr=8e-3, weight_decay=7e-3)

    def network(self, spec: Spec) -> nn.Module:
        """Embeddings pooled by attention."""
        from probatum.kinds.text.network import AttentionText

        return AttentionText(spec)

    def toy(self, hidden: Tensor, generator: Any) -> Toy:
        """Random tokens among which some tell the class."""
        from probatum.kinds.text.toy import toy

        return toy(hidden, generator)


KIND = Text()
