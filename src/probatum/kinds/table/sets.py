"""Tables that are known by name: from scikit-learn, drawn by a fixed seed, and those in the folder of PROBATUM_DATA."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from probatum.data.arrays import Arrays
from probatum.data.dataset import MIN_CLASS_ROWS, Dataset
from probatum.data.frame import framed
from probatum.data.library import root
from probatum.kinds.table.read import from_arrays, from_framed
from probatum.rooms.kind import NamedSet
from probatum.settings import Reading

SEED = 20_240_601
LEAKS = {"bikeshare": ("casual", "registered"), "nyc_taxis": ("total",), "bank_marketing": ("duration",)}
"""Columns that are parts of the target, or known only with it."""


def sets() -> dict[str, NamedSet]:
    """Every table that can be opened by its name."""
    makers = {
        "breast-cancer": breast_cancer,
        "wine": wine,
        "iris": iris,
        "diabetes": diabetes,
        "moons": moons,
        "friedman": friedman,
    }
    found = {name: NamedSet(partial(_embedded, make), embedded=True) for name, make in makers.items()}
    folder = root()
    for path in sorted((folder / "tables").glob("*.parquet")) if folder is not None else ():
        found[f"tables/{path.stem}"] = NamedSet(partial(_from_library, path), ("target", "task", "drop"))
    return found


def _embedded(make: Callable[[], Dataset], reading: Reading) -> Dataset:
    return make()


def breast_cancer() -> Dataset:
    """569 tumours, 30 numbers, 2 classes (UCI Wisconsin diagnostic)."""
    from sklearn.datasets import load_breast_cancer

    return _from_sklearn(load_breast_cancer(), "breast-cancer", "diagnosis", "classes")


def wine() -> Dataset:
    """178 wines, 13 numbers, 3 cultivars (UCI)."""
    from sklearn.datasets import load_wine

    return _from_sklearn(load_wine(), "wine", "cultivar", "classes")


def iris() -> Dataset:
    """150 flowers, 4 numbers, 3 species (Fisher 1936)."""
    from sklearn.datasets import load_iris

    return _from_sklearn(load_iris(), "iris", "species", "classes")


def diabetes() -> Dataset:
    """442 patients, 10 numbers, disease progression after a year (Efron et al. 2004)."""
    from sklearn.datasets import load_diabetes

    return _from_sklearn(load_diabetes(scaled=False), "diabetes", "progression", "reals")


def _from_sklearn(source: Any, name: str, target: str, task: str) -> Dataset:
    classes: Sequence[str] = source.target_names if task == "classes" else ()
    arrays = Arrays(source.data, source.target, name, target, classes=classes, features=source.feature_names)
    return from_arrays(arrays, Reading(task=task))


def moons(n: int = 1000, noise: float = 0.25) -> Dataset:
    """Two interleaved half circles in the plane with Gaussian noise, 2 classes."""
    from sklearn.datasets import make_moons

    x, y = make_moons(n, noise=noise, random_state=SEED)
    return from_arrays(Arrays(x, y, "moons", "moon"), Reading(task="classes"))


def friedman(n: int = 1000, noise: float = 1.0) -> Dataset:
    """Friedman's first function (1991): 10 uniform numbers of which 5 matter, reals."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(n, noise=noise, random_state=SEED)
    return from_arrays(Arrays(x, y, "friedman", "response"), Reading(task="reals"))


def _from_library(path: Path, reading: Reading) -> Dataset:
    """A table of the folder: its last column is the target unless another is named; columns that give it away are dropped."""
    frame, last = pl.read_parquet(path), path.stem
    entries = {entry["name"]: entry for entry in json.loads((path.parent / "tables.json").read_text())}
    notices, target, task = [], reading.target, reading.task
    if target is None:
        target = frame.columns[-1]
        if task == "auto":
            task = "reals" if entries[last]["task"] == "regression" else "classes"
    leaks = [c for c in LEAKS.get(last, ()) if c in frame.columns and c != target]
    if leaks:
        notices.append(f"column(s) {', '.join(leaks)} give the target away: dropped")
    if task == "classes":
        few = frame[target].value_counts(name="rows").filter(pl.col("rows") < MIN_CLASS_ROWS)[target].to_list()
        if few:
            frame = frame.filter(~pl.col(target).is_in(few))
            notices.append(f"class(es) {', '.join(map(str, few))} have under {MIN_CLASS_ROWS} rows: left out")
    told = replace(
        reading,
        target=target,
        task=task,
        split="split" if "split" in frame.columns else None,
        drop=(*reading.drop, *(c for c in leaks if c not in reading.drop)),
    )
    dataset = from_framed(framed(frame, last, told), told)
    return replace(dataset, notices=(*notices, *dataset.notices))
