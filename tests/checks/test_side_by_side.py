"""Many names are checked side by side, with the results that each has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probatum import catalogue
from probatum.checks.run import check
from probatum.cli import check_view
from probatum.cli.check_view import checked
from probatum.errors import InputError

NAMES = ["sparsemax", "kind/table", "deepfool"]


def test_results_and_their_order_are_those_of_each_alone() -> None:
    alone = [check(name) for name in NAMES]
    assert list(checked(NAMES, processes=2)) == alone
    assert all(results for results in alone)


def dying(folder: Path) -> str:
    """A file whose technique ends the process that imports it."""
    bad = folder / "loss" / "dying.py"
    bad.parent.mkdir()
    text = catalogue.place("encouraging-loss").path.read_text(encoding="utf-8")
    bad.write_text(text.replace("CARD = Card(", "__import__('os')._exit(3)\n\nCARD = Card(", 1), encoding="utf-8")
    return str(bad)


def test_a_process_that_dies_is_a_failure_and_no_end(tmp_path: Path) -> None:
    (results,) = checked([dying(tmp_path)], processes=2)
    assert [result.status for result in results] == ["failed"]
    assert "a process that checked died" in results[0].detail


def test_a_process_that_dies_fails_the_name_that_it_ran_alone(tmp_path: Path) -> None:
    first, bad, last = checked(["sparsemax", dying(tmp_path), "sparsemax"], processes=2)
    assert [(result.check, result.status) for result in bad] == [("runs", "failed")]
    for results in (first, last):
        assert len(results) > 1
        assert not any(result.status == "failed" for result in results)


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(InputError, match="nothing-of-the-kind"):
        list(checked(["sparsemax", "nothing-of-the-kind"], processes=2))


def test_what_waits_is_not_begun_once_a_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, bool]] = []
    plain = check_view.ProcessPoolExecutor.shutdown

    def shutdown(self: Any, wait: bool = True, *, cancel_futures: bool = False) -> None:
        called.append({"wait": wait, "cancel_futures": cancel_futures})
        plain(self, wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(check_view.ProcessPoolExecutor, "shutdown", shutdown)
    with pytest.raises(InputError, match="nothing-of-the-kind"):
        list(checked(["nothing-of-the-kind", *NAMES], processes=2))
    assert called[0]["cancel_futures"]
