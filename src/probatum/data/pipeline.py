"""The pipeline: what was fitted on the training rows, and how it is applied to new data, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from probatum.data.stored import read_arrays, read_json, told
from probatum.data.target import Target, TargetCoder
from probatum.errors import InputError
from probatum.rooms.kind import Encoder, Kind, Raw, blamed, kind_of
from probatum.spec import Spec

FORMAT = 1


@dataclass(frozen=True)
class Pipeline:
    """Raw rows -> x and back from outputs to predictions.

    Attributes:
        spec: describes one encoded example.
        features: the kind's `Encoder`.
        target: how targets become tensors and come back.
    """

    spec: Spec
    features: Any
    target: TargetCoder

    def encode(self, raw: Raw) -> Tensor:
        """x of these raw rows, as probatum.spec describes it; InputError where a kind from outside does not encode them."""
        kind = kind_of(self.spec.modality, self.spec.task)
        with blamed(kind, "encoding"):
            x = self.features.encode(raw)
            if len(x) != len(raw):
                raise InputError(
                    f"kind {kind.NAME}: its encoder makes {len(x)} examples of {len(raw)} rows; let it keep all"
                )
        return x

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
        kind = kind_of(self.spec.modality, self.spec.task)
        if isinstance(source, (str, Path)) and not Path(source).exists():
            raise InputError(f"{str(source)!r} does not exist; check the path")
        with blamed(kind, "reading new rows"):
            if isinstance(source, (str, Path)):
                source = kind.read_new(Path(source))
            raw, frame = kind.new_rows(self.features, source, self.target.names)
        if len(raw) == 0:
            raise InputError("the new data has no rows")
        return self.encode(raw), frame


def fit_pipeline(kind: Kind, raw: Raw, target: Target, rows: np.ndarray) -> Pipeline:
    """Fit encoder and target coder on these training rows alone."""
    with blamed(kind, "fitting its encoder"):
        features = kind.fit(raw.take(rows))
    return pipeline_from(kind, features, target, rows)


def pipeline_from(kind: Kind, features: Encoder, target: Target, rows: np.ndarray) -> Pipeline:
    """The pipeline of a fitted encoder, its target coder fitted on these training rows."""
    coder = TargetCoder.fit(target.task, target.names, target.classes, target.values[rows])
    outputs = len(target.classes) if target.task == "classes" else target.values.shape[1]
    spec = Spec(kind.modality, coder.task, outputs=outputs, classes=coder.classes, **kind.describe(features))
    return Pipeline(spec, features, coder)


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
    """Read what `save_pipeline` wrote.

    Raises:
        InputError: a file that is missing, broken or of an unknown format, or that does not fit the others.
    """
    folder = Path(folder)
    for name in ("pipeline.json", "pipeline.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; give a folder that save_pipeline wrote")
    path = folder / "pipeline.json"
    meta = read_json(path)
    if meta.get("format") != FORMAT:
        raise InputError(f"{path} has format {meta.get('format')!r}; this version reads {FORMAT}")
    arrays = read_arrays(folder / "pipeline.safetensors")
    with told(path):
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["spec"].items()}
        spec = Spec(**values)
        target = TargetCoder.from_state(meta["target"], _under(arrays, "target."))
    check_target(spec, target, path)
    kind = kind_of(spec.modality, spec.task)
    with told(path), blamed(kind, "restoring its encoder"):
        features = kind.restore(meta["features"], _under(arrays, "features."))
    return Pipeline(spec, features, target)


def check_target(spec: Spec, target: TargetCoder, path: Path) -> None:
    """InputError, naming the file, where a target coder is not that of the spec: other classes, another order, no units."""
    with told(path):
        if (target.task, target.classes) != (spec.task, spec.classes):
            raise ValueError(
                f"the target is {target.task} {list(target.classes)}, examples are of {spec.task} {list(spec.classes)}"
            )
        if len(set(target.classes)) != len(target.classes):
            raise ValueError(f"a class stands twice in {list(target.classes)}")
        if target.classes and len(target.classes) != spec.outputs:
            raise ValueError(f"{len(target.classes)} classes for {spec.outputs} outputs")
        if not (np.isfinite(target.mean).all() and np.isfinite(target.std).all() and (target.std > 0).all()):
            raise ValueError("mean or deviation of the target is not finite, or the deviation not above 0")


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
