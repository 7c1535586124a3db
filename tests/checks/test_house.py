"""What belongs to a technique of this package besides its file: each check fails where it should, or says what is to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from probatum import catalogue
from probatum.catalogue import Place
from probatum.checks import house
from probatum.checks.run import Result, check, run_check
from probatum.checks.subject import Subject
from probatum.claims import record
from probatum.cli import check_view
from probatum.cli.scaffold import scaffold

NAME = "encouraging-loss"
CHECKS = ("claims_match", "evidence_is_recorded", "has_a_test_of_its_own", "shows_an_example")


def result(name: str) -> Result:
    return run_check(Subject(NAME), name)


def test_they_do_not_apply_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    found = {one.check: one for one in check(str(scaffold("loss/own-loss", tmp_path)[0]))}
    assert {found[name].status for name in CHECKS} == {"not applicable"}


def test_tests_are_asked_for_in_a_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert result("has_a_test_of_its_own").status == "passed"
    monkeypatch.setattr(house, "TESTS", tmp_path / "tests")
    assert result("has_a_test_of_its_own").status == "not applicable"


SUITE = "def test_contract_suite():\n    assert not [r for r in check('x') if r.status == 'failed']\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no tests/techniques/loss/test_encouraging_loss.py"),
        ("", "runs the contract suite alone"),
        (SUITE, "runs the contract suite alone"),
        ("def helper():\n    return 1\n\n\n" + SUITE, "runs the contract suite alone"),
        (SUITE + "\n\ndef test_formula():\n    assert 1 + 1 == 2\n", ""),
        ("class TestIt:\n    def test_formula(self):\n        assert 1 + 1 == 2\n", ""),
    ],
)
def test_a_test_besides_the_suite_is_demanded(
    text: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "tests" / "techniques" / "loss"
    home.mkdir(parents=True)
    if text is not None:
        (home / "test_encouraging_loss.py").write_text(text)
    monkeypatch.setattr(house, "TESTS", tmp_path / "tests")
    found = result("has_a_test_of_its_own")
    assert found.status == ("failed" if told else "passed")
    assert told in found.detail


def test_claims_of_card_and_file_must_match(monkeypatch: pytest.MonkeyPatch) -> None:
    assert result("claims_match").status == "passed"
    other = replace(catalogue.card(NAME), claims=("accuracy-and-margin", "another"))
    monkeypatch.setattr(catalogue, "card", lambda name: other)
    found = result("claims_match")
    assert found.status == "failed"
    assert "'another'" in found.detail


def test_a_claim_file_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    real, its = catalogue.place(NAME), catalogue.card(NAME)
    nowhere = Place(real.id, real.slot, real.path.with_name("nowhere.py"), real.module)
    monkeypatch.setattr(catalogue, "card", lambda name: its)
    monkeypatch.setattr(catalogue, "place", lambda name: nowhere)
    monkeypatch.setattr(catalogue, "digest", lambda name: "of nothing")  # the file is not there
    found = result("claims_match")
    assert found.status == "failed"
    assert "there is no claim file src/probatum/claims/loss/nowhere.py" in found.detail


def test_evidence_that_is_not_there_is_still_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"{NAME}/accuracy-and-margin"
    monkeypatch.setattr(record, "is_stale", lambda name, entry: entry["stale"])
    for known, status, told in (
        ({}, "to do", "accuracy-and-margin not run yet"),
        ({key: {"stale": True}}, "to do", "accuracy-and-margin no longer fresh"),
        ({key: {"stale": False}}, "passed", ""),
    ):
        monkeypatch.setattr(record, "evidence", lambda known=known: known)
        found = result("evidence_is_recorded")
        assert found.status == status
        assert told in found.detail
        assert status == "passed" or f"python -m probatum.claims.record {NAME}" in found.detail


def test_an_example_is_demanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, its = catalogue.place(NAME), catalogue.card(NAME)
    bare = tmp_path / "loss" / "encouraging_loss.py"
    bare.parent.mkdir()
    bare.write_text(real.path.read_text(encoding="utf-8").replace(">>>", ""))
    monkeypatch.setattr(catalogue, "ROOT", tmp_path)
    monkeypatch.setattr(catalogue, "card", lambda name: its)
    monkeypatch.setattr(catalogue, "place", lambda name: Place(real.id, real.slot, bare, real.module))
    found = result("shows_an_example")
    assert found.status == "failed"
    assert "put one into the docstring of EncouragingLoss" in found.detail


@pytest.mark.parametrize(
    ("statuses", "told", "code"),
    [
        (("passed", "to do", "not applicable"), "own: 1 passed, 0 failed, 1 to do", 0),
        (("passed", "passed"), "own: 2 passed, 0 failed\n", 0),
        (("failed", "to do"), "own: 0 passed, 1 failed, 1 to do", 1),
    ],
)
def test_the_command_counts_what_is_to_do_and_fails_for_failures_alone(
    statuses: tuple[str, ...], told: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [Result(f"check_{i}", status, "run this") for i, status in enumerate(statuses)]
    console = Console(record=True, width=200)
    monkeypatch.setattr(check_view, "check", lambda name: results)
    monkeypatch.setattr(check_view, "Console", lambda: console)
    ended = 0
    try:
        check_view.print_checks(["own"])
    except SystemExit as end:
        ended = int(end.code or 0)
    text = console.export_text()
    assert ended == code
    assert told in text
    for i, status in enumerate(statuses):
        assert any(status in line and f"check {i}" in line for line in text.splitlines())
