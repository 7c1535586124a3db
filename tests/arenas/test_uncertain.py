"""Learners that are many networks: what the arena offers and records, and what is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from probatum import Study
from probatum.arenas.predict import arena as predict
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import Work
from probatum.ship.load import load
from probatum.train.assemble import offer_for_learner

ENSEMBLE = "probabilistic-toolkit(members=3)"
SHORT = Training(steps=60, batch_size=32, lr=8e-3)


def outcome(name: str, arm: str) -> tuple[dict[str, float], dict[str, float]]:
    base = Recipe(training=SHORT)
    data = open_dataset(name).prepare(3)
    found = predict.trial(Work(make_arm(arm, base), "", base, data, 3))
    return found.measures, found.details["effects"]


def test_classes_of_an_ensemble() -> None:
    measures, effects = outcome("wine", ENSEMBLE)
    assert set(predict.measures(open_dataset("wine").prepare(3).spec)) >= {"error-auroc-entropy"}
    assert measures["training-passes"] == 60 * 32
    assert effects["draws"] == 3
    assert 0 < effects["epistemic-share"] < 1
    assert measures["log-loss"] < 0.5


def test_reals_of_an_ensemble_and_of_one_network() -> None:
    for arm in (ENSEMBLE, "gradient-noise"):
        measures, effects = outcome("diabetes", arm)
        assert {"nll", "coverage-gap-95", "interval-width-95"} <= set(measures)
        assert 0.7 < effects["coverage-95"] <= 1
        assert ("epistemic-share" in effects) == (arm == ENSEMBLE)


def test_a_number_of_that_name_is_no_function() -> None:
    measures, effects = outcome("wine", "noprop(blocks=2, width=16, samples=2)")
    assert "error-auroc-entropy" in measures or measures["accuracy"] == 1
    assert "draws" not in effects


def test_a_calibrated_learner_has_no_draws() -> None:
    base = Recipe(training=SHORT)
    arm = make_arm(f"{ENSEMBLE}+h-calibration(window=20, steps=20)", base)
    found = predict.trial(Work(arm, "", base, open_dataset("wine").prepare(3), 3))
    assert "epistemic-share" not in found.details["effects"]


def test_learners_are_offered_fresh_networks_of_the_study() -> None:
    data, recipe = open_dataset("wine").prepare(0), Recipe(training=SHORT)

    def own(spec: object) -> nn.Module:
        return nn.Linear(13, 3)

    offer = offer_for_learner(recipe, data, 0, factory=own)
    first, second = offer["model_factory"](), offer["model_factory"]()
    assert isinstance(first, nn.Linear)
    assert not torch.equal(first.weight, second.weight)
    again = offer_for_learner(recipe, data, 0, factory=own)["model_factory"]()
    assert torch.equal(first.weight, again.weight)
    assert offer["optimisation"].lr == SHORT.lr
    assert offer["optimisation"].factor(0, 100) == pytest.approx(0.2)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("own", [False, True])
def test_a_shipped_ensemble_predicts_the_same(tmp_path: Path, own: bool) -> None:
    study = Study("wine", [ENSEMBLE], seeds=1, steps=40, model=network if own else None, store=tmp_path / "s.sqlite")
    study.run()
    folder = study.ship(ENSEMBLE, tmp_path / "model")
    if own:
        with pytest.raises(InputError, match="fitted with networks of your own"):
            load(folder)
    shipped = load(folder, network if own else None)
    test = study.bench().data(0).test
    expected = predict.fit(study.bench().work(study.plan.arms[0], "", 0)).predict(test)
    torch.testing.assert_close(shipped.predict_part(test), expected, atol=1e-6, rtol=0)
