"""The house: who may import whom, one file per technique, small files, no central lists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from probatum import catalogue, slots

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "probatum"
MOST_LINES = 500

LAYERS = [
    {"card", "errors", "rules", "spec"},
    {"catalogue", "numerics"},
    {"contracts"},
    {"recipe"},
    {"data", "measure", "train"},
    {"arenas"},
    {"bench", "checks", "estimator"},
    {"report", "ship", "auditing"},
    {"study"},
    {"techniques", "claims"},
    {"cli", "__main__"},
]
"""From the ground up; a room may import rooms below it and those beside it."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, imported room of this package)."""
    return [(line, name.split(".")[1]) for line, name in imported(path)]


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, imported module) of every import of this package, lazy ones and those for type checkers included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: no relative imports"
            assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}: no star imports"
            names = [
                f"{node.module}.{alias.name}" if node.module == "probatum" else node.module or ""
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(node.lineno, name) for name in names if name.startswith("probatum.")]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "techniques"):
        return  # the public names are lazy; techniques have a test of their own (only claims may name one)
    for line, there in imports(path):
        if there in ("__version__", here):
            continue
        if here == "study" or there == "study":
            assert here in ("study", "cli", "claims"), f"{path}:{line}: {here} may not import {there}"
            continue
        assert LEVEL[there] <= LEVEL[here], f"{path}:{line}: {here} may not import {there}"


@pytest.mark.parametrize("name", catalogue.names())
def test_techniques_stand_alone(name: str) -> None:
    where = catalogue.place(name)
    own = where.module.rpartition(".")[0]
    for path in where.files():
        for line, module in imported(path) if path.suffix == ".py" else ():
            beside = where.folder is not None and module.startswith(own + ".")
            assert beside or module.split(".")[1] in ("card", "spec", "errors", "numerics"), (
                f"{path.name}, line {line}: a technique may not import {module}"
            )


def test_machinery_names_no_technique() -> None:
    names = set(catalogue.names()) - {"recall"}  # a measure of classes has that name too
    for part in ("bench", "arenas", "checks", "train", "measure", "contracts", "data"):
        for path in (SOURCE / part).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    assert node.value not in names, f"{path}:{node.lineno} names the technique {node.value}"


@pytest.mark.parametrize("name", catalogue.names())
def test_every_technique_has_its_claim_and_its_test(name: str) -> None:
    place = catalogue.place(name)
    assert place.inside is not None
    assert (SOURCE / "claims" / place.inside.with_suffix(".py")).is_file(), f"{name} has no claim file"
    home = ROOT / "tests" / "techniques" / (place.inside if place.folder is not None else place.inside.parent)
    assert (home / f"test_{place.path.name}").is_file(), f"{name} has no test file"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{path} has {lines} lines; split it"


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


def test_one_counter_of_operations() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "flop_counter" not in text, (
            f"{path}: count with numerics.cost.operations, torch's own counter misses much"
        )
