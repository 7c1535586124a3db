"""Every Python block of the README and every docstring example is executed."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from processes import ran

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in (ROOT / "src" / "probatum").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_readme_python_runs(number: int, tmp_path: Path) -> None:
    run = ran(sys.executable, "-c", PYTHON[number], cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str) -> None:
    torch.manual_seed(0)
    results = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert results.attempted > 0
    assert results.failed == 0
