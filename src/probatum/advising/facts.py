"""What is known of data before anything is trained on them: facts, each with its numbers and the words it is told in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probatum.advising import looks
from probatum.data.dataset import IMBALANCE
from probatum.data.facts import told_constant

FEW_ROWS = 1000
"""Fewer rows than this are few."""
DRIFT_AUC, DRIFT_P = 0.6, 0.01
"""Two sets of rows differ where a classifier tells them apart as well as this, and chance would not."""
NEAR_CONSTANT = 0.99
"""A column is nearly constant where one cell has this share of the rows, or more."""


@dataclass(frozen=True)
class Profile:
    """What two data sets are compared by (`probatum.advising.evidence.likeness`).

    Attributes:
        modality: what examples are.
        task: what is asked.
        n: how many rows there are, or characters of a text.
        classes: how many classes; 0 where classes are not what is asked.
        rarest: share of the rarest class times the number of classes: 1 = even shares; 1 without classes.
    """

    modality: str
    task: str
    n: int
    classes: int = 0
    rarest: float = 1.0


@dataclass(frozen=True)
class Fact:
    """One thing that is known of the data.

    Attributes:
        name: what it is about.
        words: a clause a person reads, with the numbers.
        numbers: the same as JSON values.
        trait: key of `probatum.advising.rank.TRAITS` that it shows; "" where techniques are not made for it.
    """

    name: str
    words: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    trait: str = ""


@dataclass(frozen=True)
class DataFacts:
    """All facts of one data set.

    Attributes:
        name: of the data.
        fingerprint: of the data.
        profile: what other data are compared by.
        facts: one after another, as they are told.
        notes: what could not be looked at, and why.
        notices: what was found and done on reading, such as columns that were dropped; facts are of what that left.
    """

    name: str
    fingerprint: str
    profile: Profile
    facts: tuple[Fact, ...]
    notes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def traits(self) -> dict[str, Fact]:
        """The traits that the data show, with the facts that show them."""
        return {fact.trait: fact for fact in reversed(self.facts) if fact.trait}

    def __getitem__(self, name: str) -> Fact:
        """The fact of this name; KeyError where it is not known."""
        for fact in self.facts:
            if fact.name == name:
                return fact
        raise KeyError(f"no fact {name!r} is known of {self.name}; there are {', '.join(f.name for f in self.facts)}")


def facts_of(dataset: Any, *, time: str | None = None, seed: int = 0) -> DataFacts:
    """Look at data; scikit-learn's classifiers look at 2,000 rows at most, and no network is trained.

    Args:
        dataset: as `probatum.open_dataset` gives it.
        time: the column that orders the rows, where one was named, so that it does not tell the halves apart itself.
        seed: of all draws.
    """
    raw = getattr(dataset, "raw", None)
    found: list[Fact] = [_size(dataset, raw)]
    notes: list[str] = []
    counts = class_counts(dataset)
    if counts is not None:
        found.append(_classes(counts, dataset.classes))
    if raw is not None:
        found += _columns(dataset, raw)
    if raw is not None and hasattr(raw, "row_keys"):
        keys = raw.row_keys()
        found += _duplicates(keys, dataset.targets.values)
        found += [_groups(dataset.plan.units)] if dataset.plan.grouped else []
        for look in (_suspicious(dataset, keys, seed), _drift(dataset, time, seed)):
            if isinstance(look, Fact):
                found.append(look)
            elif look:
                notes.append(look)
    elif raw is not None:
        notes.append("the rows stay on disk: repeated rows, labels and drift were not looked at")
    about = (dataset.name, dataset.fingerprint, profile_of(dataset))
    return DataFacts(*about, tuple(found), tuple(notes), tuple(getattr(dataset, "notices", ())))


def profile_of(dataset: Any) -> Profile:
    """What other data are compared with."""
    counts = class_counts(dataset)
    return profile(dataset.modality, dataset.task, dataset.n, () if counts is None else counts.tolist())


def profile(modality: str, task: str, n: int, counts: Sequence[int] = ()) -> Profile:
    """The same from numbers; `counts` are the rows of each class, () where classes are not what is asked."""
    rarest = len(counts) * min(counts) / sum(counts) if counts else 1.0
    return Profile(modality, task, n, len(counts), rarest)


def class_counts(dataset: Any) -> np.ndarray | None:
    """(classes,) rows of each class; None where classes are not what is asked."""
    if not dataset.classes or getattr(dataset, "targets", None) is None:
        return None
    return np.bincount(dataset.targets.values, minlength=len(dataset.classes))


def _size(dataset: Any, raw: Any) -> Fact:
    unit = dataset.kind.UNIT
    columns = len(raw.describe()) if raw is not None and dataset.kind.facet("audit").COLUMNS else None
    few = dataset.kind.ROWS and dataset.n < FEW_ROWS
    words = f"{dataset.n:,} {unit}" + (f" of {columns} columns" if columns else "")
    words += f", fewer than {FEW_ROWS:,}" if few else ""
    numbers = {"n": dataset.n, "columns": columns, "unit": unit, "modality": dataset.modality, "task": dataset.task}
    return Fact("size", words, numbers, "few-rows" if few else "")


def _classes(counts: np.ndarray, names: Sequence[str]) -> Fact:
    least, n, k = int(counts.argmin()), int(counts.sum()), len(counts)
    share = counts[least] / n
    words = f"{k} classes, the rarest, {names[least]!r}, with {counts[least]:,} of {n:,} rows ({percent(share)})"
    numbers = {"classes": k, "rarest": names[least], "rows": int(counts[least]), "share": float(share)}
    return Fact("classes", words, numbers, "imbalance" if share < IMBALANCE / k else "")


def _columns(dataset: Any, raw: Any) -> list[Fact]:
    """Missing cells and columns that hardly vary; nothing where rows have no columns."""
    told = [column for column in raw.describe() if column.get("missing") is not None]
    if not told or not dataset.kind.facet("audit").COLUMNS:
        return []
    cells, gaps = dataset.n * len(told), sum(column["missing"] for column in told)
    holed = sum(column["missing"] > 0 for column in told)
    words = f"{gaps:,} of {cells:,} cells are missing ({percent(gaps / cells)}), in {holed} of {len(told)} columns"
    numbers = {"missing": gaps, "cells": cells, "share": gaps / cells, "columns": holed}
    found = [Fact("missing", words, numbers, "missing" if gaps else "")]
    constant, frame = told_constant(dataset.notices), getattr(raw, "frame", None)
    near = [] if frame is None else [c for c in frame.columns if _top_share(frame[c]) >= NEAR_CONSTANT]
    if constant or near:
        shown = f" ({', '.join(near[:3])}{' ...' if len(near) > 3 else ''})" if near else ""
        told = [f"{constant} constant column{_s(constant)} {_were(constant)} dropped"] if constant else []
        told += [f"{len(near)} column{_s(len(near))} {_are(len(near))} nearly constant{shown}"] if near else []
        words = "; ".join(told)
        found.append(Fact("constant", words, {"constant": constant, "near": near}))
    return found


def _top_share(series: Any) -> float:
    """The share of a column's rows that its commonest cell has."""
    return float(series.value_counts(sort=True)["count"][0]) / len(series)


def _duplicates(keys: Sequence[bytes], targets: np.ndarray) -> list[Fact]:
    """How many rows repeat another's cells, with the same answer or with another."""
    answers: dict[bytes, set[bytes]] = {}
    whole = [row.tobytes() for row in np.ascontiguousarray(targets.reshape(len(keys), -1))]
    for key, answer in zip(keys, whole, strict=True):
        answers.setdefault(key, set()).add(answer)
    repeats = len(keys) - sum(map(len, answers.values()))
    torn = sum(len(answers[key]) > 1 for key in keys)
    if not repeats and not torn:
        return []
    words = f"rows that repeat another: {repeats:,}; that share all their cells with a row of another answer: {torn:,}"
    return [Fact("duplicates", words, {"repeats": repeats, "conflicting": torn, "share": torn / len(keys)})]


def _groups(units: np.ndarray) -> Fact:
    count = len(np.unique(units))
    return Fact("groups", f"rows come in {count:,} groups, and other groups are tested", {"groups": count}, "groups")


def _suspicious(dataset: Any, keys: Sequence[bytes], seed: int) -> Fact | str:
    if dataset.task != "classes":
        return ""
    seen: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        seen.setdefault(key, row)
    look = looks.suspicious_labels(dataset, np.fromiter(seen.values(), dtype=np.int64), seed)
    if isinstance(look, str):
        return look
    words = (
        f"of the {look.of} labels that models of other rows are surest of, {look.wrong} {_are(look.wrong)} contradicted "
        f"({percent(look.share)} [{percent(look.low)}, {percent(look.high)}])"
        + (
            f"; likeliest is that {percent(look.altered)} of all labels [{percent(look.altered_low)}, "
            f"{percent(look.altered_high)}] are wrong, if as often everywhere and if these models fit the rows"
            if look.matters
            else _not_noisy(look)
        )
    )
    return Fact("labels", words, look._asdict(), "noisy-labels" if look.matters else "")


def _not_noisy(look: looks.Suspicion) -> str:
    """Few contradictions are no sign of wrong labels; many that overlap could make as well are no proof of the contrary."""
    return ": not to be told from overlap" if look.low > looks.SUSPICIOUS else ": no sign of wrong labels"


def _drift(dataset: Any, time: str | None, seed: int) -> Fact | str:
    look = looks.drift(dataset, time, seed)
    if isinstance(look, str):
        return look
    apart = look.auc >= DRIFT_AUC and look.p < DRIFT_P
    sides = {
        "time": "later rows are {}told from earlier ones",
        "split": "the given test rows are {}told from the others",
        "order": "the second half of the rows, as they stand, is {}told from the first",
    }[look.by]
    words = f"{sides.format('' if apart else 'not ')} (AUROC {look.auc:.2f}, p {look.p:.2g})"
    if look.by == "order" and apart:
        words += "; if their order is one in time, say --time COLUMN"
    # rows that are split at random are tested on rows of all times: techniques against drift have nothing to mend there
    return Fact("drift", words, look._asdict(), "drift" if apart and look.by != "order" else "")


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def percent(share: float) -> str:
    """A share in words, three digits."""
    return f"{100 * share:.3g} %"
