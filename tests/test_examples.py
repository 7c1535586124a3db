"""The example studies run from the command line, print verdicts and write their reports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from processes import ran

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["language", "stream", "fine_tuning", "labels"])
def test_example(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--seeds", "1", "--steps", "5", "--report", "report.html"]
    command += [] if name == "fine_tuning" else ["--no-timing"]  # which takes most of the time at so few steps
    run = ran(*command, cwd=tmp_path, env={"COLUMNS": "100"})
    assert run.returncode == 0, run.stderr
    assert any(name in run.stdout for name in ("baseline", "fine-tuning", "random sampling"))
    assert "report: " in run.stdout
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_audit_example(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "audit.py"), "--out", "audit"]
    run = ran(*command, cwd=tmp_path, env={"COLUMNS": "100"})
    assert run.returncode == 0, run.stderr
    assert "column 10 = -1, class 1" in run.stdout
    assert (tmp_path / "audit" / "audit.html").is_file()


def test_worlds_example(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "worlds.py"), "--seeds", "1", "--steps", "5", "--report", "in"]
    run = ran(*command, cwd=tmp_path, env={"COLUMNS": "100"})
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("in the world") >= 5
    for kind in ("label-noise", "spurious", "long-tail", "probabilities", "ood"):
        assert "<html" in (tmp_path / f"in-{kind}.html").read_text(encoding="utf-8")
