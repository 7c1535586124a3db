"""Rooms: kinds of data, tasks and arenas are folders that are found by name, so that a new one touches no existing file.

===========  ====================  ==========================================================================
sort         a folder of           holds
===========  ====================  ==========================================================================
kind         ``probatum/kinds``    ``kind.py``: `rooms.kind.Kind`, and a task of its own if it brings one
task         ``probatum/tasks``    ``task.py``: `rooms.task.Task`; a kind's folder may hold one, too
arena        ``probatum/arenas``   ``arena.py``: the functions of `rooms.arena.Arena`
===========  ====================  ==========================================================================

A room's name is its folder's in kebab-case; a task's is the literal ``NAME = "..."`` in its file. Folders outside the
package join by `add`, or through the entry-point groups ``probatum.kinds``, ``probatum.tasks`` and ``probatum.arenas``,
whose entries name packages. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from probatum.errors import InputError

PACKAGE = Path(__file__).parents[1]
HOMES = {"kind": ("probatum.kinds",), "task": ("probatum.kinds", "probatum.tasks"), "arena": ("probatum.arenas",)}
"""The packages whose folders are rooms of a sort. By these names `claims.fingerprint` knows where members are found."""
SORTS = tuple(HOMES)
ADDED = "probatum_room_"
"""How packages of rooms that joined by `add` are named."""
NAME = re.compile(r'^ *NAME(?:: [^=\n]+)? = "([^"]+)"', flags=re.MULTILINE)


@dataclass(frozen=True)
class Room:
    """Where one room is: its sort, name and folder, and the package that its modules are imported from."""

    sort: str
    name: str
    folder: Path
    package: str


_added: dict[tuple[str, str], Room] = {}


def names(sort: str) -> tuple[str, ...]:
    """Names of all rooms of a sort, sorted."""
    return tuple(sorted(_rooms(sort)))


def room(sort: str, name: str) -> Room:
    """The room of this sort and name; InputError with the nearest names where there is none."""
    known = _rooms(sort)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"no {sort} called {name!r}{hint} (there are {', '.join(sorted(known))})")
    return known[name]


def load(sort: str, name: str) -> ModuleType:
    """The room's own module: ``kind.py``, ``task.py`` or ``arena.py``."""
    found = part(room(sort, name), sort)
    if found is None:
        raise InputError(f"{sort} {name} has no {sort}.py; write it (`probatum new {sort}/{name}` shows one)")
    return found


def part(where: Room, file: str) -> ModuleType | None:
    """Another module of the room's folder, by the name of its file; None where there is none."""
    path = where.folder / f"{file}.py"
    if not path.is_file():
        return None
    try:
        return importlib.import_module(f"{where.package}.{file}")
    except Exception as problem:
        if PACKAGE in path.parents or isinstance(problem, InputError):
            raise
        raise InputError(f"{path}: importing it fails: {type(problem).__name__}: {problem}") from problem


def add(folder: str | Path, sort: str = "kind", *, package: str | None = None) -> str:
    """Let a room from outside the package take part, and the task that a kind's folder may hold; returns its name.

    Args:
        folder: what holds it; its modules import one another relatively, ``from .encode import Encoder``.
        sort: kind, task or arena.
        package: what its modules are called where what is pickled comes from; None = by the folder's path.

    Raises:
        InputError: no such folder, no file of the sort in it, or a name that is taken.
    """
    place = Path(folder).resolve()
    if not (place / f"{sort}.py").is_file():
        raise InputError(f"{str(folder)!r} is no folder of a {sort}: {sort}.py is missing in it")
    package = package or f"{ADDED}{place.name}_{hashlib.sha256(bytes(place)).hexdigest()[:8]}"
    for what in (sort, "task"):
        if (place / f"{what}.py").is_file():
            found = Room(what, _name(what, place), place, package)
            known = _packaged(what).get(found.name) or _added.get((what, found.name))
            if known is not None and known.folder != place:
                raise InputError(
                    f"{place}: there is a {what} called {found.name} already, in {known.folder}; rename it"
                )
            _added[what, found.name] = found
    if package not in sys.modules:
        around = ModuleType(package)
        around.__path__ = [str(place)]
        sys.modules[package] = around
    return _name(sort, place)


def added() -> tuple[Room, ...]:
    """The rooms that joined by `add`, which other processes must be told of."""
    return tuple(_added.values())


def files(folder: Path) -> list[Path]:
    """All that a room consists of: every file in its folder, data among them, but for what Python and editors leave there."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(_left_behind(part) for part in file.relative_to(folder).parts))


def digest() -> str:
    """Hash of the files of rooms from outside; "" without any. Records made where they take part depend on it."""
    found = hashlib.sha256()
    installed = (room for sort in SORTS for room in _packaged(sort).values() if PACKAGE not in room.folder.parents)
    folders = sorted({room.folder for room in (*_added.values(), *installed)})
    for one in folders:
        for file in files(one):
            found.update(file.relative_to(one).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:16] if folders else ""


def _left_behind(name: str) -> bool:
    return name == "__pycache__" or name.startswith(".")


def _rooms(sort: str) -> dict[str, Room]:
    if sort not in SORTS:
        raise ValueError(f"no sort of room {sort!r}; use one of {', '.join(SORTS)}")
    return _packaged(sort) | {name: one for (what, name), one in _added.items() if what == sort}


@cache
def _packaged(sort: str) -> dict[str, Room]:
    found: dict[str, Room] = {}
    for home in HOMES[sort]:
        for file in sorted((PACKAGE / home.rpartition(".")[2]).glob(f"*/{sort}.py")):
            name = _name(sort, file.parent)
            found[name] = Room(sort, name, file.parent, f"{home}.{file.parent.name}")
    for name, one in _from_entry_points(sort).items():
        if name in found:
            raise InputError(f"{one.folder}: there is a {sort} called {name} already, in {found[name].folder}")
        found[name] = one
    return found


def _from_entry_points(sort: str) -> dict[str, Room]:
    from importlib.metadata import entry_points

    found = {}
    for point in entry_points(group=f"probatum.{sort}s"):
        try:
            package = importlib.util.find_spec(point.value)
        except ModuleNotFoundError:  # what it lies in is not there
            package = None
        if package is None or not package.submodule_search_locations:
            raise InputError(f"entry point probatum.{sort}s:{point.name} names {point.value}, which is no package")
        folder = Path(next(iter(package.submodule_search_locations)))
        found[_name(sort, folder)] = Room(sort, _name(sort, folder), folder, point.value)
    return found


def _name(sort: str, folder: Path) -> str:
    if sort != "task":
        return folder.name.replace("_", "-")
    told = NAME.search((folder / "task.py").read_text(encoding="utf-8"))
    if told is None:
        raise InputError(f'{folder / "task.py"} does not say its task\'s name: NAME = "..."')
    return told.group(1)
