"""Test and validation rows in one verdict: by value, at the stated error, narrower; and the study around it."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from loosely import study_of
from probatum.arenas.predict.swap import LOOKS, Swap
from probatum.bench.packed_rows import gather, grouped, pack, unpack
from probatum.bench.pairing import by_arm, pair, value_of
from probatum.bench.plan import plan_from
from probatum.bench.store import Store
from probatum.bench.stored import find_study, results_of
from probatum.bench.two_way import FEW_UNITS
from probatum.bench.verdict import verdicts
from probatum.measure.base import Measure
from probatum.spec import Data, Part
from probatum.train.run import Run

ACCURACY = Measure("accuracy", "quality", True, 0.01)
RMSE = Measure("rmse", "quality", False, 0.02, kind="ratio")
CAPE = "cape(one_vs_rest=True)"
WAYS: dict[str, Callable[[Data], Part | None]] = {
    "by name": lambda data: data.valid,
    "by a copy": lambda data: copy.copy(data).valid,
    "by a deep copy": lambda data: copy.deepcopy(data).valid,
    "by a pickle": lambda data: pickle.loads(pickle.dumps(data)).valid,
    "by another process": lambda data: cloudpickle.loads(cloudpickle.dumps(data)).valid,
    "by its fields": lambda data: getattr(data, dataclasses.fields(data)[2].name),
    "replaced": lambda data: dataclasses.replace(data, test=data.train).valid,
    "by its attributes": lambda data: vars(data).get("valid"),
    "not at all": lambda data: data.train and None,
}
SHORT: dict[str, Any] = {"steps": 12, "timing": False, "references": False, "confirm": False}


def record(
    arm: str, seed: int, test: tuple[np.ndarray, list[float]], valid: tuple[np.ndarray, list[float]] | None, name: str
) -> dict[str, Any]:
    """A trial from the units and values of its rows."""

    def kept(half: tuple[np.ndarray, list[float]]) -> Any:
        return gather({name: np.array(half[1])}, np.asarray(half[0]), 20)

    found: dict[str, Any] = {"arm": arm, "seed": seed, "status": "ok", "measures": {name: float(np.mean(test[1]))}}
    found["rows"] = unpack(pack(kept(test), None if valid is None else kept(valid)))
    found["swapped"] = {} if valid is None else {name: float(np.mean(valid[1]))}
    return found


@pytest.mark.fast
def test_halves_come_back_and_are_joined_by_unit() -> None:
    first = gather({"accuracy": np.array([1.0, 0, 1]), "auroc": np.array([0.5, 1, 0.75])}, np.array([4, 2, 4]), 10)
    second = gather({"accuracy": np.array([0.0, 0, 1, 1])}, np.array([7, 2, 1, 7]), 10)
    found = unpack(pack(first, second))
    assert found.swapped is not None
    assert found.swapped.units.tolist() == [1, 2, 7]
    both = found.both
    assert both is not None
    assert both.units.tolist() == [1, 2, 4, 7]
    np.testing.assert_allclose(both.deviations["accuracy"], [0.5, -2 / 3 - 0.5, 2 / 3, 0.0], atol=1e-6)
    assert both.counts["accuracy"].tolist() == [1, 2, 2, 2]
    assert set(both.deviations) == {"accuracy"}
    assert both.binary == {"accuracy"}
    assert unpack(pack(first)).both is None
    for broken in (pack(first, second)[:7], pack(first, second)[:-5]):
        with pytest.raises(ValueError, match="rows of a trial"):
            unpack(broken)


@pytest.mark.fast
def test_a_pair_counts_every_row_once() -> None:
    test, valid = np.array([0, 1, 2]), np.array([5, 6])
    records = [
        record("baseline", 0, (test, [1, 0, 0]), (valid, [1, 0]), "accuracy"),
        record("arm", 0, (test, [1, 1, 0]), (valid, [1, 1]), "accuracy"),
    ]
    arms = by_arm(records)
    found = pair("arm", arms["baseline"], arms["arm"], ACCURACY)
    assert found.swapped
    assert found.baseline == pytest.approx((2 / 5,))
    assert found.values == pytest.approx((4 / 5,))
    assert found.delta == pytest.approx((2 / 5,))
    assert found.trials is not None
    (trial,) = found.trials
    assert trial.rows == 5
    assert trial.discordant == 1
    assert trial.units.tolist() == [0, 1, 2, 5, 6]
    # differences 0, 1, 0 and 0, 1, of mean 2/5 together: so few rows have no mean of their own half
    np.testing.assert_allclose(trial.deviations, [-2 / 5, 3 / 5, -2 / 5, -2 / 5, 3 / 5], atol=1e-6)


@pytest.mark.fast
def test_halves_of_many_rows_keep_means_of_their_own() -> None:
    rng = np.random.default_rng(0)
    test, valid = np.arange(30), np.arange(30, 55)
    drawn = {arm: (rng.integers(0, 2, 30), rng.integers(0, 2, 25)) for arm in ("baseline", "arm")}
    records = [
        record(arm, 0, (test, one.tolist()), (valid, other.tolist()), "accuracy") for arm, (one, other) in drawn.items()
    ]
    arms = by_arm(records)
    (trial,) = pair("arm", arms["baseline"], arms["arm"], ACCURACY).trials or ()
    halves = [mine - base for base, mine in zip(drawn["baseline"], drawn["arm"], strict=True)]
    np.testing.assert_allclose(trial.deviations, np.concatenate([half - half.mean() for half in halves]), atol=1e-6)


@pytest.mark.fast
def test_ratios_are_those_of_the_measures_joined() -> None:
    test, valid = np.array([0, 1, 2]), np.array([5])
    records = [
        record("baseline", 0, (test, [2.0, 1, 3]), (valid, [4.0]), "rmse"),
        record("arm", 0, (test, [1.0, 1, 1]), (valid, [2.0]), "rmse"),
    ]
    arms = by_arm(records)
    found = pair("arm", arms["baseline"], arms["arm"], RMSE)
    assert found.delta == pytest.approx((math.log(2.5 / 1.25),))
    assert found.trials is not None
    np.testing.assert_allclose(found.trials[0].deviations, [0.0, -1 / 2.5, 1 / 2.5, 0.0], atol=1e-6)


@pytest.mark.fast
def test_halves_of_other_scales_have_one_mean_where_ratios_are_compared() -> None:
    test, valid = np.array([0, 1, 2]), np.array([5, 6])
    base = record("baseline", 0, (test, [2.0, 1, 3]), (valid, [40.0, 50.0]), "rmse")
    mine = record("arm", 0, (test, [1.0, 1, 1]), (valid, [20.0, 10.0]), "rmse")
    (trial,) = pair("arm", {0: base}, {0: mine}, RMSE).trials or ()
    left, right = np.array([2.0, 1, 3, 40, 50]), np.array([1.0, 1, 1, 20, 10])
    # lower is better: each row's share of log(left) - log(right), from the mean of all five
    np.testing.assert_allclose(trial.deviations, left / left.mean() - right / right.mean(), atol=1e-5)
    assert trial.deviations.sum() == pytest.approx(0, abs=1e-5)


@pytest.mark.fast
@pytest.mark.parametrize("n", [3_000, 10_000, 50_000])
@pytest.mark.parametrize("tested", [12, 0.05, 0.2, 0.4])
def test_many_rows_share_groups_between_the_halves(n: int, tested: float) -> None:
    """Of more rows than are kept one by one, groups are: one may hold rows of both halves."""
    rng = np.random.default_rng(0)
    count = tested if isinstance(tested, int) else int(tested * n)
    rows = rng.permutation(n)
    halves = (rows[:count], rows[count : count + n // 5])
    drawn = {arm: [rng.integers(0, 2, len(half)).astype(float) for half in halves] for arm in ("baseline", "arm")}
    found = {}
    for arm, values in drawn.items():
        kept = [gather({"accuracy": x}, half, n) for x, half in zip(values, halves, strict=True)]
        found[arm] = {"arm": arm, "seed": 0, "status": "ok", "measures": {"accuracy": float(values[0].mean())}}
        found[arm] |= {"rows": unpack(pack(*kept)), "swapped": {"accuracy": float(values[1].mean())}}
    pairs = pair("arm", {0: found["baseline"]}, {0: found["arm"]}, ACCURACY)
    assert pairs.swapped
    (trial,) = pairs.trials or ()
    gains = [mine - base for base, mine in zip(drawn["baseline"], drawn["arm"], strict=True)]
    assert pairs.delta == pytest.approx((np.concatenate(gains).mean(),))
    each = [grouped(half, n) for half in halves]
    whole = min(len(np.unique(units)) for units in each) >= FEW_UNITS
    means = [gain.mean() if whole else np.concatenate(gains).mean() for gain in gains]
    expected = np.zeros(max(map(np.max, each)) + 1)
    for units, gain, mean in zip(each, gains, means, strict=True):
        np.add.at(expected, units, gain - mean)
    assert trial.units.tolist() == sorted(set(np.concatenate(each).tolist()))
    np.testing.assert_allclose(trial.deviations, expected[trial.units], atol=2e-3)
    assert trial.rows == sum(map(len, halves))


def test_a_study_of_many_rows_is_judged() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10_500, 4)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=len(x)) > 0).astype(int)
    study = study_of((x, y), ["encouraging-loss"], **{**SHORT, "steps": 3}, seeds=6)
    (verdict,) = [v for v in study.run().verdicts() if v.measure == "accuracy" and v.arm == "encouraging-loss"]
    assert math.isfinite(verdict.low)
    assert verdict.high - verdict.low < 0.2


@pytest.mark.fast
@pytest.mark.parametrize("lacking", ["arm", "baseline", "other rows"])
def test_a_seed_without_validation_rows_leaves_the_pair_to_test_rows(lacking: str) -> None:
    test, valid, rng = np.arange(6), np.arange(10, 16), np.random.default_rng(0)
    records = []
    for seed in range(6):
        for arm in ("baseline", "arm", "third"):
            half: Any = (valid, rng.integers(0, 2, 6).astype(float).tolist())
            if seed == 4 and arm == lacking:
                half = None
            if seed == 4 and arm == "arm" and lacking == "other rows":
                half = (valid + 1, half[1])
            records.append(record(arm, seed, (test, rng.integers(0, 2, 6).astype(float).tolist()), half, "accuracy"))
    found = {v.arm: v for v in verdicts(records, "baseline", [ACCURACY], ratio=None)}
    alone = [{**r, "swapped": {}} for r in records]
    without = {v.arm: v for v in verdicts(alone, "baseline", [ACCURACY], ratio=None)}
    assert not found["arm"].swapped
    assert (found["arm"].mean, found["arm"].low, found["arm"].arm_mean) == (
        without["arm"].mean, without["arm"].low, without["arm"].arm_mean,
    )  # fmt: skip
    assert found["third"].swapped == (lacking != "baseline")


def test_intervals_hold_and_are_narrower() -> None:
    from probatum.bench.honesty import World, chosen_arms, coverage
    from probatum.bench.statistics import over_rows

    generator = np.random.default_rng(5)
    world = World.drawn(generator, 5000)
    tables = [chosen_arms(generator, world, seeds=8, rows=200) for _ in range(24)]
    (alone,), (both,) = (coverage([table[k] for table in tables]) for k in (0, 1))
    assert both.studies == alone.studies == 48
    assert both.lower < 0.05, both.line()
    widths = [
        [
            over_rows(found[arm]["accuracy"].trials).high - over_rows(found[arm]["accuracy"].trials).mean
            for found in table
        ]
        for table in tables
        for arm in table[0]
    ]
    assert np.median([narrow / wide for wide, narrow in widths]) < 0.95
    spread = [
        np.std([np.mean([t.mean for t in table[k]["discriminants"]["accuracy"].trials]) for table in tables])
        for k in (0, 1)
    ]
    assert spread[1] < spread[0]  # it is not the interval alone that is narrower


def test_a_study_counts_validation_rows_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    study = study_of("wine", ["encouraging-loss", CAPE], seeds=6, store=path, **SHORT)
    results = study.run()
    both, alone = (
        {v.arm: v for v in results.verdicts() if v.measure == "accuracy"}[n] for n in ("encouraging-loss", CAPE)
    )
    assert both.swapped
    assert not alone.swapped
    records = by_arm(results._records(results.trials, ()))
    values = [value_of(records["encouraging-loss"][seed], "accuracy", True) for seed in range(6)]
    first = records["encouraging-loss"][0]
    n_test, n_valid = len(study.context.data(0).test), len(study.context.data(0).valid)
    weighed = (n_test * first["measures"]["accuracy"] + n_valid * first["swapped"]["accuracy"]) / (n_test + n_valid)
    assert values[0] == pytest.approx(weighed)
    assert both.arm_mean == pytest.approx(np.mean(values))
    assert results.mean("encouraging-loss", "accuracy") == pytest.approx(np.mean(values))
    assert results.mean(CAPE, "accuracy") == alone.arm_mean
    told = results.swap_note()
    assert told == results.as_json()["swap_note"]
    assert told.startswith("Weights chosen on validation rows are tested on test rows, and the other way round.")
    assert f"{CAPE} on test rows alone (a technique looks at validation rows itself)" in told
    with Store(path) as store:
        held = results_of(store, find_study(store))
    assert held.plan == plan_from(study.plan.describe())
    first_found, again = (sorted((v.arm, v.measure, v.word, str(v.low)) for v in r.verdicts()) for r in (results, held))
    assert again == first_found


def test_without_swapping_the_trials_are_the_same_but_for_that() -> None:
    with_it, without = (
        study_of("wine", ["encouraging-loss"], seeds=2, swap=swap, **SHORT).run() for swap in (True, False)
    )
    assert with_it.plan.swap
    assert not without.plan.swap
    assert without.swap_note() == "Test rows alone are tested."
    for one, other in zip(with_it.trials, without.trials, strict=True):
        assert one.key != other.key
        assert one.record["measures"] == other.record["measures"]
        assert one.record["digest"] == other.record["digest"]
        assert "swapped" in one.record
        assert "swapped" not in other.record
        kept, plain = unpack(one.rows), unpack(other.rows)
        assert plain.swapped is None
        assert all(np.array_equal(plain.deviations[name], kept.deviations[name]) for name in plain.deviations)


def test_a_study_cut_short_goes_on_to_the_same(tmp_path: Path) -> None:
    whole = study_of("iris", ["encouraging-loss"], seeds=3, store=tmp_path / "whole.sqlite", **SHORT)
    part = study_of("iris", ["encouraging-loss"], seeds=3, store=tmp_path / "part.sqlite", **SHORT)
    bench = part.bench()
    bench.run(bench.jobs((0, 1), part.plan.arms, with_references=False))
    for one, other in zip(whole.run().trials, part.run().trials, strict=True):
        assert (one.key, one.record, one.rows) == (other.key, other.record, other.rows)


def test_given_test_rows_are_tested_alone(tmp_path: Path) -> None:
    from sklearn.datasets import load_wine

    frame = load_wine(as_frame=True).frame
    words = ["test" if k % 4 == 0 else "train" for k in range(len(frame))]
    study = study_of(frame, ["encouraging-loss"], target="target", split=words, seeds=1, **SHORT)
    assert not study.plan.swap
    assert "swapped" not in study.run().trials[0].record
    assert study.results.swap_note() == "Test rows alone are tested: they are given."


@pytest.mark.parametrize("way", sorted(WAYS))
def test_rows_are_noted_by_whichever_way_they_are_taken(way: str) -> None:
    """One that learns its validation rows by heart would be right on all of them when they are tested."""
    data = study_of("iris", ["gradient-noise"], seeds=1).context.data(0)
    swap = Swap()
    given = swap.noting(data)
    assert swap.why_not() == ""
    found = WAYS[way](given)
    assert found is None or torch.equal(found.x, data.valid.x)
    assert (swap.why_not() == LOOKS) == (found is not None)


def test_a_run_s_copies_note_too() -> None:
    run = Run(*[None] * 5, "rows", None)  # type: ignore[arg-type]
    assert not run.asked.yes
    assert copy.copy(run).valid == "rows"
    assert run.asked.yes
    run = Run(*[None] * 5, "rows", None)  # type: ignore[arg-type]
    assert copy.deepcopy(run).valid == "rows"
    assert run.asked.yes
    run = Run(*[None] * 5, "rows", None)  # type: ignore[arg-type]
    pickle.dumps(run.asked)
    assert run.asked.yes
