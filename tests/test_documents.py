"""Documents name commands, options, techniques, make targets and files that exist; every technique shows its use."""

from __future__ import annotations

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from probatum import catalogue
from probatum.cli.main import app
from probatum.recipe import parse_arm

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "probatum"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
    *PAGES,
    *sorted((ROOT / "decisions").glob("*.md")),
]
FENCED = re.compile(r"```(\w+)\n(.*?)```", flags=re.DOTALL)
BLOCKS = [block for path in DOCUMENTS for block in FENCED.findall(path.read_text(encoding="utf-8"))]
OWN = ("my-", "own-")
"""How techniques are called that a reader writes."""
PLACEHOLDER = re.compile(r"\b(SLOT|SUB|NAME|FILE|FOLDER)\b|NAME\.|_NAME")


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    found = [shlex.split(line) for line in lines if line.startswith("probatum ")]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


@cache
def options() -> dict[str, set[str]]:
    """The options of every command, as the command line itself has them."""
    known: Any = typer.main.get_command(app)
    return {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in known.commands.items()
    }


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_exist(words: list[str]) -> None:
    assert words[1] in options(), f"there is no command {words[1]}"
    for word in words[2:]:
        if word.startswith("--"):
            assert word.split("=")[0] in options()[words[1]], f"{words[1]} has no option {word}"
    if words[1] == "try":
        for word in words[2:]:
            if word.startswith("--"):
                break
            if not word.startswith(OWN):
                parse_arm(word)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target} is not in the Makefile"


@cache
def files() -> frozenset[str]:
    """Names of all files of the package."""
    return frozenset(path.name for path in SOURCE.rglob("*.py"))


def is_there(path: str, document: Path) -> bool:
    """Whether a path means a file: from the root, the package or the document; or a name alone any file of the package."""
    if any((place / path).exists() for place in (ROOT, SOURCE, document.parent)):
        return True
    return "/" not in path and path in files()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_files_that_documents_name_exist(document: Path) -> None:
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    named = [path for path in re.findall(r"`([\w./-]+\.(?:py|md))`", text) if not PLACEHOLDER.search(path)]
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [path for path in named if not is_there(path, document)]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert not missing, f"{document.name} names {', '.join(missing)}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_page_is_linked(page: Path) -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"](docs/{page.name})" in README + contributing, (
        f"no link in README or CONTRIBUTING leads to docs/{page.name}"
    )


def test_modules_that_the_makefile_runs_exist() -> None:
    modules = re.findall(r"python -m (probatum[\w.]+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert modules
    for module in modules:
        assert importlib.util.find_spec(module) is not None, f"the Makefile runs {module}, which is not there"


@pytest.mark.parametrize("name", options())
def test_every_command_explains_itself(name: str) -> None:
    told = CliRunner().invoke(app, [name, "--help"])
    assert told.exit_code == 0, told.output


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in README


@pytest.mark.parametrize("name", catalogue.names())
def test_every_technique_shows_its_use_alone(name: str) -> None:
    assert ">>>" in catalogue.place(name).path.read_text(encoding="utf-8"), f"{name} has no executed example"
