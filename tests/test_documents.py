"""Every Python block of the README and every docstring example is executed; every command it names exists."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from probatum import catalogue
from probatum.recipe import parse_arm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in (ROOT / "src" / "probatum").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("number", range(len([b for b in BLOCKS if b[0] == "python"])))
def test_readme_python_runs(number: int, tmp_path: Path) -> None:
    code = [text for kind, text in BLOCKS if kind == "python"][number]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("probatum ")]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_readme_commands_exist(words: list[str]) -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "probatum", words[1], "--help"], capture_output=True, text=True, check=False
    )
    assert help_text.returncode == 0
    for word in words[2:]:
        if word.startswith("--"):
            assert word in help_text.stdout, f"{words[1]} has no option {word}"
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


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in README


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str) -> None:
    torch.manual_seed(0)
    results = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", catalogue.names())
def test_every_technique_shows_its_use_alone(name: str) -> None:
    assert ">>>" in catalogue.place(name).path.read_text(encoding="utf-8"), f"{name} has no executed example"
