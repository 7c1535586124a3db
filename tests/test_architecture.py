"""The house: who may import whom, techniques that stand alone, shared maths that is shared, small files and functions."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import probatum
from probatum import catalogue, slots
from probatum.rooms import find
from probatum.rooms.kind import kinds

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "probatum"
MOST_LINES = 500
LONGEST = 60
"""Lines of a function without its docstring."""

LONGER: dict[str, str] = {}
"""Functions that may be longer, as ``path:name``, each with the reason."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, without the package itself, whose names are lazy."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(("probatum", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = path
    del found["probatum"]
    return found


@cache
def imported(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, imported module) of every import of this package, lazy ones and those for type checkers included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: no relative imports"
            assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}: no star imports"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else lazy(name) or module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert "probatum" not in names, f"{path}:{node.lineno}: import what is needed, not the whole package"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            names = [value for one in node.args if isinstance(value := getattr(one, "value", None), str)]
        else:
            continue
        found += [(node.lineno, name) for name in names if name.startswith("probatum.")]
    return tuple(found)


def lazy(name: str) -> str | None:
    """The module of a name that the package itself offers."""
    package, _, own = name.rpartition(".")
    return probatum._HOMES.get(own) if package == "probatum" else None


def room(module: str) -> str:
    return module.split(".")[1]


def picture() -> list[list[str]]:
    """The floors drawn in ARCHITECTURE.md, from the roof down, each a list of rooms."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = re.search(r"```house\n(.*?)```", text, flags=re.DOTALL)
    assert drawn is not None, "ARCHITECTURE.md has no picture of the house"
    floors = []
    for line in drawn.group(1).splitlines():
        words = re.findall(r"[a-z_]+", line.split("  --  ")[0])
        floors += [words] if words else []
    return floors


def test_the_picture_shows_every_room_once() -> None:
    drawn = Counter(name for floor in picture() for name in floor)
    assert set(drawn) == {room(name) for name in modules()}
    assert max(drawn.values()) == 1


def test_imports_point_downwards_in_the_picture() -> None:
    floors = {name: height for height, floor in enumerate(reversed(picture())) for name in floor}
    for name, path in modules().items():
        for line, other in imported(path):
            here, there = room(name), room(other)
            assert here == there or floors[there] < floors[here], f"{path}:{line}: {here} may not import {there}"


def test_no_circles() -> None:
    graph = {name: {other for _, other in imported(path)} - {name} for name, path in modules().items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(f"these import one another: {' -> '.join(circle.args[1])}")


@cache
def names_in(module: str) -> frozenset[str]:
    """What a module's text defines or imports at its top level, branches included, and what its folder holds."""
    path = modules()[module]
    found = {other.rpartition(".")[2] for other in modules() if other.rpartition(".")[0] == module}
    todo: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        else:
            todo += ast.iter_child_nodes(node)
    return frozenset(found)


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_what_is_imported_exists(folder: str) -> None:
    """Also where it is imported late, so that no run is needed to see a name that has moved."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("probatum."):
                where = f"{path}:{node.lineno}"
                assert node.module in modules(), f"{where}: there is no {node.module}"
                gone = {alias.name for alias in node.names} - names_in(node.module)
                assert not gone, f"{where}: {node.module} has no {', '.join(sorted(gone))}"


@pytest.mark.parametrize("name", catalogue.names())
def test_techniques_stand_alone(name: str) -> None:
    where = catalogue.place(name)
    own = where.module.rpartition(".")[0]
    for path in where.files():
        for line, module in imported(path) if path.suffix == ".py" else ():
            beside = where.folder is not None and module.startswith(own + ".")
            assert beside or room(module) in ("card", "spec", "errors", "numerics"), (
                f"{path.name}, line {line}: a technique may not import {module}"
            )


def users_of_numerics() -> dict[str, set[str]]:
    """For every file of numerics the rooms that reach it: techniques each for itself, its claim included, and other rooms."""
    direct: dict[str, set[str]] = {}
    for name in catalogue.names():
        place = catalogue.place(name)
        assert place.inside is not None
        for path in (*place.files(), SOURCE / "claims" / place.inside.with_suffix(".py")):
            for _, module in imported(path) if path.suffix == ".py" else ():
                direct.setdefault(module, set()).add(name)
    for name, path in modules().items():
        if room(name) not in ("numerics", "techniques", "claims"):
            for _, module in imported(path):
                direct.setdefault(module, set()).add(room(name))
    inside = {name: path for name, path in modules().items() if room(name) == "numerics" and path.name != "__init__.py"}
    found = {name: set(direct.get(name, ())) for name in inside}
    order = TopologicalSorter({name: {m for _, m in imported(path) if m in inside} for name, path in inside.items()})
    for name in reversed(tuple(order.static_order())):  # whoever uses a file uses what it is made of
        for _, module in imported(inside[name]):
            if module in found:
                found[module] |= found[name]
    return found


def test_numerics_holds_what_two_rooms_use() -> None:
    alone = {name: users for name, users in users_of_numerics().items() if len(users) < 2}
    assert not alone, f"move what one alone uses beside it: {alone}"


def test_numerics_has_no_name_twice() -> None:
    files = Counter(path.name for path in (SOURCE / "numerics").rglob("*.py") if path.name != "__init__.py")
    twice = [name for name, count in files.items() if count > 1]
    assert not twice
    loose = [path.name for path in (SOURCE / "numerics").glob("*.py") if path.name != "__init__.py"]
    assert not loose, f"give them a room by what they are about: {loose}"


def constants(path: Path) -> list[tuple[int, str]]:
    """(line, string) of every string in a file that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in said)
    return [(node.lineno, node.value) for node in nodes if isinstance(node.value, str)]


MACHINERY = (
    "bench",
    "arenas",
    "checks",
    "train",
    "measure",
    "contracts",
    "data",
    "rooms",
    "kinds",
    "tasks",
    "worlds",
    "advising",
    "auditing",
    "report",
    "ship",
    "drawing",
)


def test_machinery_names_no_technique() -> None:
    names = set(catalogue.names()) - {"recall"}  # a measure of classes has that name too
    for part in MACHINERY:
        for path in (SOURCE / part).rglob("*.py"):
            for line, word in constants(path):
                assert word not in names, f"{path}:{line} names the technique {word}"


KNOWS_KINDS = {
    "worlds/labels.py": "the human labels are of one set of images, which the world has to know again",
    "checks/explain.py": "attributions are tried on images where they can be, since these have the most inputs",
    "checks/stacking.py": "tables and images have layers of every sort between them; more would be tried for nothing",
    "cli/scaffold.py": "the smallest embedded set is a table",
}
"""Files outside of `kinds` that name a kind of data, each with the reason."""


def kinds_named(node: ast.AST, words: set[str]) -> Iterator[str]:
    """Kinds of data that a node chooses by: in a comparison, a match, a lookup by `kind`."""
    if isinstance(node, ast.Compare):
        parts: list[ast.AST] = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    elif isinstance(node, ast.Dict) and len(node.keys) > 1:
        parts = [key for key in node.keys if key is not None]
        parts = parts if all(isinstance(key, ast.Constant) and key.value in words for key in parts) else []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("kind", "kind_of"):
        parts = list(node.args)
    else:
        return
    for part in parts:
        for inner in ast.walk(part):
            if isinstance(inner, ast.Constant) and inner.value in words:
                yield str(inner.value)


def test_only_kinds_branch_on_kinds_of_data() -> None:
    """What differs between kinds of data, a kind's own files say."""
    words = {*find.names("kind"), *(kind.modality for kind in kinds())}
    free = tuple(f"{room}/" for room in ("kinds", "techniques", "claims", "numerics"))
    seen = set()
    for path in sorted(SOURCE.rglob("*.py")):
        where = path.relative_to(SOURCE).as_posix()
        if where.startswith(free):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for word in kinds_named(node, words):
                assert where in KNOWS_KINDS, f"{path}:{node.lineno} branches on the kind of data: {word}"  # type: ignore[attr-defined]
                seen.add(where)
    assert seen == set(KNOWS_KINDS), "files that name no kind any more stand in KNOWS_KINDS"


@pytest.mark.parametrize("name", catalogue.names())
def test_every_technique_has_its_claim_and_its_test(name: str) -> None:
    place = catalogue.place(name)
    assert place.inside is not None
    assert (SOURCE / "claims" / place.inside.with_suffix(".py")).is_file(), f"{name} has no claim file"
    home = ROOT / "tests" / "techniques" / (place.inside if place.folder is not None else place.inside.parent)
    assert (home / f"test_{place.path.name}").is_file(), f"{name} has no test file"


@pytest.mark.parametrize("path", modules().values(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES, f"{path} has {text.count(chr(10))} lines; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            said = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            lines = (node.end_lineno or 0) - node.lineno + 1
            lines -= 0 if said is None else (said.end_lineno or 0) - said.lineno + 1
            named = f"{path.relative_to(SOURCE)}:{node.name}"
            assert lines <= LONGEST or named in LONGER, f"{named} has {lines} lines without its docstring; split it"


def test_nothing_counts_operations_but_the_counter() -> None:
    for path in SOURCE.rglob("*.py"):
        assert "FlopCounterMode" not in path.read_text(encoding="utf-8"), f"{path}: count with numerics.cost.operations"


def test_every_slot_has_its_contract_checks_and_template() -> None:
    for slot in slots.names():
        assert (SOURCE / "contracts" / f"{slot}.py").is_file()
        assert (SOURCE / "checks" / f"{slot}.py").is_file()
        assert (SOURCE / "cli" / "templates" / f"{slot}.py.txt").is_file()


def test_packages_hold_no_code_in_their_init() -> None:
    for path in SOURCE.rglob("__init__.py"):
        if path.parent in (SOURCE, SOURCE / "data"):
            continue  # the public names
        assert not path.read_text(encoding="utf-8").strip(), f"{path} should be empty"
