"""A dataset: raw rows in memory with their target, split and encoded anew for every seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from probatum.data.folds import draw_folds
from probatum.data.pipeline import Pipeline, fit_pipeline, pipeline_from
from probatum.data.split import PART_NAMES, TEST, SplitPlan, draw_split, merge_units, unit_numbers
from probatum.data.target import Target
from probatum.errors import InputError
from probatum.rooms.kind import Encoder, Held, Kind, Raw, Streamed, kind_of
from probatum.rooms.world import World, in_world, world_generator
from probatum.spec import Data, Part

FRACTIONS = (0.6, 0.2, 0.2)
MIN_CLASS_ROWS = 3
IMBALANCE = 0.2
"""A class with a smaller share than this part of an even share is worth a notice."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Raw rows, target and what restricts the split; nothing is fitted before `prepare`.

    Attributes:
        name: what it is called in reports.
        modality: what examples are, see `probatum.spec`.
        task: what is asked of them.
        target: name of what is asked for (of the column, where there is one).
        n: number of rows.
        fingerprint: sha256 over values, schema, task, target and given split; equal in every process.
        classes: names of the classes in the order of their codes; () for reals.
        notices: one-line warnings found on reading, each with what was done or the remedy.
        fixed_split: whether all seeds share the same test rows (given by the user or the source, or by time).
        raw: the rows (`probatum.rooms.kind.Raw`).
        targets: one per row.
        plan: what restricts the split.
        encoder: what encodes the rows, instead of one fitted on the training rows: that of a pretrained network.
        world: what every split is put into, see `probatum.rooms.world`; None = the data as they are.
    """

    name: str
    modality: str
    task: str
    target: str
    n: int
    fingerprint: str
    classes: tuple[str, ...]
    notices: tuple[str, ...]
    fixed_split: bool
    raw: Raw = field(repr=False)
    targets: Target = field(repr=False)
    plan: SplitPlan = field(repr=False)
    encoder: Encoder | None = field(repr=False, default=None)
    world: World | None = None

    @property
    def kind(self) -> Kind:
        """What kind of data these are."""
        return kind_of(self.modality, self.task)

    @property
    def streamed(self) -> bool:
        """Whether the rows stay on disk and are read as they are used."""
        return bool(getattr(self.raw, "streamed", False))

    @property
    def grouped(self) -> bool:
        """Whether groups of the user's are kept together."""
        return self.plan.grouped

    @property
    def memory(self) -> int | None:
        """Data on disk: a limit in bytes with which they are opened as they are now; None for data in memory."""
        return cast(Streamed, self.raw).opened_with if self.streamed else None

    def split(
        self, seed: int, fractions: Sequence[float] = FRACTIONS, *, folds: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row numbers of train, valid and test; raises InputError where a part or a class would be empty.

        Each seed splits at random, or `folds`: the seeds are repeated folds (`probatum.data.folds.draw_folds`).
        """
        draw = draw_folds if folds else draw_split
        return draw(self.plan, seed, fractions, self.classes)

    def prepare(self, seed: int, *, fractions: Sequence[float] = FRACTIONS, folds: bool = False) -> Data:
        """Split by seed (see `split`), fit the pipeline on the training rows, encode; a pure function of its arguments.

        Data on disk say themselves what they fit the pipeline on and what of them is held (their `prepared`). In a world
        the encoded split is put into it last, and the data know the `truth`.
        """
        parts = self.split(seed, fractions, folds=folds)
        if self.streamed:
            return cast(Streamed, self.raw).prepared(self, parts, seed)
        if self.encoder is None:
            pipeline = fit_pipeline(self.kind, self.raw, self.targets, parts[0])
        else:
            pipeline = pipeline_from(self.kind, self.encoder, self.targets, parts[0])
        train, valid, test = (self._part(pipeline, rows) for rows in parts)
        data = Data(pipeline.spec, train, valid, test, pipeline)
        return data if self.world is None else self.world.apply(data, world_generator(self.world.name, seed), self)

    def _part(self, pipeline: Pipeline, rows: np.ndarray) -> Part:
        raw = self.raw.take(rows)
        return self.with_targets(pipeline, rows, pipeline.encode(raw), getattr(raw, "texts", None))

    def with_targets(
        self, pipeline: Pipeline, rows: np.ndarray, x: Tensor, text: tuple[str, ...] | None = None
    ) -> Part:
        """Encoded rows with their targets as a part."""
        y = pipeline.target.encode(self.targets.values[rows])
        return Part(x, y, torch.from_numpy(rows.astype(np.int64, copy=False)), text)

    def take(self, rows: np.ndarray, name: str | None = None) -> Dataset:
        """These rows as a dataset of their own; raises InputError where classes become too small."""
        plan = self.plan
        kept = Target(self.task, self.targets.names, self.targets.values[rows], self.classes)
        found = make_dataset(
            name or self.name,
            self.modality,
            self.raw.take(rows),
            kept,
            self.target,
            groups=plan.units[rows] if plan.grouped else None,
            moment=None if plan.moment is None else plan.moment[rows],
            given=None if plan.given is None else plan.given[rows],
            notices=self.notices,
            repeat_notices=False,
        )
        found = replace(found, encoder=self.encoder)
        return found if self.world is None else in_world(found, self.world)

    def summary(self, data: Data | None = None) -> dict[str, Any]:
        """What the command line and reports show, as JSON values.

        Args:
            data: the split of seed 0, where it has been prepared already.
        """
        first = data or self.prepare(0)
        out: dict[str, Any] = {
            "name": self.name,
            "n": self.n,
            "unit": self.kind.UNIT,
            "modality": self.modality,
            "task": self.task,
            "target": self.target,
            "fingerprint": self.fingerprint,
            "columns": self.raw.describe(),
            "shape": list(first.spec.shape),
            "split": {part: len(getattr(first, part)) for part in PART_NAMES},
            "fixed_split": self.fixed_split,
            "notices": list(self.notices),
        }
        if self.world is not None:
            told = {} if first.truth is None else dict(first.truth.counts)
            out["world"] = {"name": self.world.name, "about": self.world.ABOUT, "counts": told}
        values = self.targets.values
        if self.task == "classes":
            counts = np.bincount(values, minlength=len(self.classes))
            out["classes"] = {name: int(count) for name, count in zip(self.classes, counts, strict=True)}
        else:
            levels = np.quantile(values, QUANTILES, axis=0)
            out["quantiles"] = {
                name: {f"{q:g}": float(v) for q, v in zip(QUANTILES, levels[:, j], strict=True)}
                for j, name in enumerate(self.targets.names)
            }
        return out


def make_dataset(
    name: str,
    modality: str,
    raw: Raw,
    values: Target,
    target: str,
    *,
    groups: np.ndarray | None = None,
    moment: np.ndarray | None = None,
    given: np.ndarray | None = None,
    notices: Sequence[str] = (),
    repeat_notices: bool = True,
    units: np.ndarray | None = None,
) -> Dataset:
    """Check sizes and classes, find duplicates, take the fingerprint.

    `groups` (n,) numbers, `moment` (n,) times and `given` (n,) parts restrict the split. `repeat_notices` adds the
    notices on duplicates and imbalance. `units` (n,) numbers equal rows alike where this is known. Raises InputError for lengths that differ and for classes too small.
    """
    kind_of(modality, values.task)
    if len(raw) != len(values.values):
        raise InputError(f"X has {len(raw)} rows, but y has {len(values.values)}; give one target a row")
    if len(raw) == 0:
        raise InputError(f"{name!r} has no rows")
    labels = values.values if values.task == "classes" else None
    found: list[str] = []
    if labels is not None:
        found += _check_classes(labels, values, fixed=moment is not None or given is not None)
    if units is None:
        if getattr(raw, "streamed", False):
            raise TypeError("streamed rows come with the units that equal rows make")
        targets = np.ascontiguousarray(values.values.reshape(len(raw), -1))
        units = unit_numbers(key + row.tobytes() for key, row in zip(cast(Held, raw).row_keys(), targets, strict=True))
    units, repeated = _units(units, values, labels, groups, given, moment)
    plan = SplitPlan(labels, units, groups is not None, moment, given)
    found += repeated
    return Dataset(
        name=name,
        modality=modality,
        task=values.task,
        target=target,
        n=len(raw),
        fingerprint=_fingerprint(modality, raw, values, target, groups, moment, given),
        classes=values.classes,
        notices=(*notices, *(found if repeat_notices else ())),
        fixed_split=plan.fixed,
        raw=raw,
        targets=values,
        plan=plan,
    )


def _check_classes(labels: np.ndarray, values: Target, fixed: bool) -> list[str]:
    counts = np.bincount(labels, minlength=len(values.classes))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise InputError(f"target {values.names[0]!r} has one class, {values.classes[present[0]]!r}; bring two or more")
    least = int(counts.argmin())
    if counts[least] < (1 if fixed else MIN_CLASS_ROWS):
        raise InputError(
            f"class {values.classes[least]!r} of {values.names[0]!r} has {counts[least]} row(s); train, valid and test "
            f"need {MIN_CLASS_ROWS}; bring more, merge it with another class, or leave it out"
        )
    share = counts[least] / len(labels)
    if share < IMBALANCE / len(counts):
        return [
            f"class {values.classes[least]!r} has {counts[least]} of {len(labels)} rows ({share:.1%}): accuracy will "
            "flatter; look at balanced accuracy or the log loss"
        ]
    return []


def _units(
    units: np.ndarray,
    values: Target,
    labels: np.ndarray | None,
    groups: np.ndarray | None,
    given: np.ndarray | None,
    moment: np.ndarray | None,
) -> tuple[np.ndarray, list[str]]:
    """Units of the split (duplicates joined, merged with the user's groups) and the notices on duplicates."""
    repeats = len(units) - int(units.max()) - 1
    if repeats == 0:
        return (units if groups is None else groups), []
    if given is not None:
        shared = np.isin(units[given == TEST], units[given != TEST]).sum()
        notices = [f"{repeats} duplicated rows; {shared} of the given test rows also occur outside the test part"]
    elif moment is not None:
        notices = [f"{repeats} duplicated rows; a split by time may have copies on both sides"]
    else:
        notices = [f"{repeats} duplicated rows: the copies of a row stay on one side of the split"]
    if groups is not None:
        return merge_units(groups, units), notices
    if labels is not None and given is None:
        units, loose = _loosen(units, labels, values.classes)
        notices += loose
    return units, notices


def _loosen(units: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Let rows of a class with under three distinct rows go separately: it could not be in every part otherwise."""
    notices = []
    units = units.copy()
    for code in np.unique(labels):
        rows = np.flatnonzero(labels == code)
        distinct = len(np.unique(units[rows]))
        if distinct < MIN_CLASS_ROWS:
            units[rows] = units.max() + 1 + np.arange(len(rows))
            notices.append(
                f"class {classes[code]!r} has only {distinct} distinct row(s): its copies may be on both sides"
            )
    return units, notices


def _fingerprint(
    modality: str,
    raw: Raw,
    values: Target,
    target: str,
    groups: np.ndarray | None,
    moment: np.ndarray | None,
    given: np.ndarray | None,
) -> str:
    sha = hashlib.sha256()
    sha.update(json.dumps([modality, values.task, target, values.names, values.classes]).encode())
    raw.digest(sha)
    for part in (values.values, groups, moment, given):
        sha.update(b"none" if part is None else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()
