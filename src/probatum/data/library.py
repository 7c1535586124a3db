"""Sets that are known by name: each kind of data names its own, embedded ones and those in the folder of PROBATUM_DATA."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probatum.data.dataset import MIN_CLASS_ROWS, Dataset
from probatum.data.split import TEST
from probatum.errors import InputError
from probatum.rooms.kind import NamedSet, kinds
from probatum.settings import Reading, told

VARIABLE = "PROBATUM_DATA"


def root() -> Path | None:
    """The folder of PROBATUM_DATA; without it ../shared/data beside the repository or here; None if there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named) if Path(named).is_dir() else None
    places = (Path(__file__).resolve().parents[3], Path.cwd())
    return next((p for place in places if (p := place.parent / "shared" / "data").is_dir()), None)


def sets() -> dict[str, NamedSet]:
    """All sets by their full names."""
    return {name: one for kind in kinds() for name, one in kind.sets().items()}


def embedded_names() -> tuple[str, ...]:
    """Names of the sets of rows that need no file."""
    return tuple(name for name, one in sets().items() if one.embedded and one.rows)


def library_names() -> tuple[str, ...]:
    """Names of the sets found in the folder; () without one."""
    return tuple(sorted(name for name, one in sets().items() if one.rows and not one.embedded))


def resolve(name: str) -> str | None:
    """Full name of a set called by its full or last name; None if there is no such set."""
    known = sets()
    if name in known:
        return name
    return next((full for full in known if full.split("/")[-1] == name), None)


def open_named(name: str, reading: Reading) -> Any:
    """The set of this name; InputError where it is not there, or takes no such option."""
    full = resolve(name)
    if full is None:
        raise unknown(name)
    found = sets()[full]
    said = {**told(reading), **{k: v for k, v in reading.options.items() if v is not None}}
    others = sorted(set(said) - {*found.takes, "name", "memory", "world", "options"})
    if others and found.embedded:
        raise InputError(f"{name!r} is embedded and takes no {', '.join(others)}; read a file to choose them")
    if others:
        raise InputError(f"{name!r} comes with its own {', '.join(others)}; read its file to choose them")
    data = found.open(reading)
    return data if reading.name is None else replace(data, name=reading.name)


def unknown(name: str) -> InputError:
    """What is said of a name that no set has."""
    known = tuple(sets())
    short = {full.split("/")[-1]: full for full in known}
    near = difflib.get_close_matches(name, [*known, *short], n=4, cutoff=0.4)
    hint = f"; nearest: {', '.join(dict.fromkeys(short.get(n, n) for n in near))}" if near else ""
    more = "" if root() is not None else f"; more sets appear once {VARIABLE} names their folder"
    return InputError(f"no data called {name!r}: neither a path nor a known name{hint}{more}")


def library(name: str, *, target: str | None = None, task: str = "auto", drop: Sequence[str] = ()) -> Dataset:
    """A set under PROBATUM_DATA by its full or last name, e.g. ``tables/adult`` or ``adult``.

    Args:
        name: one of `library_names()`.
        target: tables: another target column; trec: fine instead of coarse.
        task: auto (what the source says), classes or reals.
        drop: tables: more columns to leave out.

    Raises:
        InputError: if the folder is missing, or the set is not in it.
    """
    folder = root()
    if folder is None:
        said = os.environ.get(VARIABLE)
        where = f"{said!r} is no folder" if said else f"{VARIABLE} is not set"
        raise InputError(f"{name!r} needs the data folder: {where}; set {VARIABLE} to it")
    full = resolve(name)
    if full is None or sets()[full].embedded:
        raise InputError(f"{name!r} is not in {str(folder)!r}; there are {', '.join(library_names())}")
    return open_named(full, Reading(target=target, task=task, drop=tuple(drop)))


def subset(dataset: Dataset, n: int, seed: int) -> Dataset:
    """n rows of a dataset, drawn by the seed: stratified by class, and by given part where the split is given.

    Raises InputError if n is not between 3 and the number of rows.
    """
    if not MIN_CLASS_ROWS <= n <= dataset.n:
        raise InputError(f"n is {n}; a subset of {dataset.name!r} needs {MIN_CLASS_ROWS} to {dataset.n} rows")
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = dataset.plan.labels if dataset.plan.labels is not None else np.zeros(dataset.n, dtype=np.int64)
    given = dataset.plan.given if dataset.plan.given is not None else np.full(dataset.n, TEST)
    strata = np.unique(np.stack([given, labels], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    exact = np.bincount(strata) * (n / dataset.n)
    counts = np.floor(exact).astype(np.int64)
    for stratum in np.argsort(-(exact - counts), kind="stable")[: n - int(counts.sum())]:
        counts[stratum] += 1
    chosen = [
        rng.permutation(np.flatnonzero(strata == stratum))[:count] for stratum, count in enumerate(counts.tolist())
    ]
    return dataset.take(np.sort(np.concatenate(chosen)))
