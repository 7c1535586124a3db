"""Studies on test rows of the user's own, on a share of rows of the user's own, and on folds that lack a small class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from probatum import InputError, Judging, Reading, Running, Study
from probatum.bench.making import read, read_again
from probatum.cli.ship_view import ship_from_store

QUICK: dict[str, Any] = {"seeds": 2, "steps": 3, "running": Running(timing=False)}


def frame(n: int, seed: int, classes: tuple[str, str] = ("a", "b")) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = [classes[int(value)] for value in x + rng.normal(size=n) > 0]
    return pl.DataFrame({"x": x, "w": rng.choice(["u", "v"], n), "y": y})


def test_a_study_on_test_rows_is_opened_again_and_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame(120, 0).write_csv(tmp_path / "data.csv")
    frame(40, 1).write_csv(tmp_path / "test.csv")
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "store.sqlite"
    study = Study("data.csv", ["gradient-noise"], target="y", test="test.csv", store=store, **QUICK)
    results = study.run()
    assert study.plan.data.splits == "given"
    source = results.summary["source"]
    assert source["test"] == str(tmp_path / "test.csv")
    assert read_again(source).fingerprint == study.dataset.fingerprint
    assert read(frame(120, 0), Reading(target="y", test="test.csv"))[1] is None
    assert read("data.csv", Reading(target="y", test=frame(40, 1)))[1] is None
    ship_from_store(str(store), None, "baseline", tmp_path / "model")
    assert (tmp_path / "model" / "model.json").is_file()


def test_a_holdout_is_a_share_of_the_rows() -> None:
    study = Study("iris", ["gradient-noise"], judging=Judging(holdout=0.1, references=False, confirm=False), **QUICK)
    assert study.plan.data.fractions == (0.7, 0.2, 0.1)
    assert study.plan.data.splits == "folds"
    assert len(study.context.data(3).test) == 15
    assert abs(len(study.context.data(3).train) - 105) <= 1
    usual = Study("iris", ["gradient-noise"], judging=Judging(references=False, confirm=False), **QUICK)
    keys = [one.bench().jobs((0,), (), with_references=False)[0].key for one in (study, usual)]
    assert keys[0] != keys[1]
    for holdout, told in ((0.6, "at most 0.5"), (0.0, "above 0"), (0.01, r"1.5 of 150 rows .* give at least 0.067")):
        with pytest.raises(InputError, match=told):
            Study("iris", ["gradient-noise"], judging=Judging(holdout=holdout), **QUICK)
    with pytest.raises(InputError, match="the test rows of frame are given; leave holdout out"):
        Study(frame(90, 0), ["gradient-noise"], target="y", test=frame(20, 1), judging=Judging(holdout=0.3), **QUICK)


def test_measures_stand_where_a_small_class_is_not_tested() -> None:
    x = np.random.default_rng(0).normal(size=(43, 2))
    study = Study(
        (x, np.repeat([0, 1], [40, 3])),
        ["gradient-noise"],
        seeds=5,
        steps=3,
        judging=Judging(confirm=False),
        running=Running(timing=False, stack="never"),
    )
    trials = study.run().trials
    assert {trial.status for trial in trials} == {"ok"}
    for trial in trials:
        measures = trial.record["measures"]
        assert {"accuracy", "balanced-accuracy", "log-loss", "macro-f1"} <= set(measures)
        assert np.isfinite(list(measures.values())).all()
