"""`probatum advise`: what is advised, why, on what it rests; and that nothing is trained."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from probatum import Study, advise, catalogue, slots
from probatum.advising import evidence
from probatum.advising.advise import how_well
from probatum.advising.evidence import Earlier, Outcome, earlier_from, earlier_of, in_store
from probatum.advising.facts import DataFacts, Profile
from probatum.cli.main import main
from probatum.errors import InputError
from probatum.rooms.kind import takes
from probatum.settings import Reading


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In a folder of its own and without what ships; a network that learned anything would fail the test."""
    if "small_study" in request.fixturenames:
        request.getfixturevalue("small_study")

    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("advice trains nothing")

    monkeypatch.setattr(torch.Tensor, "backward", trained)
    monkeypatch.setattr(torch.autograd, "grad", trained)
    monkeypatch.setattr(Study, "__init__", trained)
    monkeypatch.setattr(evidence, "RECORD", tmp_path / "none.json")
    monkeypatch.chdir(tmp_path)


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["probatum", *words])
    monkeypatch.setenv("COLUMNS", "80")
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def noisy(path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 1500)
    x = rng.normal(size=(1500, 2)) + 4.0 * y[:, None]
    turned = np.where(rng.random(1500) < 0.2, 1 - y, y)
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "no use": rng.normal(size=1500), "y": turned}).write_csv(path)
    return path


def test_noisy_labels_bring_what_is_made_for_them_to_the_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["advise", "--data", str(noisy(tmp_path / "noisy.csv")), "--target", "y", "--drop", "no use", "--json"]
    code, out, err = run(words, monkeypatch, capsys)
    assert code == 0, err
    found = json.loads(out)
    robust = {name for tag in ("label-noise", "noisy labels") for name in catalogue.find(tag=tag)}
    leading = [one for one in found["order"] if any("made for noisy labels" in r["words"] for r in one["reasons"])]
    playing = {name for name in robust if slots.arena_of(catalogue.place(name).slot) == slots.PREDICT}
    assert {one["technique"] for one in leading} == playing - set(found["unfit"])
    assert any("relabel" in note and "(select)" in note for note in found["notes"])
    assert set(found["techniques"]) & robust
    assert found["command"] == shlex.join(
        ["probatum", "try", *found["techniques"], "--data", words[2], "--target", "y", "--drop", "no use"]
    )
    for one in found["order"]:
        assert one["points"] == pytest.approx(sum(reason["points"] for reason in one["reasons"]))


def test_what_was_done_on_reading_is_told_as_try_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.arange(120) % 3
    names = [f"name {i}" for i in range(120)]
    pl.DataFrame({"x": x, "name": names, "z": np.arange(120) % 7, "y": [f"c{i}" for i in x]}).write_csv("exact.csv")
    code, out, err = run(["advise", "--data", "exact.csv", "--target", "y"], monkeypatch, capsys)
    assert code == 0, err
    told = " ".join(out.split())
    assert "note: column 'name' has 120 distinct words in 120 rows, like an id: dropped" in told
    assert "note: column 'x' gives the target 'y' away one to one: drop it" in told
    assert told.index("note: column") < told.index("120 rows of"), "facts are of what reading has left"
    code, out, err = run(["advise", "--data", "exact.csv", "--target", "y", "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert len(json.loads(out)["notices"]) >= 2


def test_the_text_in_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["advise", "--data", "iris", "--top", "3"], monkeypatch, capsys)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "iris: table, task classes"
    assert lines[-1].startswith("probatum try ")
    assert len(shlex.split(lines[-1])) == 7
    assert max(len(line) for line in lines[:-1]) <= 80
    told = " ".join(out.split())
    assert "3 classes, the rarest, 'setosa', with 50 of 150 rows (33.3 %)" in told
    assert "No earlier study speaks" in told
    assert "has not been measured (`make advice` measures it)" in told


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--data"),
        (["--data", "iriss"], "iris"),
        (["--data", "iris", "--top", "0"], "top is 0"),
        (["--data", "iris", "--store", "gone.sqlite"], "no store at gone.sqlite"),
        (["--data", "iris", "--world", "ood"], "leave it out"),
        (["--data", "iris", "--option", "size=x"], "whole number"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(["advise", *words], monkeypatch, capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert named in err


@pytest.mark.parametrize("data", ["iris", "diabetes", "toy-topics", "cbf", "python-topics"])
def test_what_does_not_apply_is_never_advised(data: str) -> None:
    advice = advise(data, top=100)
    mine = advice.facts.profile
    assert advice.techniques
    for name in advice.techniques:
        card = catalogue.card(name)
        assert not takes(card, mine.modality, mine.task)
        assert "pretrained" not in card.needs
        assert "binary" not in card.tags or mine.classes == 2
    assert not set(advice.techniques) & set(advice.unfit)
    assert "cmle" in advice.unfit  # it asks for a setting


def test_what_all_studies_of_such_data_left_out_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    like = Profile("table", "classes", 150, 3, 1.0)
    left = Earlier(
        "x",
        "x",
        like,
        evidence.SHIPPED,
        {"gbnn": Outcome("hurts", -2.0, 8)},
        {"tabm": "does not run", "pfn": "does not run"},
    )
    tried = Earlier("y", "y", like, evidence.SHIPPED, {"pfn": Outcome("helps", 2.0, 8)})
    monkeypatch.setattr(evidence, "shipped", lambda: ([left, tried], None))
    advice = advise("iris", top=100)
    assert advice.unfit["tabm"] == "does not run"
    assert advice.techniques[0] == "pfn"
    assert "helped on 1 of 1 earlier study (y); middle gain +2.0" in advice.order[0].reasons[0].words
    assert "earlier studies, 2 shipped with Probatum (2)" in advice.rests


def test_verdicts_of_a_store_count(small_study: Study) -> None:
    path = small_study.store.name
    (found,), notes = in_store(path)
    assert notes == []
    assert found.data == "wine"
    assert found.profile == Profile("table", "classes", 178, 3, pytest.approx(3 * 48 / 178))
    verdicts = {v.arm: v for v in small_study.verdicts() if v.measure == "accuracy"}
    mine = verdicts["encouraging-loss"]
    assert found.outcomes["encouraging-loss"] == Outcome(mine.word, mine.mean / mine.margin, 6)
    assert set(found.outcomes) == {"encouraging-loss", "h-calibration"}
    advice = advise("wine", stores=path, top=40)
    reasons = {one.technique: one.reasons for one in advice.order}
    (reason,) = [one for one in reasons["encouraging-loss"] if one.rests == "studies"]
    assert "these data" in reason.words
    assert reason.numbers["studies"][0]["weight"] == pytest.approx(5 * 6 / 10)
    assert "1 in your stores (2)" in advice.rests
    again = advise("wine", stores=[path, path], top=40)  # the same studies twice count once
    assert (again.order, again.rests) == (advice.order, advice.rests)


def test_studies_survive_as_json(small_study: Study) -> None:
    found = earlier_of(small_study.results, "here")
    assert earlier_from(json.loads(json.dumps(found.as_json()))) == found


def test_the_usual_store_is_looked_at(
    small_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "probatum-runs").mkdir()
    (tmp_path / "probatum-runs" / "store.sqlite").symlink_to(small_study.store.name)
    code, out, err = run(["advise", "--data", "iris"], monkeypatch, capsys)
    assert code == 0, err
    assert "1 in your stores" in " ".join(out.split())


def test_what_is_said_of_how_well_it_has_done() -> None:
    facts = DataFacts("x", "x", Profile("table", "classes", 100, 2), ())
    orders = {
        "advice": {"share": 0.71, "low": 0.6, "high": 0.82},
        "cards": {"share": 0.5, "low": 0.4, "high": 0.6},
        "random": {"share": 0.45, "low": 0.4, "high": 0.5},
        "same": {"share": 0.66, "low": 0.5, "high": 0.8},
    }
    beside = {
        "advice - random": {"share": 0.26, "low": 0.1, "high": 0.4},
        "cards - random": {"share": 0.05, "low": -0.1, "high": 0.2},
    }
    record = {"gaining": 17, "tried": 5, "modalities": ["table"], "orders": orders, "beside": beside}
    told = how_well(record, facts, True)
    assert "Over 17 tables on which something gains" in told
    assert "held 71 % [60, 82] of the best technique's gain; in random order 45 % [40, 50]" in told
    assert "always the same order 66 % [50, 80]" in told
    assert "better than a random order" not in told
    assert "by cards and claims alone held 50 %" in how_well(record, facts, False)
    assert "do not show that it is better than a random order" in how_well(record, facts, False)
    other = DataFacts("x", "x", Profile("image", "classes", 100, 2), ())
    assert "on image it has not been measured" in how_well(record, other, True)
    assert "has not been measured" in how_well(None, facts, True)


def test_from_python() -> None:
    rng = np.random.default_rng(0)
    advice = advise((rng.normal(size=(200, 3)), rng.integers(0, 2, 200)), top=2)
    assert len(advice.techniques) == 2
    assert advice.shell == ""
    assert advice.rests in str(advice)
    with pytest.raises(InputError, match="top"):
        advise("iris", top=2.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="world"):
        advise("iris", reading=Reading(world="ood"))
