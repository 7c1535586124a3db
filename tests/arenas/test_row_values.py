"""Trials of arena predict keep what each test row adds to their measures, whoever predicts and however it was trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from probatum.arenas.predict import arena as predict
from probatum.arenas.predict import stacks
from probatum.arenas.predict.stacks import Choice
from probatum.data.open import open_dataset
from probatum.measure.base import all_measures
from probatum.measure.row_values import SOMETIMES_WITHOUT, WITHOUT
from probatum.measure.truth import measures_of
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Outcome, Terms, Work
from probatum.rooms.task import rows_of
from probatum.rooms.world import in_world
from probatum.spec import Data, Spec
from probatum.tasks import look


def work(arm: str, data: Data, builtin: str = "", seed: int = 3) -> Work:
    base = Recipe(training=Training(steps=8, batch_size=32, lr=8e-3))
    return Work(Arm(builtin, base) if builtin else make_arm(arm, base), builtin, Terms(base=base), data, seed)


def prepared(name: str, world: str = "", seed: int = 3) -> Data:
    dataset = open_dataset(name)
    return (in_world(dataset, world) if world else dataset).prepare(seed)


def check(found: Outcome, n: int) -> None:
    for name, values in found.rows.items():
        assert values.shape == (n,)
        assert values.dtype == np.float64
        assert np.nanmean(values) == pytest.approx(found.measures[name], abs=1e-9), name


@pytest.mark.parametrize(
    ("arm", "builtin", "name", "world"),
    [
        ("gradient-noise", "", "digits", ""),
        ("gradient-noise", "", "digits", "spurious:0.8"),
        ("gradient-noise", "", "wine", "probabilities"),
        ("gradient-noise", "", "digits", "ood"),
        ("gradient-noise", "", "wine", "label-noise:0.2"),
        ("gradient-noise", "", "diabetes", ""),
        ("probabilistic-toolkit(members=3)", "", "wine", ""),
        ("probabilistic-toolkit(members=3)", "", "diabetes", ""),
        ("h-calibration(window=20, steps=20)", "", "wine", ""),
        ("", "temperature scaling", "wine", ""),
        ("", "nearest neighbours", "wine", ""),
        ("", "ridge regression", "diabetes", "covariate-shift"),
    ],
)
def test_every_measure_has_values_or_a_reason(arm: str, builtin: str, name: str, world: str) -> None:
    data = prepared(name, world)
    found = predict.trial(work(arm, data, builtin))
    check(found, len(data.test))
    left = {measure for measure in found.measures if measure not in found.rows and "/" not in measure}
    if world == "covariate-shift":
        assert "shifted-rmse" in left
        left -= set(SOMETIMES_WITHOUT)
    assert left <= set(WITHOUT)
    assert not set(found.rows) & set(WITHOUT)
    asked = {*predict.measures(data.spec), *measures_of(data.truth, data.spec.task)}
    if arm == "gradient-noise":  # of a network everything is measured
        assert {measure for measure in asked if measure not in WITHOUT} <= set(found.rows)


def test_the_reasons_are_of_measures_that_there_are() -> None:
    assert {*WITHOUT, *SOMETIMES_WITHOUT} <= set(all_measures())


def test_rows_beyond_the_first_do_not_count_where_few_are_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "FEW", 20)
    for name, measure in (("wine", "corrupted-accuracy"), ("diabetes", "corrupted-rmse")):
        data = prepared(name)
        found = predict.trial(work("gradient-noise", data))
        check(found, len(data.test))
        assert np.isnan(found.rows[measure]).tolist() == [False] * 20 + [True] * (len(data.test) - 20)
        others = {name: values for name, values in found.rows.items() if name != measure}
        assert not any(np.isnan(values).any() for values in others.values())


def test_rows_are_in_the_order_of_the_test_rows() -> None:
    data = prepared("wine")
    job = work("gradient-noise", data)
    fitted = predict.fit(job)
    found = predict.measured(job, fitted, 0.0)
    right = fitted.predict(data.test).argmax(dim=1) == data.test.y
    assert 0 < right.sum() < len(right)
    assert torch.from_numpy(found.rows["accuracy"]).bool().tolist() == right.tolist()


def test_stacked_seeds_have_the_same_values() -> None:
    works = [work("gradient-noise", prepared("wine", seed=seed), seed=seed) for seed in (1, 2)]
    together = stacks.trials(works, Choice(True), torch.get_num_threads())
    for one, found in zip(works, together, strict=True):
        assert isinstance(found, Outcome)
        check(found, len(one.data.test))
        alone = predict.trial(one)
        assert set(found.rows) == set(alone.rows)
        np.testing.assert_allclose(found.rows["log-loss"], alone.rows["log-loss"], rtol=1e-3, atol=1e-5)


def test_values_that_do_not_fit_are_refused() -> None:
    measures = {"mae": 2.0, "nll": float("inf")}

    def given(**rows: list[float]) -> Mapping[str, np.ndarray]:
        return rows_of({name: np.array(values) for name, values in rows.items()}, measures, 2)

    assert given(mae=[1.0, 3.0], nll=[np.inf, 0.0]).keys() == {"mae"}
    assert given(mae=[np.nan, 2.0])["mae"][1] == 2.0
    with pytest.raises(ValueError, match=r"values of rows \(3,\) for 'mae'; give \(2,\)"):
        given(mae=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"'rmse'.* one of mae, nll"):
        given(rmse=[1.0, 3.0])
    with pytest.raises(ValueError, match=r"values of mae have the mean 1\.5, the measure is 2"):
        given(mae=[1.0, 2.0])
    with pytest.raises(ValueError, match="the mean nan"):
        given(mae=[np.nan, np.nan])


def test_a_spec_of_each_task_is_asked() -> None:
    """The list of reasons holds no measure that a task takes on its rows."""
    for task in ("classes", "reals"):
        asked = set(predict.measures(Spec("table", task, (2,), 2, numeric=2)))
        assert asked & set(WITHOUT) == set(predict.COSTS)
