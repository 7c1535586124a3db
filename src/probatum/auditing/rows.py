"""The rows of an audit: encoded for the model, with labels, row numbers and the columns that groups are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from probatum.auditing.subject import Subject
from probatum.data.columns import conform, infer_column
from probatum.data.dataset import Dataset
from probatum.data.library import embedded_names
from probatum.data.open import open_dataset
from probatum.data.pipeline import Pipeline
from probatum.data.read import TABLE_SUFFIXES, read_table, to_polars
from probatum.errors import InputError
from probatum.rooms.kind import kind_of, kinds
from probatum.settings import Reading
from probatum.spec import Part, Spec


@dataclass(frozen=True)
class Rows:
    """Rows in the model's own encoding.

    Attributes:
        spec: what one row is.
        part: x, y (codes (n,), or reals (n, outputs) in the units the model answers in), row numbers in the source, text.
        columns: the source's columns, one entry a row; None where it has none.
        centre: tables and series that nothing has standardised: (features,) what to subtract; None otherwise.
        spread: what to divide by then.
        fingerprint: of the data set, where it was opened as one.
    """

    spec: Spec
    part: Part
    columns: pl.DataFrame | None = None
    centre: Tensor | None = None
    spread: Tensor | None = None
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.part)

    def take(self, index: np.ndarray) -> Rows:
        """These rows."""
        at, part = torch.from_numpy(index), self.part
        text = None if part.text is None else tuple(part.text[i] for i in index)
        kept = Part(part.x[at], part.y[at], part.rows[at], text)
        return replace(self, part=kept, columns=None if self.columns is None else self.columns[index])

    def standard(self, x: Tensor) -> Tensor:
        """x on the scale where numbers vary by about 1, as `probatum.spec` has it."""
        return x if self.centre is None else (x - self._broadcast(self.centre)) / self._broadcast(self.spread)

    def own(self, x: Tensor) -> Tensor:
        """Back from `standard`."""
        return x if self.centre is None else x * self._broadcast(self.spread) + self._broadcast(self.centre)

    def _broadcast(self, value: Tensor | None) -> Tensor:
        assert value is not None
        return how(self.spec).spread(value, self.spec)


def how(spec: Spec) -> Any:
    """What the kind of data says of its part in an audit."""
    return kind_of(spec.modality, spec.task).facet("audit")


def read_rows(
    source: Any,
    subject: Subject,
    *,
    target: str | None = None,
    task: str = "auto",
    modality: str = "auto",
    drop: Sequence[str] = (),
    like: Rows | None = None,
) -> Rows:
    """Read and encode rows.

    Args:
        source: a name, path or frame as `probatum.open_dataset` takes it, a `Dataset`, or (X, y) with X as the model takes it.
        subject: the model; its pipeline encodes, or else numbers go in as they are.
        target: the label's column.
        task: auto, classes or reals; of a model with a pipeline it is known.
        modality: likewise.
        drop: columns that a model without a pipeline does not take.
        like: rows read before for the same model, whose classes and scales these share.

    Raises:
        InputError: no labels, unknown classes, or rows that do not fit the model.
    """
    if isinstance(source, tuple) and len(source) == 2 and subject.pipeline is None:
        return _from_tensors(*source, like=like, task=task)
    if subject.pipeline is not None:
        return _by_pipeline(source, subject.pipeline, target)
    reading = Reading(target=target, task=task, modality=modality, drop=tuple(drop))
    dataset = source if isinstance(source, Dataset) else _opened(source, reading)
    return _with_dropped(_as_they_are(dataset, like), source, drop)


def _with_dropped(rows: Rows, source: Any, drop: Sequence[str]) -> Rows:
    """The rows with those columns of a table that the model does not take, which groups and time may still name."""
    if rows.columns is None or not drop or isinstance(source, Dataset):
        return rows
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and not (path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES)):
        return rows
    frame = read_table(path) if path is not None else to_polars(source)
    if len(frame) != len(rows):  # rows without a label were left out: which, is not known here
        return rows
    return replace(rows, columns=rows.columns.hstack(typed(frame.select(list(drop)))))


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns as numbers, dates or words, whichever their cells are."""
    return pl.DataFrame([conform(series, infer_column(series)) for series in frame.get_columns()])


def _opened(source: Any, reading: Reading) -> Dataset:
    own = isinstance(source, str) and source in embedded_names()
    found = open_dataset(source, Reading() if own else reading)
    if not isinstance(found, Dataset):
        raise InputError(f"{source!r} is one long text; an audit takes rows with labels")
    if found.streamed:
        raise InputError(f"{found.name} is larger than the memory granted; audit a sample of its rows")
    return found


def _by_pipeline(source: Any, pipeline: Pipeline, target: str | None) -> Rows:
    spec, name = pipeline.spec, target or pipeline.target.names[0]
    framed = how(spec).FRAMED and not isinstance(source, Dataset | tuple)
    path = Path(source) if isinstance(source, str | Path) else None
    framed = framed and (path is None or (path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES)))
    if not framed:
        reading = Reading(target=target, task=spec.task, modality=spec.modality)
        dataset = source if isinstance(source, Dataset) else _opened(source, reading)
        x = pipeline.encode(_fitting(dataset, pipeline))
        words: Sequence[Any] = (
            [dataset.classes[code] for code in dataset.targets.values.tolist()]
            if spec.task == "classes"
            else dataset.targets.values.tolist()
        )
        text, columns = getattr(dataset.raw, "texts", None), getattr(dataset.raw, "frame", None)
        return _whole(pipeline, x, words, text, columns, dataset.fingerprint)
    frame = read_table(path) if path is not None else to_polars(source)
    if name not in frame.columns:
        raise InputError(
            f"the label column {name!r} is missing; the data have {', '.join(frame.columns[:10])}; use --target"
        )
    x, raw = pipeline.encode_source(frame)
    column = getattr(pipeline.features, "column", None)  # of texts, whose strings learners may read
    text = None if column is None else tuple(raw[column].to_list())
    return _whole(pipeline, x, frame[name].to_list(), text, typed(frame.drop(name)), "")


def _fitting(dataset: Dataset, pipeline: Pipeline) -> Any:
    if dataset.modality != pipeline.spec.modality:
        raise InputError(f"{dataset.name} holds {dataset.modality} data; the model takes {pipeline.spec.modality} data")
    if dataset.task != pipeline.spec.task:
        raise InputError(f"{dataset.name} poses task {dataset.task}; the model was made for {pipeline.spec.task}")
    return dataset.raw


def _whole(
    pipeline: Pipeline,
    x: Tensor,
    words: Sequence[Any],
    text: tuple[str, ...] | None,
    columns: pl.DataFrame | None,
    fingerprint: str,
) -> Rows:
    gone = [row for row, word in enumerate(words) if word is None]
    if gone:
        raise InputError(f"the label is missing in {len(gone)} row(s), first row {gone[0]}; an audit needs every label")
    y = pipeline.encode_target(words)
    if len(x) != len(y):
        raise InputError(f"{len(x)} rows could be encoded, but there are {len(y)} labels; give one a row")
    return Rows(pipeline.spec, Part(x, y, torch.arange(len(x)), text), columns, fingerprint=fingerprint)


def _as_they_are(dataset: Dataset, like: Rows | None) -> Rows:
    classes = dataset.classes
    values, names, columns = dataset.kind.facet("audit").plain(dataset)
    x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x.flatten(1))).any(dim=1).sum())
        raise InputError(f"{bad} row(s) have missing values, which the model cannot take as they are; fill them")
    y = torch.from_numpy(np.asarray(dataset.targets.values))
    y = _codes(y, classes, like) if dataset.task == "classes" else y.double()
    found = _rows(x, y, dataset.task, dataset.modality, classes, names, like)
    return replace(found, columns=columns, fingerprint=dataset.fingerprint)


def _codes(y: Tensor, classes: tuple[str, ...], like: Rows | None) -> Tensor:
    """Codes of the classes, among those of `like` where it is given."""
    if like is None or not like.spec.classes:
        return y.long()
    unknown = [name for name in classes if name not in like.spec.classes]
    if unknown:
        raise InputError(f"class {unknown[0]!r} is not among {', '.join(like.spec.classes)}")
    return torch.tensor([like.spec.classes.index(classes[code]) for code in y.tolist()])


def fit_outputs(rows: Rows, outputs: int, who: str) -> Rows:
    """These rows with classes that fit so many outputs of the model.

    Classes stand in their sorted order. Where there are fewer of them than outputs and they are named 0, 1, ..., the
    names are the positions. Raises InputError where it stays unclear which output is which class.
    """
    spec = rows.spec
    if spec.outputs == outputs:
        return rows
    names = spec.classes
    if (
        spec.task == "reals"
        or outputs < len(names)
        or not all(name.isdigit() and int(name) < outputs for name in names)
    ):
        what = f"{spec.outputs} target(s)" if spec.task == "reals" else f"classes {', '.join(names[:12])}"
        raise InputError(f"{who} gives {outputs} outputs, but the data have {what}; they must fit one to one")
    codes = torch.tensor([int(name) for name in names])[rows.part.y]
    part = replace(rows.part, y=codes)
    return replace(rows, part=part, spec=replace(spec, outputs=outputs, classes=tuple(map(str, range(outputs)))))


def _from_tensors(x: Any, y: Any, like: Rows | None, task: str) -> Rows:
    try:
        inputs = torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x).detach().cpu()
        target = torch.as_tensor(np.asarray(y) if not isinstance(y, Tensor) else y).detach().cpu()
    except (TypeError, ValueError) as problem:
        raise InputError(
            f"X and y should be arrays of numbers, class codes 0, 1, ... in y: {str(problem)[:100]}"
        ) from problem
    if not bool(torch.isfinite(target).all()):
        raise InputError("y holds values that are not finite; an audit needs every label")
    if inputs.ndim not in (2, 3, 4) or len(inputs) != len(target) or not len(inputs):
        raise InputError(
            f"X is {tuple(inputs.shape)} and y {tuple(target.shape)}; give X (n, columns), (n, channels, time) or "
            "(n, channels, height, width) and one label a row"
        )
    if inputs.dtype in (torch.float64, torch.uint8, torch.int32, torch.int16, torch.bool, torch.int64):
        inputs = inputs.float()
    if task == "auto":
        task = "reals" if target.is_floating_point() else "classes"
    target = (target.double().reshape(len(target), -1)) if task == "reals" else target.long().reshape(-1)
    found = [kind for kind in kinds() if task in kind.TASKS and inputs.ndim == kind.facet("audit").NDIM]
    return _rows(inputs, target, task, found[0].modality, (), (), like)


def _rows(
    x: Tensor,
    y: Tensor,
    task: str,
    modality: str,
    classes: tuple[str, ...],
    names: tuple[str, ...],
    like: Rows | None,
) -> Rows:
    outputs = y.shape[1] if task == "reals" else max(int(y.max()) + 1, len(classes), 2)
    if task == "classes" and int(y.min()) < 0:
        raise InputError(f"labels start at {int(y.min())}; use class codes 0, 1, ...")
    asked = kind_of(modality, task).facet("audit")
    names = names or (tuple(f"column {i}" for i in range(x.shape[1])) if asked.COLUMNS else ())
    if task == "classes" and like is not None:
        classes, outputs = like.spec.classes, max(like.spec.outputs, outputs)
    if task == "classes" and len(classes) != outputs:
        classes = tuple(str(i) for i in range(outputs))
    numeric = x.shape[1] if asked.COLUMNS else 0
    spec = Spec(modality, task, tuple(x.shape[1:]), outputs, numeric=numeric, classes=classes, features=names)
    centre = spread = None
    over = asked.centred_over(spec)
    if over:
        centre, spread = x.mean(dim=over), x.std(dim=over).clamp_min(1e-6)
    found = Rows(spec, Part(x, y, torch.arange(len(x))), centre=centre, spread=spread)
    return found if like is None else replace(found, centre=like.centre, spread=like.spread)
