"""Every Python block of the README and of the pages in docs/, and every docstring example, is executed."""

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
PYTHON = [
    (f"{path.stem}-{number}", block)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    )
]
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in (ROOT / "src" / "probatum").rglob("*.py")
    if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
)


@pytest.mark.parametrize("block", [block for _, block in PYTHON], ids=[name for name, _ in PYTHON])
def test_python_in_documents_runs(block: str, tmp_path: Path) -> None:
    run = ran(sys.executable, "-c", block, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str) -> None:
    torch.manual_seed(0)
    results = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert results.attempted > 0
    assert results.failed == 0
