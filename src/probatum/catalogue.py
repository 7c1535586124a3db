"""The catalogue: what techniques there are, read from the files themselves without importing them.

A technique is one file, ``<slot>/[<theme>/]<name>.py``, or a folder of its own, ``<slot>/[<theme>/]<name>/<name>.py`` with
what only it uses beside; its id is that name in kebab-case. `names`, `card` and `header` read text only; `load` imports
the one module asked for. Files outside the package join by `add_file` (``--technique``) or through the entry-point
group ``probatum.techniques``, whose entries name modules.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from probatum import slots
from probatum.card import Card
from probatum.errors import InputError

ROOT = Path(__file__).parent / "techniques"
HEADER_FIELDS = ("Paper", "Computes", "Shapes", "Departs")
ADDED = "probatum_technique_"
"""How modules of techniques that joined by `add_file` are named; an installed package's are not so named."""
ID_PATTERN = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Place:
    """Where a technique lives.

    Attributes:
        id: its name in kebab-case.
        slot: what it fills.
        path: the file that holds it.
        module: the name it is imported under.
    """

    id: str
    slot: str
    path: Path
    module: str

    @property
    def folder(self) -> Path | None:
        """Its own folder; None where it is a single file."""
        return _own_folder(self.path)

    @property
    def inside(self) -> Path | None:
        """Its place below ``techniques/`` without the suffix, which its claim and its test share; None from outside."""
        if ROOT not in self.path.parents:
            return None
        return (self.folder or self.path.with_suffix("")).relative_to(ROOT)

    def files(self) -> list[Path]:
        """All that it consists of: its file, and whatever else lies in its own folder."""
        if self.folder is None:
            return [self.path]
        found = (file for file in self.folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        return [self.path, *sorted(file for file in found if file != self.path)]


@dataclass(frozen=True)
class Header:
    """The parsed docstring of a technique's file."""

    summary: str
    fields: dict[str, str]


_added: dict[str, Place] = {}
_as_added: dict[str, str] = {}
"""Digest of the files of each module of an added technique, when it was added."""
_imported: dict[str, str] = {}
"""Digests of the techniques that are imported, by module."""


def names(slot: str | None = None) -> list[str]:
    """Ids of all techniques, or of those in one slot, sorted."""
    if slot is not None and slot not in slots.names():
        raise InputError(f"no slot {slot!r}; slots are {', '.join(slots.names())}")
    return sorted(place.id for place in _places().values() if slot in (None, place.slot))


def place(name: str) -> Place:
    """Where the technique called `name` lives; InputError with the nearest ids if there is none."""
    places = _places()
    if name not in places:
        near = difflib.get_close_matches(name, places, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"unknown technique {name!r}{hint} (`probatum list` shows all {len(places)})")
    return places[name]


def card(name: str) -> Card:
    """The technique's card, sliced from its file as literals."""
    return _card(place(name).path)


def header(name: str) -> Header:
    """The technique's docstring: its summary line and the Paper, Computes, Shapes and Departs fields."""
    return _header(place(name).path)


def load(name: str) -> ModuleType:
    """Import the technique's module (this is where torch comes in)."""
    where = place(name)
    _imported.setdefault(where.module, _digest(where))
    try:
        return _load(where)
    except BaseException:
        _imported.pop(where.module, None)
        raise


def entry(name: str) -> Any:
    """The object that is the technique: `load(name)`'s attribute named by the card's `entry`."""
    module, wanted = load(name), card(name).entry
    if not hasattr(module, wanted):
        raise InputError(f"{place(name).path}: the card's entry {wanted!r} is not defined in the file")
    return getattr(module, wanted)


def find(*, slot: str | None = None, tag: str | None = None, text: str | None = None) -> list[str]:
    """Ids whose slot, tag and words (in id, title, summary or tags; all must occur) match."""
    found = []
    for name in names(slot):
        its = card(name)
        if tag is not None and tag.lower() not in its.tags:
            continue
        words = f"{name} {its.title} {header(name).summary} {' '.join(its.tags)}".lower()
        if text is None or all(word in words for word in text.lower().split()):
            found.append(name)
    return found


def digest(name: str) -> str:
    """Short hash of the technique's files; part of every trial's key, so an edited technique is run again.

    Once it is imported, or was added, they count as they were then: that is what runs here and in other processes.
    """
    where = place(name)
    return _imported.get(where.module) or _as_added.get(where.module) or _digest(where)


def edited(name: str) -> bool:
    """Whether a technique's files are not those any more that `digest` tells of."""
    return _digest(place(name)) != digest(name)


def _digest(where: Place) -> str:
    found = hashlib.sha256(where.path.read_bytes())
    for file in where.files()[1:]:
        found.update(file.relative_to(where.path.parent).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:16]


def from_outside(name: str) -> bool:
    """Whether a technique is no part of this package: a file that joined, or an entry point of another package."""
    return ROOT not in place(name).path.parents


def add_file(path: str | Path) -> str:
    """Let one technique from outside the package take part, a file or a folder ``NAME/NAME.py``; returns its id.

    The slot is the card's `slot`, or the name of the folder that holds the file or folder. What lies beside the
    technique in its own folder is imported relatively: ``from .network import Network``. A file that was edited since it
    was added is read and imported anew.
    """
    path = Path(path).resolve()
    if path.is_dir():
        path = path / f"{path.name}.py"
    if not path.is_file() or path.suffix != ".py":
        raise InputError(f"--technique {path}: no such Python file")
    _card.cache_clear()  # it may have been added before, and edited since
    _header.cache_clear()
    its = _card(path)
    slot = its.slot or (_own_folder(path) or path).parent.name
    if slot not in slots.names():
        raise InputError(
            f"{path}: say which slot it fills, e.g. Card(..., slot='loss'); slots are {', '.join(slots.names())}"
        )
    name = _kebab(path.stem)
    known = _packaged().get(name)
    if known is not None and known.path != path:
        raise InputError(f"{path}: the id {name!r} is taken by {known.path}; rename the file")
    where = Place(name, slot, path, path.stem if _own_folder(path) is None else f"{path.stem}.{path.stem}")
    # other contents are another module, with other modules beside it
    contents = _digest(where)
    mark = f"{ADDED}{hashlib.sha256(bytes(path)).hexdigest()[:8]}_{contents}_"
    _added[name] = replace(where, module=mark + where.module)
    _as_added[mark + where.module] = contents
    return name


def _own_folder(path: Path) -> Path | None:
    """The folder of a technique that has one to itself: it bears the file's name."""
    return path.parent if path.parent.name == path.stem and path.stem not in slots.names() else None


def _places() -> dict[str, Place]:
    return {**_packaged(), **_added}


@cache
def _packaged() -> dict[str, Place]:
    found: dict[str, Place] = {}
    for slot in slots.names():
        for path in _technique_files(ROOT / slot) if (ROOT / slot).is_dir() else ():
            name = _kebab(path.stem)
            if name in found:
                raise InputError(f"{path}: the id {name!r} is taken by {found[name].path}; rename one of the files")
            module = ".".join(("probatum", "techniques", *path.relative_to(ROOT).with_suffix("").parts))
            found[name] = Place(name, slot, path, module)
    for name, found_place in _from_entry_points().items():
        if name in found:
            raise InputError(f"{found_place.path}: the id {name!r} is taken by {found[name].path}")
        found[name] = found_place
    return found


def _technique_files(folder: Path) -> list[Path]:
    """The files below a slot's folder that are techniques: in it, in a theme's folder, or in a folder of their own."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and not path.name.startswith("_"):
            found.append(path)
        elif path.is_dir() and (own := path / f"{path.name}.py").is_file():
            found.append(own)
        elif path.is_dir() and path.name != "__pycache__":
            found += _technique_files(path)
    return found


def _from_entry_points() -> dict[str, Place]:
    from importlib.metadata import entry_points

    found = {}
    for point in entry_points(group="probatum.techniques"):
        module = importlib.util.find_spec(point.value)
        if module is None or module.origin is None:
            raise InputError(f"entry point probatum.techniques:{point.name} names {point.value}, which is not a module")
        path = Path(module.origin)
        slot = _card(path).slot or (_own_folder(path) or path).parent.name
        if slot not in slots.names():
            raise InputError(f"{path}: its card must say slot=..., one of {', '.join(slots.names())}")
        found[_kebab(path.stem)] = Place(_kebab(path.stem), slot, path, point.value)
    return found


def _load(where: Place) -> ModuleType:
    if not where.module.startswith(ADDED):
        return importlib.import_module(where.module)
    if where.module in sys.modules:
        return sys.modules[where.module]
    if where.folder is not None:  # a package around it, so that what lies beside it can be imported
        package = where.module.rpartition(".")[0]
        around = ModuleType(package)
        around.__path__ = [str(where.folder)]
        sys.modules.setdefault(package, around)
    spec = importlib.util.spec_from_file_location(where.module, where.path)
    if spec is None or spec.loader is None:
        raise InputError(f"{where.path}: cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[where.module] = module
    cached, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # an edit within a second would not be seen in it
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        whole = where.module.partition(".")[0]
        for name in [name for name in sys.modules if name == whole or name.startswith(f"{whole}.")]:
            del sys.modules[name]
        raise InputError(f"{where.path}: importing it fails: {type(problem).__name__}: {problem}") from problem
    finally:
        sys.dont_write_bytecode = cached
    return module


@cache
def _card(path: Path) -> Card:
    text = path.read_text(encoding="utf-8")
    start = re.search(r"^CARD(: Card)? = Card\(", text, flags=re.MULTILINE)
    if start is None:
        raise InputError(f"{path}: no line beginning `CARD = Card(`")
    line = text.count("\n", 0, start.start()) + 1
    end = re.compile(r"^\)|\)$", flags=re.MULTILINE)
    position = start.end()
    while (closing := end.search(text, position)) is not None:
        source = text[start.start() : closing.end()]
        position = closing.end()
        try:
            call = ast.parse(source).body[0].value  # type: ignore[attr-defined]
        except SyntaxError:
            continue
        try:
            values = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
            if call.args:
                raise ValueError("positional arguments")
            return Card(**values)
        except (ValueError, TypeError) as problem:
            raise InputError(f"{path}:{line}: the card must be literals by keyword: {problem}") from problem
    raise InputError(f"{path}:{line}: the card's closing parenthesis is missing")


@cache
def _header(path: Path) -> Header:
    text = path.read_text(encoding="utf-8")
    match = re.match(r'\s*(?:r)?"""(.*?)"""', text, flags=re.DOTALL)
    if match is None:
        raise InputError(f"{path}: the file must begin with a docstring: a summary and {', '.join(HEADER_FIELDS)}")
    lines = match.group(1).strip().splitlines()
    fields: dict[str, str] = {}
    current = None
    for line in lines[1:]:
        opening = re.match(r"([A-Z][a-z]+)\s{2,}(\S.*)$", line)
        if opening is not None:
            current = opening.group(1)
            fields[current] = opening.group(2)
        elif current is not None and line.startswith("  ") and line.strip():
            separator = (
                "\n" if re.match(r"\s*\d+\. ", line) else " "
            )  # the points of Departs stand on lines of their own
            fields[current] += separator + line.strip()
        elif line.strip():
            current = None
    missing = [field for field in HEADER_FIELDS if field not in fields]
    if missing:
        raise InputError(f"{path}: the docstring lacks {', '.join(missing)}")
    return Header(lines[0].strip(), fields)


def _kebab(stem: str) -> str:
    name = stem.replace("_", "-")
    if not ID_PATTERN.fullmatch(name):
        raise InputError(f"{stem}.py: a technique's file is named in lower-case letters, digits and underscores")
    return name
