"""A few of the faults that `benchmarks/faults.py` does by the hundred, and the script itself at its smallest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmark_files import FOLDER
from processes import ran


def faults(*words: str, out: Path) -> dict[str, dict[str, object]]:
    """What the script writes; it must find none."""
    ended = ran(sys.executable, FOLDER / "faults.py", *words, "--out", out)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text()) if out.exists() else {}


def test_workers_and_studies_killed(tmp_path: Path) -> None:
    found = faults("--only", "kills", "--kills", "4", out=tmp_path / "f.json")
    killed = [part for name, part in found.items() if name.startswith("kills")]
    assert len(killed) == 2
    assert sum(int(part["main"]) + int(part["worker"]) for part in killed) >= 4  # type: ignore[call-overload]
    assert all(int(part["studies"]) >= 1 for part in killed)  # type: ignore[call-overload]


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from faulty.disks import why_not

    if reason := why_not():
        pytest.skip(reason)
    faults("--only", "disks", "--case", "report of", out=tmp_path / "f.json")


def test_bytes_that_are_others(tmp_path: Path) -> None:
    found = faults("--only", "flips", "--flips", "1", out=tmp_path / "f.json")
    assert found["flips"]["store"]["files"] == found["flips"]["folder"]["files"] == 1  # type: ignore[index]
