"""Test rows of trials: kept beside them, used by verdicts, and missed where an earlier version did not keep them."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from probatum.bench.packed_rows import unpack
from probatum.bench.splits import STRETCHES, Splits
from probatum.bench.store import Store
from probatum.bench.stored import find_study, results_of
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.settings import Judging, Reading, Running
from probatum.study import Study

QUICK = {"seeds": 6, "steps": 4, "running": Running(timing=False)}


def study(store: Path | None = None, **judging: object) -> Study:
    asked = Judging(references=False, confirm=False, **judging)  # type: ignore[arg-type]
    return Study("wine", ["encouraging-loss"], store=store, judging=asked, **QUICK)  # type: ignore[arg-type]


def test_rows_of_a_study_are_those_of_its_measures() -> None:
    made = study()
    results = made.run()
    for trial in results.trials:
        rows = unpack(trial.rows)
        data = made.context.data(trial.seed)
        assert set(rows.units.tolist()) == set(made.dataset.plan.units[data.test.rows.numpy()].tolist())
        assert rows.counts["accuracy"].sum() == len(data.test)
        right = trial.record["measures"]["accuracy"]
        assert sorted(set(np.round(rows.deviations["accuracy"] + right, 5).tolist())) in ([0.0, 1.0], [1.0], [0.0])
        assert rows.binary >= {"accuracy"}
    support = {r["seed"]: r["support"] for r in results._records(results.trials, ())}
    assert all(sum(counts) == len(made.context.data(seed).test) for seed, counts in support.items())
    verdict = results.primary_verdicts()[0]
    assert math.isfinite(verdict.error)
    assert 0 <= verdict.common <= 1
    assert results.rows_note() == ""
    assert "new rows like these, models trained on 60% samples of them" in results.asked_of()


def test_a_store_without_rows_is_read_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    new = study(path).run()
    with sqlite3.connect(path) as database:
        assert database.execute("delete from blobs where name = 'rows'").rowcount == 12
        database.execute("update trials set checksum = null")  # as stores of that time are
    with Store(path) as store:
        old = results_of(store, find_study(store))
    assert "The test rows of 12 of 12 trials are not known" in old.rows_note()
    before = old.primary_verdicts()[0]
    assert math.isnan(before.error)
    values = [
        [t.record["measures"]["accuracy"] for t in new.trials if t.arm == arm] for arm in ("baseline", before.arm)
    ]
    assert before.mean == pytest.approx(np.subtract(values[1], values[0]).mean())  # test rows alone
    again = replace(old, trials=tuple(replace(t, rows=n.rows) for t, n in zip(old.trials, new.trials, strict=True)))
    assert again.primary_verdicts() == new.primary_verdicts()


def test_other_data_sets_are_another_question(tmp_path: Path) -> None:
    here, elsewhere = (study(tmp_path / f"{which}.sqlite", question=which).run() for which in ("data", "datasets"))
    narrow, wide = here.primary_verdicts()[0], elsewhere.primary_verdicts()[0]
    assert narrow.mean == wide.mean
    assert wide.high - wide.low >= narrow.high - narrow.low
    assert elsewhere.asked_of().startswith("other data sets like these")
    with pytest.raises(InputError, match="for is 'all'; use one of data, datasets"):
        study(question="all")
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
    given = Reading(split=["train", "valid", "test"] * 20)
    with pytest.raises(InputError, match="given test rows tell nothing of other data sets"):
        Study((x, y), ["encouraging-loss"], reading=given, judging=Judging(question="datasets"), **QUICK)  # type: ignore[arg-type]


def test_units_of_a_split_by_time_are_stretches() -> None:
    dataset = open_dataset("moons")
    moments = np.random.default_rng(1).permutation(dataset.n)
    timed = replace(dataset, plan=replace(dataset.plan, moment=moments))
    splits = Splits(timed, (0.6, 0.2, 0.2))
    units, known = splits.units(0)  # type: ignore[misc]
    assert known == STRETCHES
    assert np.bincount(units).tolist() == [len(units) // STRETCHES] * STRETCHES or np.ptp(np.bincount(units)) <= 1
    order = np.argsort(moments[splits.data(0).test.rows.numpy()])
    assert (np.diff(units[order]) >= 0).all()


def test_units_of_a_corpus_are_stretches_of_its_text() -> None:
    dataset = open_dataset("python-topics")
    splits = Splits(dataset, (0.6, 0.2, 0.2))
    units, known = splits.units(0)  # type: ignore[misc]
    rows = splits.data(0).test.rows.numpy()
    assert known == 10 * STRETCHES
    assert len(set(units.tolist())) > 20
    width = dataset.n / known
    assert all(
        unit * width <= row < (unit + 1) * width + 1 for unit, row in zip(units.tolist(), rows.tolist(), strict=True)
    )


def test_few_groups_are_asked_of_as_groups_and_told_to_be_few() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"a": rng.normal(size=100), "site": np.arange(100) % 5, "y": rng.integers(0, 2, 100)})
    for swap, word in ((False, "each seed tests a single group"), (True, "only 5 rows or groups were tested")):
        made = Study(
            frame, ["gradient-noise"], reading=Reading(target="y", group="site"),
            judging=Judging(references=False, confirm=False, swap=swap), **QUICK,  # type: ignore[arg-type]
        )  # fmt: skip
        results = made.run()
        assert "new groups of rows like these" in results.asked_of()
        (verdict,) = results.primary_verdicts()
        assert word in verdict.note
        assert "same amount" not in verdict.note
        assert not math.isnan(verdict.low)
        assert math.isinf(verdict.low) != swap
