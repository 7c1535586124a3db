"""What every kind of data promises of its rows: how they are opened, split, encoded, saved, and come again as new ones."""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probatum.checks.kind_subject import KindSubject, drawn_from, same
from probatum.checks.subject import NotThisOneError, demand, fingerprint
from probatum.data.corrupt import Corruption
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.door import Door
from probatum.data.open import open_dataset
from probatum.data.pipeline import load_pipeline, save_pipeline
from probatum.data.target import Target
from probatum.errors import InputError
from probatum.recipe import Training
from probatum.rooms import find
from probatum.rooms.kind import Kind, NamedSet, kinds
from probatum.settings import Reading, documented
from probatum.spec import WORD, Part, Spec

SEVERITIES = (1, 3, 5)


def check_says_what_it_is(subject: KindSubject) -> None:
    """Name, modality, tasks and the like are words that are known, and no other kind has this modality with these tasks."""
    kind = subject.kind
    demand(bool(WORD.fullmatch(kind.modality)), f"modality {kind.modality!r} is no word such as table")
    unknown = set(kind.TASKS) - set(find.names("task"))
    demand(bool(kind.TASKS) and not unknown, f"TASKS is {kind.TASKS}; tasks are {', '.join(find.names('task'))}")
    for task in kind.TASKS:
        alike = (one.NAME for one in kinds() if one.modality == kind.modality and task in one.TASKS)
        other = [name for name in alike if name != kind.NAME]
        demand(not other, f"{', '.join(other)} data have modality {kind.modality} and task {task}, too; choose another")
        demand(isinstance(kind.training(task), Training), f"training({task!r}) gives no Training")
    lines = {name: getattr(kind, name) for name in ("ABOUT", "UNIT", "NEW")}
    bad = [name for name, line in lines.items() if not isinstance(line, str) or not line.strip() or "\n" in line]
    demand(not bad, f"{', '.join(bad)}: say it in one line")
    demand(isinstance(kind.ORDER, int), f"ORDER is {kind.ORDER!r}; give a whole number, 50 = in the middle")
    _check_options(kind)
    _check_sets(kind)


def check_example_opens(subject: KindSubject) -> None:
    """The embedded set that EXAMPLE names opens as data of this kind, and is the same every time, also when summed up."""
    kind, found, again = subject.kind, subject.example, subject.opened()
    demand(found.kind.NAME == kind.NAME, f"{found.name} is opened as {found.kind.NAME} data")
    demand(found.task in kind.TASKS, f"{found.name} has task {found.task}; TASKS is {kind.TASKS}")
    demand(
        subject.opened().fingerprint == again.fingerprint, f"{found.name} is another one each time that it is opened"
    )
    json.dumps(found.summary(subject.split))


def check_other_data_are_left_alone(subject: KindSubject) -> None:
    """What is data of another kind is not taken for data of this one, unless the user says so."""
    for other in kinds():
        if subject.name == other.NAME or not other.EXAMPLE or not other.ROWS:
            continue
        rows = KindSubject(other.NAME).rows
        door = Door((other.as_new(rows.raw), labels(rows)), Reading())
        taken = next((one.NAME for one in kinds() if one.opens(door)), "")
        demand(taken != subject.name, f"it takes {other.NAME} data ({rows.name}) for its own; let opens ask more")


def check_own_rows_are_recognised(subject: KindSubject) -> None:
    """Rows that come from Python as (X, y), and are said to be of this kind, become the same x."""
    rows, kind = subject.rows, subject.kind
    found = open_dataset((kind.as_new(rows.raw), labels(rows)), Reading(modality=kind.NAME, task=rows.task))
    demand(found.kind.NAME == kind.NAME, f"they are opened as {found.kind.NAME} data")
    demand(found.n == rows.n, f"of {rows.n} rows {found.n} came in")
    pipeline = subject.split.pipeline
    demand(torch.equal(pipeline.encode(found.raw), pipeline.encode(rows.raw)), "they are encoded to another x")


def check_splits_are_the_same_twice(subject: KindSubject) -> None:
    """One seed gives one split, bit for bit; parts share no row; another seed gives another split."""
    data, first = subject.example, subject.split
    demand(same(first, data.prepare(0)), "seed 0 gives two different splits")
    numbers = torch.cat([first.train.rows, first.valid.rows, first.test.rows])
    demand(len(numbers.unique()) == len(numbers), "a row stands in two parts of the split")
    if not data.fixed_split:
        demand(not torch.equal(first.test.rows, data.prepare(1).test.rows), "seeds 0 and 1 give the same test rows")


def check_copies_stay_on_one_side(subject: KindSubject) -> None:
    """Rows that are equal have equal keys, others have not, and copies of a row are in one part of every split."""
    rows = subject.rows
    n, keys = rows.n, rows.raw.row_keys()  # type: ignore[attr-defined]
    demand(len(keys) == n, f"row_keys gives {len(keys)} keys for {n} rows")
    x, y = rows.prepare(0).pipeline.encode(rows.raw), rows.targets.values.reshape(n, -1)
    shown = {fingerprint([x[i], y[i].tobytes()]) for i in range(n)}
    distinct = len({key + row.tobytes() for key, row in zip(keys, y, strict=True)})
    demand(distinct >= len(shown), f"{len(shown)} rows differ once encoded, but row_keys tells {distinct} apart")
    twice = np.concatenate([np.arange(n), np.arange(n)])
    doubled = _with_rows(rows, twice)
    for seed in range(3):
        part = np.zeros(2 * n, dtype=np.int64)
        for number, mine in enumerate(doubled.split(seed)):
            part[mine] = number
        demand(bool((part[:n] == part[n:]).all()), f"seed {seed}: copies of one row are in two parts of the split")


def check_fingerprints_tell_rows_apart(subject: KindSubject) -> None:
    """The digest is the same for the same rows, and another one for other rows or another order."""
    rows = subject.rows
    order = np.arange(rows.n)
    told = {name: _with_rows(rows, kept).fingerprint for name, kept in (("all", order), ("again", order.copy()))}
    demand(told["all"] == told["again"], "the same rows have two fingerprints")
    other = np.r_[order[:-1], order[0]]
    keys = rows.raw.row_keys()  # type: ignore[attr-defined]
    if keys[-1] != keys[0]:
        same_targets = _fingerprint_of(rows, other)
        demand(_fingerprint_of(rows, order) != same_targets, "digest does not tell other rows from these")


def check_rows_are_encoded_alone(subject: KindSubject) -> None:
    """What a row becomes does not depend on the rows beside it, and the raw rows stay as they are."""
    rows, encode = subject.rows, subject.split.pipeline.encode
    before = _fingerprint_of(rows, np.arange(rows.n))
    whole, some = encode(rows.raw), np.array([5, 0, 3])
    demand(len(whole) == rows.n, f"{len(whole)} rows came of {rows.n}")
    demand(
        torch.equal(encode(rows.raw.take(some)), whole[some]), "a row is encoded otherwise when others stand beside it"
    )
    demand(torch.equal(encode(rows.raw.take(some[:1])), whole[some[:1]]), "one row alone is encoded otherwise")
    demand(_fingerprint_of(rows, np.arange(rows.n)) == before, "encoding changed the raw rows")


def check_encoder_is_restored(subject: KindSubject) -> None:
    """What is saved of an encoder, JSON values and arrays, makes one that encodes to the same bits and refuses nothing."""
    encoder = subject.split.pipeline.features
    meta, arrays = encoder.state()
    again = subject.kind.restore(json.loads(json.dumps(meta)), {name: value.copy() for name, value in arrays.items()})
    told, kept = again.state()
    demand(json.dumps(told) == json.dumps(meta), "the state of what was restored differs: JSON values")
    demand(_bytes(kept) == _bytes(arrays), "the state of what was restored differs: arrays")
    if subject.kind.ROWS:
        raw = subject.rows.raw
        demand(torch.equal(again.encode(raw), encoder.encode(raw)), "what was restored encodes to other bits")


def check_description_fits(subject: KindSubject) -> None:
    """The fields that `describe` gives are those of x: shape, type, finite values, codes and ids that exist, names."""
    data = subject.split
    spec = data.spec
    for part in (data.train, data.valid, data.test):
        demand_x(part.x, spec, "the example")
    names = spec.features
    demand(all(isinstance(name, str) for name in names), f"features should be names, they are {names}")
    demand(len(set(names)) == len(names), "features has a name twice")
    demand(
        len(names) in (0, 1, *spec.shape),
        f"{len(names)} features are named for x of shape {spec.shape}; name none, one, or as many as a dimension has",
    )


def check_pipeline_is_saved_and_loaded(subject: KindSubject) -> None:
    """A pipeline that was saved and loaded is the same, and encodes rows to the same bits."""
    pipeline = subject.split.pipeline
    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(pipeline, Path(folder))
        again = load_pipeline(Path(folder))
    demand(again.spec == pipeline.spec, f"its spec was {pipeline.spec}, and is {again.spec}")
    if subject.kind.ROWS:
        raw = subject.rows.raw
        demand(torch.equal(again.encode(raw), pipeline.encode(raw)), "once loaded it encodes to other bits")


def check_new_rows_are_encoded(subject: KindSubject) -> None:
    """Rows as a user hands them over (`as_new`) are read as new ones, one or several, to the x that they had."""
    rows, kind, pipeline = subject.rows, subject.kind, subject.split.pipeline
    for count in (5, 1):
        few = rows.raw.take(np.arange(count))
        raw, frame = kind.new_rows(pipeline.features, kind.as_new(few), (rows.target,))
        demand(
            len(raw) == count and len(frame) == count, f"{count} rows became {len(raw)}, beside a frame of {len(frame)}"
        )
        demand(torch.equal(pipeline.encode(raw), pipeline.encode(few)), f"{count} new row(s) are encoded to another x")
    x, _ = pipeline.encode_source(kind.as_new(rows.raw.take(np.arange(3))))
    demand(len(x) == 3, f"3 rows became {len(x)}")


def check_corruptions_keep_the_form(subject: KindSubject) -> None:
    """Corruptions keep shape and type, change x and not what they are given, and draw from their generator alone."""
    seen = False
    for data in (subject.split, subject.toy(subject.kind.TASKS[0])):
        for name, corrupt in subject.kind.facet("corruptions").corruptions(data.spec).items():
            seen = True
            _check_corruption(name, corrupt, data.test.x[:40], data.spec)
    if not seen:
        raise NotThisOneError("it has no corruptions (corruptions.py)")


def check_features_are_numbers(subject: KindSubject) -> None:
    """Rows as numbers, for classical predictors, audits and worlds: finite, one row each, the same whoever stands beside."""
    how = subject.kind.facet("features")
    for data in (subject.split, subject.toy(subject.kind.TASKS[0])):
        test, spec = data.test, data.spec
        if subject.kind.ROWS:
            _numbers(how.matrix(spec, data.train)(test), len(test), "matrix")
            sets = [SimpleNamespace(part=part, spec=spec) for part in (data.train, test)]
            for found, part in zip(how.input_features(sets, 8), (data.train, test), strict=True):
                _numbers(found, len(part), "input_features")
        tables = drawn_from(lambda generator, data=data: how.tables(data.spec, data.train, 16, generator), "tables")
        _numbers(how.vectors(test.x[:50], spec, tables), len(test.x[:50]), "vectors")
        alone = how.vectors(test.x[:1], spec, tables)
        demand(torch.allclose(alone, how.vectors(test.x[:9], spec, tables)[:1]), "vectors: rows depend on each other")
        for name, values in subject.kind.facet("audit").facts(test.x, spec).items():
            _numbers(values[:, None], len(test), f"audit fact {name}")


def check_worlds_keep_the_form(subject: KindSubject) -> None:
    """Rows of noise, shuffled rows and marked rows are rows that the description fits, drawn from the generator given."""
    if not subject.kind.ROWS:
        raise NotThisOneError("worlds are made of rows, and it has none of its own")
    data, how = subject.split, subject.kind.facet("worlds")
    for name, make in (("noise", how.noise), ("shuffled", how.shuffled)):
        x, text = drawn_from(lambda generator, make=make: make(data, generator), name)
        demand(x.shape == data.test.x.shape, f"{name}: x {tuple(x.shape)} in place of {tuple(data.test.x.shape)}")
        demand_x(x, data.spec, name)
        demand(text is None or len(text) == len(x), f"{name}: {len(text or ())} texts for {len(x)} rows")
    if data.spec.task != "classes":
        return
    try:
        spec = how.marked_spec(data.spec)
    except InputError:  # it says that there is no room for marks
        return
    before = fingerprint(data.test.x)
    found: Part = how.marked(data.test, data.test.y, data.spec)
    demand_x(found.x, spec, "marked rows")
    demand(fingerprint(data.test.x) == before, "marking changed the rows in place")


def labels(rows: Dataset) -> Any:
    """The targets as a user gives them: names of classes, or numbers."""
    if rows.task == "classes":
        return [rows.classes[code] for code in rows.targets.values.tolist()]
    return rows.targets.values


def demand_x(x: Tensor, spec: Spec, what: str) -> None:
    """Demand that x is what a spec says."""
    demand(tuple(x.shape[1:]) == spec.shape, f"{what}: x {tuple(x.shape)}, but the spec says shape {spec.shape}")
    if spec.vocabulary:
        demand(x.dtype == torch.int64, f"{what}: ids of a vocabulary should be int64, they are {x.dtype}")
        right = int(x.min()) >= 0 and int(x.max()) < spec.vocabulary
        demand(right, f"{what}: ids from {int(x.min())} to {int(x.max())}, but the vocabulary has {spec.vocabulary}")
        return
    demand(x.dtype == torch.float32, f"{what}: numbers should be float32, they are {x.dtype}")
    demand(bool(torch.isfinite(x).all()), f"{what}: x holds values that are not finite")
    for place, size in enumerate(spec.cardinalities, start=spec.numeric):
        codes = x[:, place]
        right = bool((codes == codes.round()).all()) and float(codes.min()) >= 0 and float(codes.max()) < size
        demand(right, f"{what}: column {place} should hold codes 0 to {size - 1}")


def _check_options(kind: Kind) -> None:
    own = kind.options()
    if own is None:
        return
    frozen = is_dataclass(own) and own.__dataclass_params__.frozen  # type: ignore[attr-defined]
    demand(frozen, "options() should give a frozen dataclass")
    names, told = [one.name for one in fields(own)], documented(own)
    missing = [name for name in names if not told.get(name)]
    demand(not missing, f"the options' docstring does not say what {', '.join(missing)} means (Attributes: name: ...)")
    demand(
        not set(told) - set(names), f"the options' docstring speaks of {sorted(set(told) - set(names))}, which are none"
    )
    common = set(names) & set(Reading.__dataclass_fields__)
    demand(not common, f"options {sorted(common)} are asked of all data already; choose other names")
    for other in kinds():
        theirs = other.options() if other.NAME != kind.NAME else None
        both = set(names) & ({one.name for one in fields(theirs)} if theirs is not None else set())
        demand(not both, f"{other.NAME} data ask {sorted(both)}, too; choose other names")


def _check_sets(kind: Kind) -> None:
    for name, one in kind.sets().items():
        demand(isinstance(one, NamedSet), f"the set {name!r} should be a NamedSet")
        owners = [other.NAME for other in kinds() if other.NAME != kind.NAME and name in other.sets()]
        demand(not owners, f"{', '.join(owners)} data have a set called {name!r}, too; rename it")


def _with_rows(rows: Dataset, kept: np.ndarray) -> Dataset:
    """A dataset of these rows, copies among them, none of what restricts its split."""
    values = Target(rows.task, rows.targets.names, rows.targets.values[kept], rows.classes)
    return make_dataset(rows.name, rows.modality, rows.raw.take(kept), values, rows.target)


def _fingerprint_of(rows: Dataset, kept: np.ndarray) -> str:
    """What it would be of these rows with the targets as they stand."""
    return make_dataset(rows.name, rows.modality, rows.raw.take(kept), rows.targets, rows.target).fingerprint


def _check_corruption(name: str, corrupt: Corruption, x: Tensor, spec: Spec) -> None:
    before = fingerprint(x)
    changed = False
    for severity in SEVERITIES:
        made = drawn_from(lambda draw, at=severity: corrupt(x, spec, at, draw), f"{name}, severity {severity}")
        demand(made.shape == x.shape, f"{name}: x {tuple(made.shape)} in place of {tuple(x.shape)}")
        demand(made.dtype == x.dtype, f"{name}: {made.dtype} in place of {x.dtype}")
        demand_x(made, spec, name)
        demand(fingerprint(x) == before, f"{name}: it changed what it was given in place")
        changed |= not torch.equal(made, x)
    demand(changed, f"{name}: nothing is changed by it at any severity")


def _numbers(found: Any, rows: int, what: str) -> None:
    dense = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    demand(dense.ndim == 2 and len(dense) == rows, f"{what}: shape {dense.shape} for {rows} rows; give (n, d)")
    demand(dense.dtype.kind in "fiub" and bool(np.isfinite(dense).all()), f"{what}: values that are no finite numbers")


def _bytes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, bytes]]:
    return {name: (str(value.dtype), np.ascontiguousarray(value).tobytes()) for name, value in arrays.items()}
