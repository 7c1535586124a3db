"""Studies in worlds of known truth: what is measured, what techniques see, what is stored and refused."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loosely import study_of
from probatum import catalogue
from probatum.cli.main import main
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.measure.base import all_measures
from probatum.recipe import Arm, Recipe, make_arm
from probatum.report.write import render
from probatum.rooms.arena import Terms, Work
from probatum.settings import Reading

SHORT = {"seeds": 6, "steps": 20, "timing": False, "references": False, "confirm": False}

PEEKING = '''"""Peeking: looks for the truth.

Paper     none
Computes  class shares
Shapes    part of n rows -> probabilities (n, classes)
Departs   none
"""

import torch

from probatum.card import Card
from probatum.settings import Reading
from probatum.rooms.arena import Terms

CARD = Card(
    paper="unpublished",
    title="Peeking",
    entry="fit",
    slot="learner",
    tags=("own",),
    modalities=("table", "image"),
    tasks=("classes",),
)


class Even:
    def __init__(self, outputs):
        self.outputs = outputs

    def predict(self, part):
        return torch.full((len(part), self.outputs), 1 / self.outputs)


def fit(data, budget, generator):
    if data.truth is not None:
        raise ValueError("the truth can be seen")
    return Even(data.spec.outputs)
'''


@pytest.fixture(autouse=True)
def _own_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    monkeypatch.chdir(tmp_path)


def try_in(capsys: pytest.CaptureFixture[str], data: str, world: str, *words: str) -> tuple[str, dict[str, object]]:
    """Run `probatum try encouraging-loss` as a user would; what it printed, and wrote if it went well."""
    command = ["probatum", "try", *(words or ("encouraging-loss",)), "--data", data, "--world", world]
    command += ["--seeds", "6", "--steps", "20", "--no-timing", "--no-references", "--no-confirm", "--json", "out.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        patch.setenv("COLUMNS", "80")
        with suppress(SystemExit):
            main()
    return capsys.readouterr().out, json.loads(Path("out.json").read_text())


WORLDS = {
    "label-noise:0.4": ("digits", {"memorised"}),
    "spurious:0.9": ("breast-cancer", {"worst-group-accuracy", "shifted-accuracy"}),
    "long-tail:5": ("digits", {"worst-group-accuracy"}),
    "covariate-shift:1": ("breast-cancer", {"shifted-accuracy"}),
    "label-shift:1": ("iris", {"shifted-accuracy"}),
    "ood:held-out": ("iris", {"ood-auroc", "ood-fpr95"}),
    "probabilities:2": ("breast-cancer", {"probability-mse", "probability-kl"}),
}


@pytest.mark.parametrize("world", WORLDS)
def test_every_kind_by_the_command_line(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, expected = WORLDS[world]
    shown, found = try_in(capsys, data, world)
    name = open_dataset(data, Reading(world=world)).world.name
    assert f"world {name}" in " ".join(shown.split())
    assert max(map(len, (line for line in shown.splitlines() if not line.startswith(("report:", "store:"))))) <= 80
    for measure in expected:
        assert measure in shown
    assert found["plan"]["data"]["world"] == name
    assert found["data"]["world"]["counts"]
    for trial in found["trials"]:
        assert trial["status"] == "ok", trial["record"]
        assert expected <= set(trial["record"]["measures"])
        assert trial["record"]["details"]["truth"]["world"] == name
    assert {v["measure"] for v in found["verdicts"]} >= expected
    report = next(line for line in shown.splitlines() if line.startswith("report:")).split(": ", 1)[1]
    page = Path(report).read_text()
    assert f"--world {world}" in page
    assert 'id="world"' in page


def test_reals_have_a_shifted_error() -> None:
    study = study_of("diabetes", ["gradient-noise"], **SHORT, reading=Reading(world="covariate-shift"))
    assert {"rmse", "shifted-rmse"} <= set(study.run().measured())


def test_a_measure_of_the_truth_can_decide() -> None:
    study = study_of(
        "digits", ["encouraging-loss"], primary="memorised", **SHORT, reading=Reading(world="label-noise:0.4")
    )
    assert study.run().answer()
    with pytest.raises(InputError, match="primary is 'memorised'"):
        study_of("digits", ["encouraging-loss"], primary="memorised", **SHORT)


def test_trials_of_other_worlds_are_not_mixed(tmp_path: Path) -> None:
    def keys(world: str | None) -> set[str]:
        study = study_of(
            "iris", ["encouraging-loss"], store=tmp_path / "s.sqlite", **SHORT, reading=Reading(world=world)
        )
        return {trial.key for trial in study.run().trials}

    plain, mild, strong = keys(None), keys("label-noise:0.1"), keys("label-noise:0.3")
    assert not plain & mild
    assert not mild & strong
    assert keys("label-noise:0.10:symmetric") == mild


def test_arms_of_a_seed_live_in_one_world() -> None:
    study = study_of("iris", ["encouraging-loss"], **SHORT, reading=Reading(world="label-noise:0.3"))
    told = {
        (trial.seed, trial.record["details"]["truth"]["counts"]["wrong training labels"])
        for trial in study.run().trials
    }
    assert told == {(seed, 27.0) for seed in range(6)}


def test_techniques_never_see_the_truth(tmp_path: Path) -> None:
    path = tmp_path / "peeking.py"
    path.write_text(PEEKING)
    catalogue.add_file(path)
    data = open_dataset("iris", Reading(world="label-noise:0.3")).prepare(0)
    assert data.truth is not None
    base = Recipe()
    work = Work(Arm("baseline", base), "baseline", Terms(base=base), data, 0)
    assert work.data.truth is None
    assert torch.equal(work.truth.clean_train, data.truth.clean_train)
    again = replace(work, arm=make_arm("peeking", base))
    assert again.data.truth is None
    assert again.truth is work.truth
    study = study_of("iris", ["peeking"], **SHORT, reading=Reading(world="label-noise:0.3"))
    assert all(trial.status == "ok" for trial in study.run().trials)
    with pytest.raises(ValueError, match="truth can be seen"):
        catalogue.entry("peeking")(data, None, None)  # the test's learner does look


def test_worlds_are_not_shipped(tmp_path: Path) -> None:
    study = study_of("iris", ["encouraging-loss"], **SHORT, reading=Reading(world="ood"))
    study.run()
    with pytest.raises(InputError, match="the world ood:shuffled"):
        study.ship("baseline", tmp_path / "model")
    assert "World" in render(study.results)


def test_measures_of_the_truth_are_known() -> None:
    known = all_measures()
    for _, names in WORLDS.values():
        assert names <= set(known)


def test_mistakes_are_told_before_any_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["probatum", "try", "encouraging-loss", "--data", "iris", "--world", "label-noise:1.4"]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "rate 1.4" in capsys.readouterr().err
