"""Validation rows tested too: equal to the trial of exchanged rows, at one training, and the trial itself is not touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from probatum.arenas.predict import arena as predict
from probatum.arenas.predict import stacks
from probatum.arenas.predict.stacks import Choice
from probatum.data.open import open_dataset
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Outcome, Terms, TrainingFailed, Work
from probatum.rooms.world import in_world
from probatum.spec import Data
from probatum.tasks import look

BASE = Recipe(training=Training(steps=60, batch_size=32, lr=2e-2))


def work(arm: str, data: Data, builtin: str = "", seed: int = 3, **terms: Any) -> Work:
    recipe = replace(BASE, training=replace(BASE.training, select="rmse" if data.spec.task == "reals" else "accuracy"))
    player = Arm(builtin, recipe) if builtin else make_arm(arm, recipe)
    return Work(player, builtin, Terms(base=recipe, **terms), data, seed)


def exchanged(data: Data) -> Data:
    return replace(data, valid=data.test, test=data.valid)


def same(one: Outcome, other: Outcome) -> None:
    """The trial of the test rows, bit for bit."""
    assert one.measures == other.measures
    assert one.digest == other.digest
    assert one.details["curve"] == other.details["curve"]
    assert all(np.array_equal(values, other.rows[name], equal_nan=True) for name, values in one.rows.items())


class Drawing(nn.Module):
    """A network that draws from the global stream in evaluation too."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.shape[0], spec.outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out + 0.01 * torch.randn_like(out)


@pytest.mark.parametrize(
    ("arm", "builtin", "name"),
    [
        ("gradient-noise", "", "wine"),
        ("h-calibration(window=20, steps=20)", "", "breast-cancer"),
        ("gradual-magnitude-pruning", "", "wine"),  # its last weights are the result, whatever rows say
        ("cnn-svm", "", "wine"),  # scores, whose temperature is fitted
        ("gbnn(units=5)", "", "wine"),  # a learner
        ("selu-snn", "", "diabetes"),
        ("", "temperature scaling", "wine"),
        ("", "gradient boosting", "wine"),
        ("", "ridge regression", "diabetes"),
    ],
)
def test_it_is_the_trial_of_exchanged_rows_at_one_training(arm: str, builtin: str, name: str) -> None:
    data = open_dataset(name).prepare(3)
    if name == "wine":
        data = replace(data, valid=part(data.valid, 30))  # of other sizes
    plain = predict.trial(work(arm, data, builtin))
    found = predict.trial(work(arm, data, builtin, swap=True))
    same(found, plain)
    assert "not_swapped" not in found.details
    other = predict.trial(work(arm, exchanged(data), builtin))
    robust = {"corrupted-accuracy", "corrupted-rmse"}  # takes many passes and is left to the test rows
    assert set(found.swapped) == set(found.swapped_rows) == set(other.rows) - robust
    for name, values in found.swapped_rows.items():
        assert found.swapped[name] == pytest.approx(other.measures[name], abs=1e-9), name
        assert np.array_equal(values, other.rows[name], equal_nan=True), name


def part(rows: Any, n: int) -> Any:
    return type(rows)(rows.x[:n], rows.y[:n], rows.rows[:n])


def test_other_weights_are_chosen_by_other_rows() -> None:
    data = open_dataset("breast-cancer").prepare(1)
    found = predict.trial(work("", data, "baseline", seed=1, swap=True))
    by_valid, by_test = (min(p["step"] for p in curve if p["valid_error"] == best(curve)) for curve in curves(data))
    assert by_valid != by_test  # else the test above would not see who chose
    assert found.swapped["accuracy"] != found.measures["accuracy"]


def curves(data: Data) -> list[Any]:
    return [predict.trial(work("", one, "baseline", seed=1)).details["curve"] for one in (data, exchanged(data))]


def best(curve: Any) -> float:
    return min(point["valid_error"] for point in curve)


def test_a_network_that_draws_in_evaluation_trains_the_same() -> None:
    data, found = open_dataset("wine").prepare(0), []
    for swap in (False, True):
        torch.manual_seed(5)  # measuring draws too
        found.append(predict.trial(replace(work("", data, "baseline", swap=swap), factory=Drawing)))
    same(found[1], found[0])
    assert found[1].swapped


def test_stacked_seeds_are_swapped_as_single_ones() -> None:
    dataset = open_dataset("breast-cancer")
    splits = [dataset.prepare(seed) for seed in (0, 1, 2)]
    splits[1] = replace(splits[1], test=part(splits[1].test, len(splits[1].test) - 1))  # folds differ by a row
    works = [work("gradient-noise", data, seed=seed, swap=True) for seed, data in enumerate(splits)]
    choice = Choice(True, 1)
    for one, together, plain in zip(
        works, stacks.trials(works, choice, 1), stacks.trials([w.on(swap=False) for w in works], choice, 1), strict=True
    ):
        assert isinstance(together, Outcome)
        assert isinstance(plain, Outcome)
        same(together, plain)
        alone = predict.trial(one)
        assert together.swapped["log-loss"] == pytest.approx(alone.swapped["log-loss"], abs=1e-3)
        assert len(together.swapped_rows["accuracy"]) == len(one.data.valid)
        assert together.swapped["accuracy"] == pytest.approx(
            alone.swapped["accuracy"], abs=1 / len(one.data.valid) + 1e-9
        )


@pytest.mark.parametrize(
    ("change", "arm", "why"),
    [
        (lambda w: w.on(tune=1), "gradient-noise", "tuned on validation rows"),
        (None, "cape(one_vs_rest=True)", "looks at validation rows itself"),
        (None, "sorted-net", "looks at validation rows itself"),
        (None, "deeply-supervised-nets", "looks at validation rows itself"),
        (None, "naive-bayes-head", "looks at validation rows itself"),
        (None, "knn-augmented", "looks at validation rows itself"),
    ],
)
def test_where_it_would_be_wrong_it_is_off_and_said(change: Callable[[Work], Work] | None, arm: str, why: str) -> None:
    data = open_dataset("wine").prepare(0)
    trial = work(arm, data, swap=True)
    found = predict.trial(trial if change is None else change(trial))
    assert not found.swapped
    assert not found.swapped_rows
    assert why in found.details["not_swapped"]


def test_worlds_are_not_swapped() -> None:
    data = in_world(open_dataset("wine"), "label-noise:0.2").prepare(0)
    found = predict.trial(work("", data, "baseline", swap=True))
    assert not found.swapped
    assert "made world" in found.details["not_swapped"]


def test_validation_rows_that_cannot_be_tested_leave_the_trial_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset("wine").prepare(0)
    plain = predict.trial(work("gradient-noise", data))

    def broken(one: Work, fitted: Any) -> Any:
        raise TrainingFailed("predictions on the test rows are not finite")

    monkeypatch.setattr(look, "rows_of_classes", broken)
    found = predict.trial(work("gradient-noise", data, swap=True))
    same(found, plain)
    assert (found.swapped, found.swapped_rows) == ({}, {})
    assert found.details["not_swapped"] == "TrainingFailed: predictions on the test rows are not finite"
