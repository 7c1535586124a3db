"""The README names commands, options, techniques and make targets that exist; every technique shows its use."""

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

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("probatum ")]


@cache
def options() -> dict[str, set[str]]:
    """The options of every command, as the command line itself has them."""
    known: Any = typer.main.get_command(app)
    return {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in known.commands.items()
    }


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_readme_commands_exist(words: list[str]) -> None:
    assert words[1] in options(), f"there is no command {words[1]}"
    for word in words[2:]:
        if word.startswith("--"):
            assert word.split("=")[0] in options()[words[1]], f"{words[1]} has no option {word}"
    if words[1] == "try":
        for word in words[2:]:
            if word.startswith("--"):
                break
            if word != "my-loss":
                parse_arm(word)


def test_readme_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target} is not in the Makefile"


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
