"""Sets in the folder that PROBATUM_DATA names: images, texts, tables and series from public sources."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from probatum.data.arrays import from_npz
from probatum.data.dataset import MIN_CLASS_ROWS, Dataset
from probatum.data.frame import from_frame
from probatum.data.read import read_npz, read_table
from probatum.data.split import TEST
from probatum.errors import InputError

VARIABLE = "PROBATUM_DATA"
IMAGE_SETS = ("mnist", "fashion_mnist", "cifar10_subset")
SENTENCE_SETS = ("mr", "subj", "cr", "mpqa", "sst2", "sst5", "trec")
LEAKS = {"bikeshare": ("casual", "registered"), "nyc_taxis": ("total",), "bank_marketing": ("duration",)}
"""Columns that are parts of the target, or known only with it."""


def root() -> Path | None:
    """The folder of PROBATUM_DATA; without it ../shared/data beside the repository or here; None if there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named) if Path(named).is_dir() else None
    places = (Path(__file__).resolve().parents[3], Path.cwd())
    return next((p for place in places if (p := place.parent / "shared" / "data").is_dir()), None)


def library_names() -> tuple[str, ...]:
    """Names of the sets found in the folder; () without one."""
    folder = root()
    if folder is None:
        return ()
    names = [name for name in IMAGE_SETS if (folder / name / f"{name}.npz").is_file()]
    names += [name for name in ("ag_news", "sms_spam") if (folder / name).is_dir()]
    names += [f"sentence_sets/{s}" for s in SENTENCE_SETS if (folder / "sentence_sets" / f"{s}.csv.gz").is_file()]
    names += [f"tables/{path.stem}" for path in sorted((folder / "tables").glob("*.parquet"))]
    names += [f"ucr_series/{path.stem}" for path in sorted((folder / "ucr_series").glob("*.npz"))]
    return tuple(names)


def resolve(name: str) -> str | None:
    """Full name of a set called by its full or last name; None if there is no such set."""
    names = library_names()
    if name in names:
        return name
    return next((full for full in names if full.split("/")[-1] == name), None)


def library(
    name: str,
    *,
    target: str | None = None,
    task: str = "auto",
    drop: Sequence[str] = (),
) -> Dataset:
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
    if full is None:
        raise InputError(f"{name!r} is not in {str(folder)!r}; there are {', '.join(library_names())}")
    kind, _, last = full.rpartition("/")
    if kind != "tables" and (drop or (target and last != "trec")):
        raise InputError(f"{full!r} takes no target or drop; they are for tables")
    if kind == "tables":
        return _table(folder, last, target, task, drop)
    if kind == "ucr_series":
        return _series(folder, last, task)
    if kind == "sentence_sets":
        return _sentences(folder, last, target)
    return IMAGES_AND_TEXTS[full](folder, full)


def _images(folder: Path, name: str) -> Dataset:
    path = folder / name / f"{name}.npz"
    return from_npz(read_npz(path), path, name, "class", "classes", "image", None)


def _ag_news(folder: Path, name: str) -> Dataset:
    frame = read_table(folder / name / "ag_news_test.csv.gz")
    joined = frame.select("label", text=pl.col("title") + ". " + pl.col("description"))
    return _text_set(joined, name, "label")


def _sms_spam(folder: Path, name: str) -> Dataset:
    return _text_set(read_table(folder / name / "sms_spam.csv.gz"), name, "label")


IMAGES_AND_TEXTS: dict[str, Callable[[Path, str], Dataset]] = {
    "mnist": _images,
    "fashion_mnist": _images,
    "cifar10_subset": _images,
    "ag_news": _ag_news,
    "sms_spam": _sms_spam,
}


def _sentences(folder: Path, last: str, target: str | None) -> Dataset:
    frame = read_table(folder / "sentence_sets" / f"{last}.csv.gz")
    target = target or ("coarse" if last == "trec" else "label")
    return _text_set(frame.select("text", target, "split"), last, target, split="split")


def _text_set(frame: pl.DataFrame, name: str, target: str, split: str | None = None) -> Dataset:
    full = frame.filter(pl.col("text").str.strip_chars() != "")
    return from_frame(
        full,
        name=name,
        target=target,
        task="classes",
        modality="text",
        group=None,
        time=None,
        split=split,
        text="text",
        drop=(),
    )


def _table(folder: Path, last: str, target: str | None, task: str, drop: Sequence[str]) -> Dataset:
    frame = pl.read_parquet(folder / "tables" / f"{last}.parquet")
    entries = {entry["name"]: entry for entry in json.loads((folder / "tables" / "tables.json").read_text())}
    notices = []
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
    dataset = from_frame(
        frame,
        name=last,
        target=target,
        task=task,
        modality="table",
        group=None,
        time=None,
        split="split" if "split" in frame.columns else None,
        text=None,
        drop=(*drop, *(c for c in leaks if c not in drop)),
    )
    return replace(dataset, notices=(*notices, *dataset.notices))


def _series(folder: Path, last: str, task: str) -> Dataset:
    path = folder / "ucr_series" / f"{last}.npz"
    arrays = read_npz(path)
    if task == "auto":
        task = "classes" if "classes" in arrays else "reals"
    return from_npz(arrays, path, last, "class" if task == "classes" else "value", task, "series", None)


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
