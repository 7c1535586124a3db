"""Rooms that come with an installed package, by its entry points."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from probatum.errors import InputError
from probatum.rooms import find
from probatum.rooms.kind import modalities

pytestmark = pytest.mark.fast

GROUP = "probatum.kinds"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a kind that is a package, found by its entry point."""
    package = tmp_path / "graph_package" / "edgelists"
    shutil.copytree(Path(__file__).with_name("edgelists"), package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("edgelists", "graph_package.edgelists", GROUP)]
    told(monkeypatch, points)
    yield package
    monkeypatch.undo()
    forget()


def told(monkeypatch: pytest.MonkeyPatch, points: list[EntryPoint]) -> None:
    """Let these be the installed entry points."""

    def entry_points(group: str) -> list[Any]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    forget()


def forget() -> None:
    find._packaged.cache_clear()


def test_a_kind_joins_by_an_entry_point_and_records_depend_on_its_files(installed: Path) -> None:
    assert "edgelists" in find.names("kind")
    assert "edgelist" in modalities()
    assert find.load("kind", "edgelists").__name__ == "graph_package.edgelists.kind"
    before = find.digest()
    assert before
    assert find.digest() == before
    (installed / "encode.py").write_text((installed / "encode.py").read_text(encoding="utf-8") + "\n# other\n")
    assert find.digest() != before


def test_without_rooms_from_outside_there_is_no_digest() -> None:
    assert find.digest() == ""


@pytest.mark.parametrize("package", ["surely_not_installed", "surely_not_installed.inside", "json.decoder"])
def test_an_entry_point_that_names_no_package_is_told_of(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, [EntryPoint("nothing", package, GROUP)])
    with pytest.raises(InputError, match=f"entry point probatum.kinds:nothing names {package}, which is no package"):
        find.names("kind")
    monkeypatch.undo()
    forget()
