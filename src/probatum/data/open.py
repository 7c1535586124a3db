"""One door to all data: names, files, folders, data frames and arrays become a Dataset."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from probatum.data import embedded, library
from probatum.data.arrays import from_arrays, from_npz, given_rows
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.frame import from_frame
from probatum.data.lazy.memory import memory_limit
from probatum.data.lazy.parquet import open_parquet, parquet_files
from probatum.data.read import SUFFIXES, class_folders, read_images, read_npz, read_table, to_polars
from probatum.data.target import read_target
from probatum.errors import InputError
from probatum.kinds.image.encode import raw_images
from probatum.kinds.language.corpus import SUFFIXES as TEXT_SUFFIXES
from probatum.kinds.language.corpus import Corpus, corpus_names, is_language, open_corpus
from probatum.kinds.table.open_lazy import stream_images, stream_parquet
from probatum.spec import MODALITIES, TASKS
from probatum.worlds.in_world import World, in_world, parse_world


def embedded_names() -> tuple[str, ...]:
    """Names of the sets that need no file."""
    return tuple(embedded.MAKERS)


def open_dataset(
    source: Any,
    *,
    target: str | None = None,
    task: str = "auto",
    modality: str = "auto",
    group: str | None = None,
    time: str | None = None,
    split: str | Sequence[object] | None = None,
    text: str | None = None,
    name: str | None = None,
    drop: Sequence[str] = (),
    size: int | None = None,
    memory: float | str | None = None,
    tokens: str | None = None,
    vocabulary: int | None = None,
    length: int | None = None,
    world: str | World | None = None,
) -> Dataset | Corpus:
    """Read data and find out what it is.

    Args:
        source: name of an embedded set or of one under PROBATUM_DATA; path to .csv, .tsv (also .gz), .parquet, .npz, a
            folder of .parquet files or one with a subfolder of images a class; a .txt (also .gz) file for language
            modelling; a data frame; a pair (X, y); or a Dataset.
        target: name of the target column; without it the last of target, label, class, y, or the last column.
        task: auto, classes, reals or next-token.
        modality: auto, table, image, text or series.
        group: column whose values must not straddle the split.
        time: column to split by: the latest rows test.
        split: column, or one word a row, with train, valid (dev, val) and test.
        text: column that holds the text.
        name: what to call it.
        drop: columns to leave out.
        size: height and width to which images of a folder are resized.
        memory: bytes, or words such as 2GB, that the decoded data may take: Parquet and image folders that are larger are
            streamed from disk; without it PROBATUM_MEMORY, or a quarter of what is free on this machine.
        tokens: language modelling: char or bpe (byte pairs).
        vocabulary: language modelling: number of byte pairs' ids.
        length: language modelling: tokens of a window.
        world: put every split into a world of known truth, e.g. ``label-noise:0.4``; see `probatum.worlds.in_world`.

    Raises:
        InputError: for anything that cannot be used, with the thing, the value and the remedy.
    """
    if world is not None:
        found = parse_world(world)
        plain = open_dataset(
            source,
            target=target,
            task=task,
            modality=modality,
            group=group,
            time=time,
            split=split,
            text=text,
            name=name,
            drop=drop,
            size=size,
            memory=memory,
            tokens=tokens,
            vocabulary=vocabulary,
            length=length,
        )
        if isinstance(plain, Corpus):
            raise InputError(
                f"world {found.name}: {plain.name} is one long text; worlds are made of rows, leave it out"
            )
        return in_world(plain, found)
    if isinstance(source, Dataset | Corpus):
        return source
    if isinstance(source, str) and not source.strip():
        raise InputError("the name of the data is empty; give a name, a path, a data frame or arrays (X, y)")
    if task not in ("auto", *TASKS):
        raise InputError(f"task is {task!r}; use auto, {', '.join(TASKS)}")
    if modality not in ("auto", *MODALITIES):
        raise InputError(f"modality is {modality!r}; use auto, {', '.join(MODALITIES)}")
    if isinstance(drop, str):
        drop = (drop,)
    language = {"tokens": tokens, "vocabulary": vocabulary, "length": length}
    if is_language(source, task):
        others: dict[str, Any] = {"target": target, "group": group, "time": time, "split": split, "text": text}
        others |= {"drop": drop or None, "size": size, "memory": memory}
        others |= {"modality": None if modality in ("auto", "text") else modality}
        unfit = [option for option, value in others.items() if value is not None]
        if task not in ("auto", "next-token"):
            raise InputError(f"{str(source)!r} is one long text, for task next-token; the task given is {task}")
        if unfit:
            raise InputError(f"language modelling takes no {', '.join(unfit)}; leave them out")
        return open_corpus(source, name=name, tokens=tokens, vocabulary=vocabulary, length=length)
    if any(value is not None for value in language.values()):
        told = ", ".join(option for option, value in language.items() if value is not None)
        endings = " or ".join(TEXT_SUFFIXES)
        raise InputError(f"{told} are for language modelling, of {endings} files or a corpus by name")
    by_name = isinstance(source, str) and not Path(source).exists() and not source.lower().endswith(SUFFIXES)
    if by_name or (isinstance(source, str) and source in embedded.MAKERS):
        options: dict[str, object] = {
            "target": target,
            "task": task != "auto",
            "modality": modality != "auto",
            "group": group,
        }
        options |= {"time": time, "split": split is not None, "text": text, "drop": bool(drop), "size": size}
        return _by_name(source, name, [option for option, value in options.items() if value], target, task, drop)
    if isinstance(source, tuple) and len(source) == 2:
        if group or time or text or drop:
            raise InputError("group, time, text and drop name columns; arrays (X, y) have none: give a data frame")
        return from_arrays(*source, name=name or "arrays", target=target, task=task, modality=modality, split=split)
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise InputError(f"{str(path)!r} does not exist; check the path")
        name = name or path.name.split(".")[0]
        limit = memory_limit(memory)
        tables = parquet_files(path) if path.is_dir() else ()
        if path.is_dir() and not tables:
            files, labels = class_folders(path)
            values = read_target(labels, target or "class", "classes")
            given = None if split is None else given_rows(split, len(files))
            streamed = stream_images(files, size, limit, values, name, given)
            if streamed is not None:
                return streamed
            pixels = read_images(files, path, size)
            return make_dataset(name, "image", raw_images(pixels), values, values.names[0], given=given)
        if path.suffix == ".npz":
            return from_npz(read_npz(path), path, name, target, task, modality, split)
        if not tables and not path.name.lower().endswith(SUFFIXES):
            raise InputError(f"{str(path)!r} is none of {', '.join(SUFFIXES)} and no folder; convert it")
        if tables or path.name.lower().endswith(".parquet"):
            rows = open_parquet(path)
            if rows.size > limit:
                return stream_parquet(
                    rows,
                    limit,
                    name=name,
                    target=target,
                    task=task,
                    modality=modality,
                    group=group,
                    time=time,
                    split=split,
                    text=text,
                    drop=drop,
                )
        frame = pl.concat([read_table(file) for file in tables]) if tables else read_table(path)
    else:
        frame = to_polars(source)
    return from_frame(
        frame,
        name=name or "frame",
        target=target,
        task=task,
        modality=modality,
        group=group,
        time=time,
        split=split,
        text=text,
        drop=drop,
    )


def _by_name(
    source: str, name: str | None, options: list[str], target: str | None, task: str, drop: Sequence[str]
) -> Dataset:
    if source in embedded.MAKERS:
        if options:
            raise InputError(f"{source!r} is embedded and takes no {', '.join(options)}; read a file to choose them")
        return _renamed(embedded.MAKERS[source](), name)
    if source in library.library_names() or library.resolve(source) is not None:
        other = sorted(set(options) - {"target", "task", "drop"})
        if other:
            raise InputError(f"{source!r} comes with its own {', '.join(other)}; read its file to choose them")
        return _renamed(library.library(source, target=target, task=task, drop=drop), name)
    known = (*embedded_names(), *library.library_names(), *corpus_names())
    short = {known_name.split("/")[-1]: known_name for known_name in known}
    near = difflib.get_close_matches(source, [*known, *short], n=4, cutoff=0.4)
    hint = f"; nearest: {', '.join(dict.fromkeys(short.get(n, n) for n in near))}" if near else ""
    root = "" if library.root() is not None else "; more sets appear once PROBATUM_DATA names their folder"
    raise InputError(f"no data called {source!r}: neither a path nor a known name{hint}{root}")


def _renamed(dataset: Dataset, name: str | None) -> Dataset:
    return dataset if name is None else replace(dataset, name=name)
