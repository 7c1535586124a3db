"""The pipeline: what was fitted on the training rows, and how it is applied to new data, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from probatum.data.columns import conform, infer_column
from probatum.data.read import read_any, to_polars
from probatum.data.target import Target, TargetCoder
from probatum.errors import InputError
from probatum.kinds.image.encode import ImageEncoder, RawImages, channel_names
from probatum.kinds.image.lazy_images import StreamedImages
from probatum.kinds.language.tokens import TokenEncoder
from probatum.kinds.series.encode import RawSeries, SeriesEncoder, raw_series
from probatum.kinds.table.encode import RawTable, TableEncoder, read_rows
from probatum.kinds.table.lazy_table import StreamedTable
from probatum.kinds.text.encode import RawTexts, TextEncoder, raw_texts
from probatum.spec import Spec

Raw = RawTable | RawImages | RawTexts | RawSeries | StreamedTable | StreamedImages
Encoder = TableEncoder | ImageEncoder | TextEncoder | SeriesEncoder
ENCODERS: dict[str, Any] = {
    "table": TableEncoder,
    "image": ImageEncoder,
    "text": TextEncoder,
    "series": SeriesEncoder,
}
FORMAT = 1


@dataclass(frozen=True)
class Pipeline:
    """Raw rows -> x and back from outputs to predictions; `spec` describes one encoded example."""

    spec: Spec
    features: Encoder | TokenEncoder
    target: TargetCoder

    def encode(self, raw: Raw) -> Tensor:
        """x of these raw rows, as probatum.spec describes it."""
        encoder: Any = self.features
        return encoder.encode(raw)

    def encode_target(self, values: Sequence[Any]) -> Tensor:
        """y of raw labels: (n,) int64 class codes, or (n, outputs) float32 standardised reals."""
        return self.target.encode_labels(values)

    def decode_output(self, output: Tensor) -> dict[str, list[Any]]:
        """Outputs (n, outputs) -> columns by name: the predicted class and its probabilities, or the values."""
        return self.target.decode(output)

    def encode_source(self, source: Any) -> tuple[Tensor, pl.DataFrame]:
        """x and the raw rows of new data: a path, a data frame, an array or a list of texts.

        The target column may be absent. Raises InputError that names missing columns, or sizes that do not fit.
        """
        if isinstance(self.features, TokenEncoder):
            raise InputError("a language model reads whole texts, not rows; give it texts to predict")
        if isinstance(source, (str, Path)):
            source = read_any(Path(source), self.spec.modality)
        raw, frame = new_rows(self.features, source, self.target.names)
        if len(raw) == 0:
            raise InputError("the new data has no rows")
        return self.encode(raw), frame


def fit_pipeline(raw: Raw, target: Target, rows: np.ndarray, modality: str) -> Pipeline:
    """Fit encoder and target coder on these training rows alone."""
    return pipeline_from(ENCODERS[modality].fit(raw.take(rows)), target, rows, modality)


def pipeline_from(features: Encoder, target: Target, rows: np.ndarray, modality: str) -> Pipeline:
    """The pipeline of a fitted encoder, its target coder fitted on these training rows."""
    coder = TargetCoder.fit(target.task, target.names, target.classes, target.values[rows])
    outputs = len(target.classes) if target.task == "classes" else target.values.shape[1]
    return Pipeline(describe(features, coder, modality, outputs), features, coder)


def describe(features: Encoder, coder: TargetCoder, modality: str, outputs: int) -> Spec:
    """The Spec of what this encoder makes."""
    base = Spec(modality=modality, task=coder.task, shape=(), outputs=outputs, classes=coder.classes)
    if isinstance(features, TableEncoder):
        numbers, sizes = features.numeric_names, features.cardinalities
        return replace(
            base,
            shape=(len(numbers) + len(sizes),),
            numeric=len(numbers),
            cardinalities=sizes,
            features=numbers + tuple(features.levels),
        )
    if isinstance(features, ImageEncoder):
        return replace(base, shape=features.shape, features=channel_names(features.shape[0]))
    if isinstance(features, TextEncoder):
        return replace(base, shape=(features.length,), vocabulary=features.vocabulary, features=(features.column,))
    names = features.features
    return replace(base, shape=(len(names), features.steps), masked=features.masked, features=names)


def new_rows(features: Encoder, source: Any, exclude: Sequence[str] = ()) -> tuple[Raw, pl.DataFrame]:
    """Raw rows of new data for this encoder, and the same rows as a frame to show beside predictions.

    `exclude` names target columns, which are no steps of a wide series.
    """
    if isinstance(features, TableEncoder):
        frame = _table_frame(features, source)
        return read_rows(frame, features.columns), frame
    if isinstance(features, TextEncoder):
        if isinstance(source, (list, tuple)):
            texts = list(source)
            return raw_texts(texts, features.column), pl.DataFrame({features.column: texts})
        frame = to_polars(source)
        if features.column not in frame.columns:
            raise InputError(f"text column {features.column!r} is missing; the data has {', '.join(frame.columns)}")
        return raw_texts(frame[features.column].to_list(), features.column), frame
    if isinstance(features, ImageEncoder):
        if not isinstance(source, np.ndarray):
            raise InputError(f"new images come as {type(source).__name__}; give an array, an .npz file or a folder")
        raw = features.read(source)
        return raw, pl.DataFrame({"row": np.arange(len(raw))})
    values = source if isinstance(source, np.ndarray) else _wide_values(features, to_polars(source), exclude)
    fits = features.channels if (values.shape[1] if values.ndim == 3 else 1) == len(features.channels) else ()
    series = raw_series(values, fits)
    return series, pl.DataFrame({"row": np.arange(len(series))})


def _table_frame(features: TableEncoder, source: Any) -> pl.DataFrame:
    if not isinstance(source, np.ndarray):
        return to_polars(source)
    if source.ndim != 2 or source.shape[1] != len(features.columns):
        raise InputError(f"the array is {source.shape}; the model takes {len(features.columns)} columns")
    return pl.DataFrame({c.name: source[:, j] for j, c in enumerate(features.columns)})


def _wide_values(features: SeriesEncoder, frame: pl.DataFrame, exclude: Sequence[str]) -> np.ndarray:
    """(n, steps) from the numeric columns of a frame, one a step."""
    columns = [infer_column(frame[name]) for name in frame.columns if name not in exclude]
    steps = [column for column in columns if column.kind == "number"]
    if len(features.channels) != 1 or len(steps) != features.steps:
        raise InputError(
            f"the data has {len(steps)} numeric columns; the model takes {len(features.channels)} channel(s) of "
            f"{features.steps} steps; give one numeric column a step, or an array (n, channels, time)"
        )
    return np.stack([conform(frame[c.name], c).fill_null(float("nan")).to_numpy() for c in steps], axis=1)


def save_pipeline(pipeline: Pipeline, folder: Path) -> None:
    """Write pipeline.json and pipeline.safetensors into `folder`."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    features, arrays = pipeline.features.state()
    target, target_arrays = pipeline.target.state()
    meta = {"format": FORMAT, "spec": asdict(pipeline.spec), "features": features, "target": target}
    (folder / "pipeline.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    tensors = {f"features.{k}": v for k, v in arrays.items()} | {f"target.{k}": v for k, v in target_arrays.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "pipeline.safetensors")


def load_pipeline(folder: Path) -> Pipeline:
    """Read what `save_pipeline` wrote; raises InputError if a file is missing or of an unknown format."""
    from safetensors.numpy import load_file

    folder = Path(folder)
    for name in ("pipeline.json", "pipeline.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; give a folder that save_pipeline wrote")
    meta = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    if meta.get("format") != FORMAT:
        raise InputError(f"{folder / 'pipeline.json'} has format {meta.get('format')!r}; this version reads {FORMAT}")
    arrays = load_file(folder / "pipeline.safetensors")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["spec"].items()}
    spec = Spec(**values)
    encoder = TokenEncoder if spec.task == "next-token" else ENCODERS[spec.modality]
    features = encoder.from_state(meta["features"], _under(arrays, "features."))
    return Pipeline(spec, features, TargetCoder.from_state(meta["target"], _under(arrays, "target.")))


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
