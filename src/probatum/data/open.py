"""One door to all data: names, files, folders, data frames and arrays become a Dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from probatum.data.door import Door
from probatum.data.joined import check_classes, task_of_training
from probatum.data.lazy.memory import memory_limit
from probatum.data.library import embedded_names, open_named, resolve, unknown
from probatum.errors import InputError
from probatum.rooms import find
from probatum.rooms.kind import Kind, blamed, kinds, modalities
from probatum.rooms.world import in_world, parse_world
from probatum.settings import Reading, checked, documented, told, with_target, with_test


def open_dataset(source: Any, reading: Reading | None = None, *, target: str | None = None, test: Any = None) -> Any:
    """Read data and find out what they are.

    Args:
        source: name of a set; path to .csv, .tsv (also .gz), .parquet, .npz, .txt (also .gz), a folder of .parquet files or
            one with a subfolder of images a class, or whatever a kind of data of your own reads; a data frame; a pair
            (X, y); or a `Dataset`.
        reading: what is said of them; None = nothing.
        target: column to predict, in short for ``Reading(target=...)``.
        test: test rows of your own, in short for ``Reading(test=...)``.

    Returns:
        A `probatum.data.dataset.Dataset`, or what a kind of data has in its place, such as a
        `probatum.kinds.language.corpus.Corpus`.

    Raises:
        InputError: for anything that cannot be used, with the thing, the value and the remedy.

    Example:
        >>> open_dataset("wine").n
        178
    """
    said = with_test(with_target(checked(reading, Reading), target), test)
    if said.world is None:
        return _plain(source, said)
    world = parse_world(said.world)
    return in_world(_plain(source, replace(said, world=None)), world)


def _plain(source: Any, said: Reading) -> Any:
    """The data, in no world."""
    if _is_data(source):
        return _opened_before(source, said)
    if isinstance(source, str) and not source.strip():
        raise InputError("the name of the data is empty; give a name, a path, a data frame or arrays (X, y)")
    _check_words(said)
    if isinstance(said.drop, str):
        said = replace(said, drop=(said.drop,))
    if isinstance(source, str) and (source in embedded_names() or not Path(source).exists()):
        if resolve(source) is not None:
            return open_named(source, said)
        if not _like_a_file(source):
            raise unknown(source)
    door = Door(source, said)
    kind = next((one for one in kinds() if _opens(one, door)), None)
    if kind is None:
        raise _nobodys(door)
    _check_options(kind, said.options)
    with blamed(kind, "opening data"):
        found = kind.open(door)
        if not _is_data(found):
            raise InputError(f"kind {kind.NAME}: open gives a {type(found).__name__}; let it give a Dataset")
    return found if said.test is None else _tested_on(found, door)


def _tested_on(found: Any, door: Door) -> Any:
    """Data with test rows of the user's own, of which the training rows alone say what the task is."""
    if not found.fixed_split:
        raise InputError(f"{found.kind.NAME} data take no test rows of their own; leave test out")
    values = door.training_targets(found.target)
    if door.reading.task == "auto" and values is not None and found.task in ("classes", "reals"):
        task = task_of_training(values, found.target)
        if task not in (None, found.task):
            return _plain(door.source, replace(door.reading, task=task))
    check_classes(found)
    return found


def _opens(kind: Kind, door: Door) -> bool:
    with blamed(kind, "looking whether data are its own"):
        return kind.opens(door)


def _is_data(found: Any) -> bool:
    return hasattr(found, "prepare") and hasattr(found, "fingerprint")


def _opened_before(source: Any, said: Reading) -> Any:
    """Data that were opened already: of them only a name can be said."""
    others = sorted({*told(said), *said.options} - {"name", "world", "options"})
    if others:
        raise InputError(
            f"{source.name} was opened already, and takes no {', '.join(others)} any more; say it where it is opened"
        )
    return source if said.name is None else replace(source, name=said.name)


def _like_a_file(name: str) -> bool:
    """Whether this is rather the path of a file than a name: it has an ending, or begins as paths do."""
    return "." in Path(name).name or name.startswith(("/", "~", "."))


def _check_words(said: Reading) -> None:
    tasks = find.names("task")
    if said.task not in ("auto", *tasks):
        raise InputError(f"task is {said.task!r}; use auto, {', '.join(tasks)}")
    known = dict.fromkeys((*modalities(), *find.names("kind")))
    if said.modality not in ("auto", *known):
        raise InputError(f"modality is {said.modality!r}; use auto, {', '.join(known)}")
    for name in ("group", "time"):
        if said.target is not None and getattr(said, name) == said.target:
            raise InputError(
                f"{name} and target are both {said.target!r}; what is predicted cannot order or group rows"
            )
    for name in ("split", "time"):
        if said.test is not None and getattr(said, name) is not None:
            raise InputError(f"test and {name} both say which rows are the test; give one of them")
    if said.memory is not None:
        memory_limit(said.memory)
    for name in said.options:
        if not any(name in _options(kind) for kind in kinds()):
            raise InputError(f"no kind of data asks {name!r}; they ask {', '.join(_asked())}")


def _check_options(kind: Kind, options: Mapping[str, Any]) -> None:
    own = _options(kind)
    other = [name for name, value in options.items() if name not in own and value is not None]
    if other:
        whose = next(one for one in kinds() if other[0] in _options(one))
        raise InputError(f"{', '.join(other)} are asked of {whose.NAME} ({whose.ABOUT}), not of {kind.NAME} data")


def _options(kind: Kind) -> dict[str, str]:
    own = kind.options()
    about = {} if own is None else documented(own)
    return {} if own is None else {one.name: about.get(one.name, "") for one in fields(own)}


def _asked() -> list[str]:
    return sorted({name for kind in kinds() for name in _options(kind)})


def _nobodys(door: Door) -> InputError:
    said = (("modality", door.reading.modality), ("task", door.reading.task))
    words = ", ".join(f"{name} {value}" for name, value in said if value != "auto")
    what = repr(str(door.path)) if door.path is not None else f"a {type(door.source).__name__}"
    shape = getattr(getattr(door.arrays, "x", None), "shape", None)
    if shape is not None:
        what = f"X of {len(shape)} dimensions, {tuple(shape)},"
    forms = "; ".join(f"{kind.NAME}: {kind.ABOUT}" for kind in kinds())
    return InputError(f"{what} is no data that is known{f' of {words}' if words else ''}; there are {forms}")
